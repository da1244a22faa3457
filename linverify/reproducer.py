"""Reproducers: a script that shows one fault with torch and the kernel alone.

WHY. A verdict is believed, and a kernel mended, by people who do not have this package, on another machine. The script
carries the inputs bit by bit, in the memory layout that the kernel saw, and the expected values of the failing result from
the float64 reference. It exits 1 while the fault is there and 0 when it is gone.
"""

import base64
import math
import shlex
import sys
import textwrap
import zlib
from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

import torch

import linverify
from linverify.binding import Binding
from linverify.case import Case
from linverify.contract import Assignment
from linverify.inquiry import Outcome
from linverify.layout import Placed, place
from linverify.operator import Operator
from linverify.plan import Plan
from linverify.problem import Call, Problem, Result
from linverify.target import TargetSpec
from linverify.verdict import Evidence, Failure
from linverify.wire import as_bytes

EMBED_BYTES = 512 * 1024
_PROCESS = ("crash", "hang", "exit", "out_of_memory")
_NUMERIC = ("wrong_value", "not_finite")
_HANG_SECONDS = {"cpu": 120.0, "cuda": 360.0}  # a GPU compiler may take minutes before the kernel starts


def of_outcome(
    plan: Plan, spec: TargetSpec, binding: Binding, operator: Operator, outcome: Outcome, law: str
) -> Path | None:
    """Write a script for the outcome of a law, where the plan wants one and the outcome can be shown.

    Raises:
        OSError: the file cannot be written.
    """
    trial, failure = outcome.trial, outcome.failure
    call = None if trial is None else trial.asked.call
    if plan.reproducers is None or trial is None or failure is None or call is None:
        return None
    if call.layout.startswith("distant"):  # no script carries gigabytes; the case replays
        return None
    return write(
        plan.reproducers,
        spec,
        binding,
        operator,
        trial.case,
        trial.problem,
        call,
        trial.asked.result,
        trial.reference(call.problem),
        failure,
        device=plan.device,
        autotune=plan.pinning,
        law=law,
    )


def write(
    place_at: Path,
    spec: TargetSpec,
    binding: Binding,
    operator: Operator,
    case: Case,
    problem: Problem,
    call: Call,
    result: Result | None,
    expected: Mapping[str, torch.Tensor] | None,
    failure: Failure,
    *,
    device: str = "cpu",
    autotune: str = "pin",
    law: str = "",
) -> Path:
    """Write the script, and a data file beside it where the tensors are large; return the script's path.

    Args:
        place_at: a folder (made if missing), or the path of the script itself (ends in .py).
        spec: where the kernel is.
        binding: how it is called.
        operator: the statement that it is held to.
        case: the minimal case.
        problem: what the case asks.
        call: the failing call; a law may make several, of problems of its own.
        result: what came back; None where nothing did.
        expected: float64 results by name; None where there are none.
        failure: its evidence says which result fails, where, and how much is allowed there.
        device: where the case ran.
        autotune: pin or native, as in the run.
        law: name of the broken property.

    Raises:
        OSError: the folder cannot be written.
    """
    one_of_several = call.problem is not problem
    problem = call.problem
    assignment = assignment_of(binding, operator)
    tensors = _inputs(problem, call, assignment)
    wanted = failure.evidence.result
    if expected is not None:
        expected = {name: assignment.merged(name, x) for name, x in expected.items()}
    if expected is not None and wanted in expected:
        tensors[f"expected {wanted}"] = place(expected[wanted].double(), "contiguous", device=torch.device("cpu"))
    path = _path(place_at, binding, failure, law)
    path.parent.mkdir(parents=True, exist_ok=True)
    data_file = ""
    if sum(t.base.numel() * t.base.element_size() for t in tensors.values()) > EMBED_BYTES:
        data_file = path.with_suffix(".pt").name
        torch.save({name: _raw(t.base) for name, t in tensors.items()}, path.with_suffix(".pt"))
    facts = {
        "KERNEL": (spec.kind, spec.location, binding.function),
        "SEARCH": _search(spec),
        "DEVICE": device,
        "PARAMETERS": {n: binding.names[n] for n in (*problem.tensors, "initial_state") if n in tensors},
        "KEYWORDS": _keywords(binding, problem),
        "OFFSETS": _offsets(binding, problem),
        "GRADIENTS": list(problem.wrt if problem.cotangents else ()),
        "MAY_HAVE_NO_GRADIENT": [n for n in problem.wrt if assignment.zero_gradient(n, problem)],
        "STATE_ASKED": problem.final_state,
        "STATE_VALUE_FIRST": binding.state_value_first,
        "SHAPES": {"o": list(assignment.shape_of_o(problem)), "state": _state_shape(assignment, problem)},
        "DTYPES": _dtypes(assignment, problem),
        "POISON": call.poison,
        "PIN_AUTOTUNE": autotune == "pin" and spec.mentions_triton,
        "FAULT": {**_fault(case, failure, tensors, expected), "bits": _bits(result, wanted)},
        "TIME_LIMIT": _HANG_SECONDS["cuda" if device.startswith("cuda") else "cpu"],
        "DATA_FILE": data_file,
    }
    about = _about(spec, binding, operator, case, failure, device=device, law=law, one_of_several=one_of_several)
    path.write_text(_script(about, facts, tensors, device=device, embed=not data_file), encoding="utf-8")
    return path


def assignment_of(binding: Binding, operator: Operator) -> Assignment:
    """What whoever calls the function must know of a binding and of its operator."""
    return Assignment(
        function=binding.function,
        names=binding.names,
        settings=binding.settings,
        state_value_first=binding.state_value_first,
        claims=binding.claims,
        axes={i.name: "".join(i.axes) for i in operator.inputs},
        kinds={i.name: i.kind for i in operator.inputs},
        readers=operator.readers,
        value=operator.value_name,
        state_axes="".join(operator.state_axes),
        o_axes="".join(operator.o_axes),
        unseen=operator.unseen,
    )


def _inputs(problem: Problem, call: Call, assignment: Assignment) -> dict[str, Placed]:
    """Lay out every input, the state and the cotangents as the worker does."""
    cpu = torch.device("cpu")
    turn = problem.tensors[assignment.value].shape[1]
    tensors = {
        name: place(assignment.merged(name, tensor), call.layout, device=cpu, turn=turn + position)
        for position, (name, tensor) in enumerate(problem.tensors.items())
    }
    outward = _transposed if assignment.state_value_first else _as_it_is
    if problem.initial_state is not None:
        tensors["initial_state"] = place(outward(problem.initial_state), "contiguous", device=cpu)
    for name, tensor in problem.cotangents.items():
        upstream = outward(tensor) if name == "state" else tensor
        tensors[f"cotangent {name}"] = place(upstream, call.cotangent_layout, device=cpu, turn=turn)
    return tensors


def _transposed(state: torch.Tensor) -> torch.Tensor:
    return state.transpose(-1, -2).contiguous()


def _as_it_is(state: torch.Tensor) -> torch.Tensor:
    return state


def _keywords(binding: Binding, problem: Problem) -> dict[str, Any]:
    keywords = dict(binding.settings)
    if "output_final_state" in binding.names:
        keywords[binding.names["output_final_state"]] = problem.final_state
    if problem.scale is not None and "scale" in binding.names:
        keywords[binding.names["scale"]] = problem.scale
    return keywords


def _offsets(binding: Binding, problem: Problem) -> tuple[str, list[int], str] | None:
    if not problem.lengths:
        return None
    starts = [sum(problem.lengths[:n]) for n in range(len(problem.lengths) + 1)]
    return binding.names["cu_seqlens"], starts, problem.offsets


def _state_shape(assignment: Assignment, problem: Problem) -> list[int]:
    return list(assignment.shape_of_state(problem)) if assignment.state_axes else []


def _dtypes(assignment: Assignment, problem: Problem) -> dict[str, list[str]]:
    own = str(problem.tensors[assignment.value].dtype).removeprefix("torch.")
    both = own == "float64" or assignment.claims.get("state_dtype") == "input"
    return {"o": [own], "state": list(dict.fromkeys(["float32", *([own] if both else [])]))}


def _search(spec: TargetSpec) -> list[str]:
    folders = [str(Path(spec.location).parent)] if spec.kind == "file" else [str(Path.cwd())]
    if spec.location.startswith("linverify."):
        folders.append(str(Path(linverify.__file__).resolve().parents[1]))
    return folders


def _fault(
    case: Case, failure: Failure, tensors: Mapping[str, Placed], expected: Mapping[str, torch.Tensor] | None
) -> dict[str, Any]:
    e = failure.evidence
    value = None if expected is None else expected.get(e.result)
    index = [int(part.partition("=")[2]) for part in e.where.split(", ") if part.partition("=")[2].isdigit()]
    numeric = e.kind in _NUMERIC and f"expected {e.result}" in tensors
    process = e.kind in _PROCESS
    contract = e.kind not in (*_NUMERIC, *_PROCESS, "not_bitwise")
    return {
        "case": case.id,
        "kind": e.kind,
        "message": e.message.partition("\n")[0],
        "result": e.result,
        "index": index if value is not None and len(index) == value.dim() else [],
        "line": _line(e),
        "process": process,
        "alone": numeric or process or contract,
    }


def _line(e: Evidence) -> float:
    """Return the absolute error above which the worst element shows the fault.

    Where another statistic than the largest error found it, it counts as gone when the worst element is half as wrong.
    """
    if e.kind == "not_finite" or not math.isfinite(e.how_far):
        return e.allowed if e.allowed > 0 else sys.float_info.max
    return e.allowed if 0 < e.allowed < e.how_far else e.how_far / 2


def _bits(result: Result | None, name: str) -> int | None:
    """Return a check sum of the failing tensor, so that the script can say whether it got the very same one."""
    tensor = None if result is None else result.named().get(name)
    return None if tensor is None else zlib.crc32(_raw(tensor).numpy().tobytes())


def _path(place_at: Path, binding: Binding, failure: Failure, law: str) -> Path:
    if place_at.suffix == ".py":
        return place_at
    digest = f"{zlib.crc32(failure.case_id.encode()):08x}"
    return place_at / f"{binding.function.replace('.', '_')}-{law or failure.evidence.kind}-{digest}.py"


def _raw(base: torch.Tensor) -> torch.Tensor:
    return as_bytes(base.contiguous())


def _about(
    spec: TargetSpec,
    binding: Binding,
    operator: Operator,
    case: Case,
    failure: Failure,
    *,
    device: str,
    law: str,
    one_of_several: bool,
) -> list[str]:
    """Return the comment at the top of the script."""
    target = spec.text if spec.function else f"{spec.text}::{binding.function}"
    settings = [word for name, value in binding.settings.items() for word in ("--set", f"{name}={value!r}")]
    claims = [word for name, value in binding.claims.items() for word in ("--claims", f"{name}={value}")]
    command = ["linverify", "replay", case.id, "--target", target, "--op", operator.name]
    command += ["--property", law] if law else []
    command += [*settings, *claims, "--device", device]
    lines = [
        f"Written by linverify {linverify.__version__}. Needs torch and the kernel alone.",
        "Exit code 1 while the fault is there, 0 when it is gone, 3 if one call does not show it.",
        "",
        f"operator   {operator.name}",
        f"property   {law or '-'}"
        + (" (which makes several calls; this is the one that failed)" if one_of_several else ""),
        f"case       {case.id}",
        f"diagnosis  {failure.diagnosis or '-'}",
        f"replay     {shlex.join(command)}",
    ]
    return [f"# {line}".rstrip().replace("\n", " ") for line in lines]


def _script(
    about: list[str], facts: Mapping[str, Any], tensors: Mapping[str, Placed], *, device: str, embed: bool
) -> str:
    lines = [*about, ""]
    if device == "cpu":
        lines += ["import os", "", 'os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton', ""]
    body = Path(__file__).with_name("reproducer_body.py").read_text(encoding="utf-8")
    lines += [body.partition('"""\n')[2].strip("\n"), "", ""]
    lines += [f"{name} = {pformat(value, width=110, sort_dicts=False)}" for name, value in facts.items()]
    lines += ["DATA = {", *(f"    {name!r}: {_entry(t, embed=embed)}," for name, t in tensors.items()), "}"]
    lines += ["", 'if __name__ == "__main__":', "    sys.exit(main())", ""]
    return "\n".join(lines)


def _entry(placed: Placed, *, embed: bool) -> str:
    view = placed.view
    parts = {
        "dtype": str(view.dtype).removeprefix("torch."),
        "size": list(view.shape),
        "stride": list(view.stride()),
        "offset": view.storage_offset(),
    }
    text = ", ".join(f"{k!r}: {v!r}" for k, v in parts.items())
    if not embed:
        return "{" + text + "}"
    encoded = base64.b64encode(zlib.compress(_raw(placed.base).numpy().tobytes(), 9)).decode()
    return "{" + text + ', "bytes": """\n' + "\n".join(textwrap.wrap(encoded, 120)) + '"""}'
