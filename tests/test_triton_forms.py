"""The Triton forms, judged against the float64 reference; faults planted in them are seen. On a GPU the same, and bf16."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from linverify import draw
from linverify.binding import bind
from linverify.case import Case
from linverify.impls import _backend, triton_chunkwise, triton_recurrent
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Call, Program
from linverify.recipe import precision_class
from linverify.registry import implementations, operator, operators
from linverify.runner import Runner
from linverify.target import parse
from tests.kinds import suited

pytest.importorskip("triton")
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
RECURRENT = [n for n, o in sorted(operators().items()) if o.canonical]
# No part of the contract; and a planted copy imports the checker's rooms.
TOLD = ("not_contiguous", "interference")
IMPLS = Path(_backend.__file__).parent


@dataclass(frozen=True)
class Machine:
    """A device, and a process for each module whose functions were asked there."""

    device: str
    runners: dict[str, Runner] = field(default_factory=dict)

    def bound(self, target: str, op: Operator) -> Runner:
        """The module's process, about to call the operator's function."""
        if target not in self.runners:
            self.runners[target] = Runner(parse(target), device=self.device)
        runner = self.runners[target]
        runner.bind(bind(op, next(f for f in runner.describe().functions if f.name == op.name)), op)
        return runner

    def close(self) -> None:
        for runner in self.runners.values():
            runner.close()


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=on_gpu)])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    found = Machine(request.param)
    yield found
    found.close()


@pytest.fixture
def interpreter() -> Iterator[Machine]:
    found = Machine("cpu")
    yield found
    found.close()


def case(name: str, **settings: object) -> Case:
    """A small case that asks for everything; no size is a block of any kernel."""
    usual = {
        "T": 9,
        "H": 2,
        "K": 7,
        "V": 5,
        "gate": "mild",
        "state": "normal",
        "final_state": True,
        "cotangent": "both",
    }
    return suited(Case(name, **{**usual, **settings}), operator(name))  # type: ignore[arg-type]


def shares(target: str, machine: Machine, *cases: Case) -> dict[str, float]:
    """The worst share of the budget by result; contracts must hold."""
    op = operator(cases[0].operator)
    judge, worst = Judge(op, machine.device), dict[str, float]()
    runner = machine.bound(target, op)
    for asked in cases:
        problem = draw.problem(asked, op)
        (result,) = runner.run(Program((Call(problem),)), time_limit=300.0)
        assert not [b for b in result.breaches if b.kind not in TOLD], (asked.id, result.breaches)
        answer, named = judge.answer(problem), result.named()
        assert named.keys() == answer.reference.keys()
        for n, value in named.items():
            precision = precision_class(asked.dtype, machine.device, {})
            share = judge.score(answer, n, value.reshape(answer.reference[n].shape), precision).share
            worst[n] = max(worst.get(n, 0.0), share if share == share else float("inf"))
    return worst


def dtypes(device: str) -> tuple[str, ...]:
    """Triton's interpreter multiplies bf16 tiles wrongly."""
    return ("fp32", "fp16") if device == "cpu" else ("fp32", "fp16", "bf16")


@pytest.mark.parametrize("name", RECURRENT)
def test_every_recurrence_runs_in_the_fused_kernel(name: str, machine: Machine) -> None:
    packed = {"lengths": (3, 0, 1, 4), "T": 8, "scale": "other"}
    cases = [case(name, seed=1, **packed), case(name, B=2, T=4, H=2, dtype="fp16", gate="reset")]
    worst = shares("linverify.impls.triton_recurrent", machine, *cases)
    assert max(worst.values()) <= 1.0, worst


@pytest.mark.parametrize("name", ["rwkv6", "rwkv7", "gated_delta_rule"])
def test_states_are_recomputed_between_checkpoints(name: str, machine: Machine) -> None:
    assert triton_recurrent.EVERY == 32
    worst = shares("linverify.impls.triton_recurrent", machine, case(name, T=35, H=1))
    assert max(worst.values()) <= 1.0, worst


@pytest.mark.parametrize("name", triton_chunkwise.OPERATORS)
def test_chunks_agree_with_the_reference(name: str, machine: Machine) -> None:
    from linverify.impls import _triton_chunks  # imports Triton, which need not be there

    assert (_triton_chunks.CHUNK, _triton_chunks.SUB_CHUNK) == (64, 16)
    cases = [
        change
        for dtype in dtypes(machine.device)
        for change in (
            case(name, T=83, H=1, K=20, V=35, dtype=dtype, gate="reset"),
            case(name, T=40, lengths=(21, 0, 1, 18), dtype=dtype, scale="other", gate="strong"),
            case(name, B=2, T=17, regime="outlier", dtype=dtype, state="large"),
            case(name, B=2, T=1, dtype=dtype),
        )
    ]
    worst = shares("linverify.impls.triton_chunkwise", machine, *cases)
    assert max(worst.values()) <= 1.0, worst


@pytest.mark.parametrize("name", ["simple_gla", "gla"])
def test_heads_wider_than_a_block(name: str, machine: Machine) -> None:
    worst = shares("linverify.impls.triton_chunkwise", machine, case(name, T=5, H=1, K=70, V=130))
    assert max(worst.values()) <= 1.0, worst


@pytest.mark.parametrize("name", ["simple_gla", "gla"])
def test_a_gate_of_minus_infinity_forgets(name: str, machine: Machine) -> None:
    worst = shares("linverify.impls.triton_chunkwise", machine, case(name, T=40, H=1, gate="inf"))
    assert max(worst.values()) <= 1.0, worst


# A helper's line, what it becomes, an operator, and a result that must show it.
FAULTS = [
    ("_triton_decay_states", "exponent, 0.0, propagate_nan=tl.PropagateNan.ALL", "exponent + 1.0, 0.0", "simple_gla", "o"),
    ("_triton_decay_states", "            S *= decay(end)\n", "", "simple_gla", "state"),
    ("_triton_decay_states", "X *= decay(total if BACK else end - total)", "X *= decay(end - total)", "gla", "dinitial_state"),
    ("_triton_decay_states", "(n - 1) * H\n        X", "(BT - 1) * H\n        X", "retention", "state"),
    ("_triton_chunks", "tl.minimum(stop - first, C)", "tl.minimum(stop - start, C)", "linear_attention", "state"),
    ("_triton_decay_scores", "  causal = t[:, None] >= t[None, :]", "  causal = t[:, None] > t[None, :]", "simple_gla", "dq"),
    ("_triton_decay_scores", "G + (sub - 1) * H * K", "G + (sub + 4) * H * K", "gla", "o"),
    ("_triton_decay_scores", "u[:, None] <= b, gates - total", "u[:, None] < b, gates - total", "gla", "dk"),
    ("_triton_decay_scores", "- writes + through[None, :]", "- writes", "gla", "dg"),
    ("_triton_decay_scores", "tl.cumsum(writes, 0) - writes", "tl.cumsum(writes, 0)", "simple_gla", "dg"),
]  # fmt: skip


@pytest.mark.parametrize(("helper", "line", "becomes", "name", "shown"), FAULTS)
def test_a_fault_in_a_chunk_kernel_is_seen(
    helper: str, line: str, becomes: str, name: str, shown: str, tmp_path: Path, interpreter: Machine
) -> None:
    target = planted(tmp_path, "triton_chunkwise", helper, line, becomes)
    cases = [case(name, T=70, H=1), case(name, T=40, lengths=(21, 0, 1, 18))]
    assert shares(target, interpreter, *cases)[shown] > 1.0


@pytest.mark.parametrize(
    ("line", "becomes", "name", "shown"),
    [
        ("(X if UNDECAYED else decayed)", "decayed", "rwkv7", "o"),
        ("(before if UNDECAYED else decayed) * dread", "decayed * dread", "rwkv7", "da"),
        ("dquery += bonus * key * own", "dquery += key * own", "rwkv6", "dq"),
        ("                    dkey += dreader\n", "                    dkey += 0.0\n", "kda", "dk"),
        ("dgate = tl.sum(ddecayed * decayed, 1)", "dgate = tl.sum(ddecayed * before, 1)", "gla", "dg"),
        ("        X = tl.load(checkpoints + ((slot + block)", "        X = tl.load(checkpoints + (slot", "gla", "dq"),
    ],
)
def test_a_fault_in_the_fused_kernel_is_seen(
    line: str, becomes: str, name: str, shown: str, tmp_path: Path, interpreter: Machine
) -> None:
    target = planted(tmp_path, "triton_recurrent", "_triton_recurrent", line, becomes)
    asked = case(name, T=35 if "checkpoints" in line else 6, H=1, gate="mild" if "checkpoints" in line else "strong")
    assert shares(target, interpreter, asked)[shown] > 1.0


def planted(folder: Path, module: str, helper: str, line: str, becomes: str) -> str:
    """Copies of a module and its helpers beside each other, with one line changed."""

    def change(name: str, text: str) -> str:
        assert name != helper or line in text
        return text.replace(line, becomes) if name == helper else text

    return copied(folder, module, change)


def copied(folder: Path, module: str, change: Callable[[str, str], str]) -> str:
    """Copies of a module and its helpers beside each other, each as `change` makes it of its name and text."""
    for name in (module, *(p.stem for p in IMPLS.glob("_triton_*.py"))):
        text = change(name, (IMPLS / f"{name}.py").read_text())
        text = re.sub(r"from linverify\.impls import _triton", "import _triton", text)
        (folder / f"{name}.py").write_text(text.replace("from linverify.impls._triton", "from _triton"))
    return str(folder / f"{module}.py")


ROUNDED = """@triton.jit
def rounded(x):
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit"""


def emulate_bf16(name: str, text: str) -> str:
    """The interpreter cuts numbers to bf16, and multiplies bf16 tiles wrongly: round by hand, and multiply float32."""
    if name not in ("_triton_decay_states", "_triton_decay_scores", "_triton_rows"):
        return text
    text = text.replace("taken = x.to(tl.bfloat16)", "taken = rounded(x)")
    rounding = r"(rounded(\1) if \2 == tl.bfloat16 else \1).to(\2)"
    text = re.sub(r"(\w+|\([^()]*\))\.to\((\w+\.dtype\.element_ty)\)", rounding, text)
    return text.replace("@triton.jit", ROUNDED, 1)


@pytest.mark.parametrize("name", ["simple_gla", "retention", "gla"])
def test_bf16_is_rounded_where_a_kernel_may(name: str, tmp_path: Path, interpreter: Machine) -> None:
    target = copied(tmp_path, "triton_chunkwise", emulate_bf16)
    cases = [case(name, T=20, H=1, K=40, V=130, dtype="bf16", gate="strong", seed=seed) for seed in (1, 2)]
    worst = shares(target, interpreter, *cases)
    assert max(worst.values()) <= 1.0, worst
    assert max(worst.values()) > 0.1, "nothing was rounded"


@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
def test_without_tokens_the_state_is_left_as_it_was(form: str, machine: Machine) -> None:
    op = operator("gla")
    problem = draw.problem(case("gla", T=5, lengths=(5, 0)), op)
    assert problem.initial_state is not None
    none = replace(
        problem,
        tensors={n: x[:, :0] for n, x in problem.tensors.items()},
        lengths=(0, 0),
        cotangents={**problem.cotangents, "o": problem.cotangents["o"][:, :0]},
    )
    (result,) = machine.bound(f"linverify.impls.triton_{form}", op).run(Program((Call(none),)), time_limit=60.0)
    assert result.state is not None
    assert torch.equal(result.state, problem.initial_state)
    assert torch.equal(result.grads["initial_state"], problem.cotangents["state"])


def test_what_is_no_recurrence_is_refused() -> None:
    x = torch.zeros(1, 3, 1, 2)
    with pytest.raises(ValueError, match="with these parameters it is no recurrence"):
        triton_recurrent.linear_attention(x, x, x, causal=False)  # type: ignore[attr-defined]


def test_the_registry_shows_form_and_backend() -> None:
    found = {(i.operator, i.form) for i in implementations() if i.backend == "triton"}
    assert {(n, "recurrent") for n in RECURRENT} | {(n, "chunkwise") for n in triton_chunkwise.OPERATORS} <= found


@pytest.mark.parametrize("module", ["triton_recurrent", "triton_chunkwise"])
def test_triton_is_imported_when_a_kernel_is_called(module: str) -> None:
    text = (IMPLS / f"{module}.py").read_text()
    assert not re.search(r"^(import|from) (triton|linverify\.impls\._triton)", text, re.MULTILINE)
