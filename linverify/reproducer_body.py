"""What every reproducer script has in common; ``linverify.reproducer`` puts it between a script's facts and its data.

It must need torch and the kernel alone: nothing here imports linverify. The facts are constants that the script defines first.
"""

import base64
import importlib
import importlib.util
import subprocess
import sys
import types
import zlib
from math import inf, nan
from pathlib import Path
from typing import Any

import torch

GONE, THERE, NOT_SHOWN = 0, 1, 3
SURVIVED = 70  # added to the exit code of a child that got to its end: a kernel may exit with anything, 0 included
NEEDS_MORE = (
    "one call alone does not show it: the law compares several calls; the command at the top of this file replays it"
)

KERNEL: tuple[str, str, str]  # "file" or "module", where, function
SEARCH: list[str]  # folders that the kernel's imports may need
DEVICE: str
PARAMETERS: dict[str, str]  # tensor name to keyword
KEYWORDS: dict[str, Any]  # the other keywords
OFFSETS: tuple[str, list[int], str] | None  # keyword, values and dtype of cu_seqlens
GRADIENTS: list[str]  # inputs whose gradient is asked for
MAY_HAVE_NO_GRADIENT: list[str]  # those whose gradient is zero whatever the values
STATE_ASKED: bool
STATE_VALUE_FIRST: bool  # the kernel's state is [N, H, V, K]
SHAPES: dict[str, list[int]]  # of o and state, as the kernel should return them
DTYPES: dict[str, list[str]]  # of o and state
POISON: str  # what fresh memory is filled with
PIN_AUTOTUNE: bool  # run each Triton kernel's first configuration
FAULT: dict[str, Any]  # case, kind, message, result, index, line, process, alone, bits
TIME_LIMIT: float  # seconds, for a fault that takes the process down
DATA: dict[str, dict[str, Any]]  # tensors by name: dtype, size, stride, offset, and bytes or a place in DATA_FILE
DATA_FILE: str


def stored(name: str) -> torch.Tensor:
    """Rebuild a tensor in the memory layout that the kernel saw, on the CPU."""
    d = DATA[name]
    if "bytes" in d:
        raw = bytearray(zlib.decompress(base64.b64decode(d["bytes"])))
        memory = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.zeros(0, dtype=torch.uint8)
    else:
        memory = torch.load(Path(__file__).with_name(DATA_FILE), weights_only=True)[name]
    flat = memory.view(getattr(torch, d["dtype"])).to("cpu" if name.startswith("expected ") else DEVICE)
    return flat.as_strided(d["size"], d["stride"], d["offset"])


def load_kernel() -> Any:
    """Import the kernel the way it was imported when the fault was found."""
    sys.path[:0] = [folder for folder in SEARCH if folder not in sys.path]
    if importlib.util.find_spec("linverify") is None:
        stand_in = types.ModuleType("linverify")  # for kernels that carry its decorator
        stand_in.kernel = lambda *_, **__: lambda function: function  # type: ignore[attr-defined]
        sys.modules["linverify"] = stand_in
    kind, where, function = KERNEL
    if kind == "file":
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None:
            raise SystemExit(f"cannot load {where}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[Path(where).stem] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    found: Any = module
    for part in function.split("."):
        found = getattr(found, part)
    return found


def pin_autotune() -> None:
    """Replace Triton's timing of configurations, which needs a GPU, by the first one that fits."""
    if importlib.util.find_spec("triton") is None:
        return
    tuner: Any = importlib.import_module("triton.runtime.autotuner").Autotuner

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        for position, config in enumerate(self.configs):
            settings = config.all_kwargs()
            if config.pre_hook is not None:
                config.pre_hook({**given, **settings})
            try:
                return self.fn.run(*args, **kwargs, **settings)
            except Exception as error:
                if type(error).__name__ != "OutOfResources" or position + 1 == len(self.configs):
                    raise
        return None

    tuner.run = run


def poison_fresh_memory() -> None:
    """Fill what torch.empty and its relatives return, so that an element that is never written shows."""
    for holder, names in (
        (torch, ("empty", "empty_like", "empty_strided", "empty_permuted")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            setattr(holder, name, filling(getattr(holder, name)))


def filling(original: Any) -> Any:
    """Wrap one allocating function."""

    def allocate(*args: Any, **kwargs: Any) -> Any:
        fresh = original(*args, **kwargs)
        if kwargs.get("out") is None and fresh.is_floating_point():
            fresh.detach().fill_(nan if POISON == "nan" else torch.finfo(fresh.dtype).max / 4)
        return fresh

    return allocate


def run(kernel: Any, problems: list[str]) -> dict[str, torch.Tensor]:
    """Call the kernel, back-propagate if asked, and return results by name; broken contracts go to `problems`."""
    inputs = {name: stored(name).detach().requires_grad_(name in GRADIENTS) for name in PARAMETERS}
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    arguments: dict[str, Any] = {PARAMETERS[name]: tensor for name, tensor in inputs.items()} | KEYWORDS
    if OFFSETS is not None:
        arguments[OFFSETS[0]] = torch.tensor(OFFSETS[1], dtype=getattr(torch, OFFSETS[2]), device=DEVICE)
    cotangents = {name.removeprefix("cotangent "): stored(name) for name in DATA if name.startswith("cotangent ")}
    torch.manual_seed(0)
    with torch.set_grad_enabled(bool(cotangents)):
        returned = kernel(**arguments)
    results = unpack(returned, problems)
    if cotangents:
        back_propagate(inputs, results, cotangents, problems)
    for name, tensor in inputs.items():
        if not torch.equal(tensor.detach().nan_to_num(), before[name].nan_to_num()):
            problems.append(f"input {name} was changed in place")
    for name in ("state", "dinitial_state"):
        if name in results and STATE_VALUE_FIRST and results[name].dim() >= 2:
            results[name] = results[name].transpose(-1, -2)
    return {name: tensor.detach().cpu() for name, tensor in results.items()}


def back_propagate(
    inputs: dict[str, torch.Tensor],
    results: dict[str, torch.Tensor],
    cotangents: dict[str, torch.Tensor],
    problems: list[str],
) -> None:
    """Add the gradients to the results."""
    roots = {
        name: results[name]
        for name, upstream in cotangents.items()
        if name in results and results[name].requires_grad and results[name].shape == upstream.shape
    }
    if "o" in cotangents and "o" in results and not results["o"].requires_grad:
        problems.append("o came without a grad_fn although inputs require gradients")
    if not roots:
        return
    given = [cotangents[name].to(result.dtype) for name, result in roots.items()]
    wanted = [inputs[name] for name in GRADIENTS]
    found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(list(roots.values()), wanted, given, allow_unused=True)
    for name, gradient in zip(GRADIENTS, found, strict=True):
        if gradient is not None:
            results[f"d{name}"] = gradient
            check(f"d{name}", gradient, list(inputs[name].shape), [dtype_of(inputs[name])], problems)
        elif name not in MAY_HAVE_NO_GRADIENT:
            problems.append(f"the gradient of {name} is None")


def unpack(returned: Any, problems: list[str]) -> dict[str, torch.Tensor]:
    """Take o and the state out of what came back."""
    parts = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    if isinstance(returned, list) or not isinstance(returned, (tuple, torch.Tensor)):
        problems.append(f"expected o or (o, state), got {type(returned).__name__}")
    if isinstance(returned, tuple) and len(parts) != 2:
        problems.append(f"expected 2 results, got {len(parts)}")
    results = {}
    for name, part in zip(("o", "state")[: 1 + STATE_ASKED], [*parts, None], strict=False):
        if isinstance(part, torch.Tensor):
            results[name] = part
            check(name, part, SHAPES[name], DTYPES[name], problems)
        else:
            problems.append(f"{name}: expected a tensor, got {type(part).__name__}")
    return results


def check(name: str, tensor: torch.Tensor, shape: list[int], dtypes: list[str], problems: list[str]) -> None:
    """Compare a result's shape and dtype with what they should be."""
    if list(tensor.shape) != shape:
        problems.append(f"{name}: expected shape {shape}, got {list(tensor.shape)}")
    if dtype_of(tensor) not in dtypes:
        problems.append(f"{name}: expected {' or '.join(dtypes)}, got {dtype_of(tensor)}")


def dtype_of(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def compare(results: dict[str, torch.Tensor]) -> bool:
    """Print the four facts of the failing result; return whether the fault is still there."""
    name, line, index = FAULT["result"], FAULT["line"], FAULT["index"]
    expected, got = stored(f"expected {name}"), results[name].double()
    if expected.shape != got.shape:
        return True
    error = (got - expected).abs()
    error[got == expected] = 0.0  # infinities too
    error[error.isnan()] = inf
    here = tuple(index) if index else tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    say(
        "how many",
        f"{int((error > line).sum())} of {error.numel()} elements of {name} are off by more than is allowed here",
    )
    say("how far", f"{float(error[here]):.3g} (expected {float(expected[here]):.6g}, got {float(got[here]):.6g})")
    say("where", f"{list(here)}")
    say("allowed", f"{line:.3g}")
    if FAULT["bits"] is not None:
        found = results[name].contiguous()
        raw = found.as_strided((found.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
        say(
            "bits",
            "the same as when it was found" if zlib.crc32(raw) == FAULT["bits"] else "others than when it was found",
        )
    return bool(error[here] > line) or bool(error.isinf().any())


def bitwise(kernel: Any, first: dict[str, torch.Tensor]) -> bool:
    """Return whether a second run of the same call gives other bits."""
    second = run(kernel, [])
    differing = [n for n, t in first.items() if n in second and not torch.equal(t.nan_to_num(), second[n].nan_to_num())]
    say("twice", f"two runs of the same call differ in {', '.join(differing) or 'nothing'}")
    return bool(differing)


def say(label: str, text: str) -> None:
    """Print one line."""
    sys.stdout.write(f"{label:<10}{text}\n")


def once() -> int:
    """Run the case in this process and judge it."""
    if PIN_AUTOTUNE:
        pin_autotune()
    kernel = load_kernel()
    poison_fresh_memory()
    problems: list[str] = []
    results = run(kernel, problems)
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    for problem in problems:
        say("contract", problem)
    numeric = f"expected {FAULT['result']}" in DATA and FAULT["result"] in results
    there = (
        bool(problems)
        or (numeric and compare(results))
        or (FAULT["kind"] == "not_bitwise" and bitwise(kernel, results))
    )
    return THERE if there else GONE if FAULT["alone"] else NOT_SHOWN


def main() -> int:
    """Return 1 while the fault is there, 0 when it is gone, 3 if one call does not show it."""
    if "--here" in sys.argv:
        return SURVIVED + once()
    say("case", FAULT["case"])
    say("found", FAULT["kind"].replace("_", " ") + (f": {FAULT['message']}" if FAULT["message"] else ""))
    code = in_a_child() if FAULT["process"] else once()
    say("verdict", {THERE: "the fault is there", GONE: "the fault is gone"}.get(code, NEEDS_MORE))
    return code


def in_a_child() -> int:
    """Run the case in a child process, which it may take down; return whether it did."""
    sys.stdout.flush()
    try:
        code = subprocess.run([sys.executable, __file__, "--here"], timeout=TIME_LIMIT, check=False).returncode
    except subprocess.TimeoutExpired:
        say("child", f"no answer after {TIME_LIMIT:g} s")
        return THERE
    say("child", "got to its end" if code >= SURVIVED else f"was ended with exit code {code}")
    return GONE if code == SURVIVED + GONE else THERE
