"""The ladder of oracles: mpmath certifies the stepwise float64 reference, which certifies the chunkwise one.

Every bound is a number of unit roundoffs relative to the largest element of a result. The gradient of a gate is a sum of
products that cancel, so its yardstick is the largest gradient of all. Faults planted in either side of a comparison must show.
"""

import importlib
import itertools

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.dtype import FP32, FP64
from linverify.judge import Judge
from linverify.operator import GATE_KINDS, Operator
from linverify.problem import Problem
from linverify.reference import chunkwise, highprecision, stepwise
from linverify.regime import gate_regimes
from tests.kinds import PLAIN
from tests.slopes import assert_gradients_are_slopes

GATED = [
    (name, gate)
    for name in PLAIN
    for gate in ("none", "mild", "strong", "reset")
    if gate in gate_regimes(registry.operator(name))
]
# Around the reference's chunk of 16; a packed twin of each, with empty sequences first, between and last.
LENGTHS = {1: (0, 1), 2: (1, 0, 1), 15: (0, 7, 8, 0), 16: (16, 0), 17: (1, 0, 16), 33: (5, 0, 17, 11)}
CHUNKWISE = importlib.import_module("linverify.reference.chunkwise")
FORM = importlib.import_module("linverify.impls.torch_chunkwise")


def ask(name: str, T: int, **changes: object) -> tuple[Problem, Operator]:
    """A float64 problem with a state, final state and all gradients, and its operator."""
    operator = registry.operator(name)
    whole = Case(name, 2, T, 2, 5, 7, dtype="fp64", state="normal", final_state=True, cotangent="both", seed=T)
    return draw.problem(whole.with_(**changes), operator), operator


def disagreement(first: dict[str, Tensor], second: dict[str, Tensor], operator: Operator) -> dict[str, float]:
    """Largest difference of each result, in unit roundoffs of the yardstick."""
    assert list(first) == list(second)
    gates = {f"d{i.name}" for i in operator.of_kind(*GATE_KINDS)}
    every = max(float(t.abs().max()) for n, t in second.items() if n[0] == "d" or n == "o")
    found = {}
    for n, t in second.items():
        assert first[n].shape == t.shape
        assert bool(torch.isfinite(t).all()), n
        yardstick = every if n in gates else float(t.abs().max())
        found[n] = float((first[n] - t).abs().max()) / (yardstick or 1.0) / FP64.unit_roundoff
    return found


def bound(p: Problem) -> int:
    """Unit roundoffs that the two float64 oracles may differ by: a small multiple of the longest sum in them."""
    return 8 * (max(t.shape[1] for t in p.tensors.values() if t.dim() > 2) + 5 + 7)


@pytest.mark.parametrize("loop", [True, False], ids=["loop", "blocks"])
@pytest.mark.parametrize(("name", "gate"), GATED)
def test_chunks_agree_with_steps(name: str, gate: str, loop: bool) -> None:
    for (T, lengths), packed in itertools.product(LENGTHS.items(), (False, True)):
        p, operator = ask(
            name,
            T,
            gate=gate,
            B=1 if packed else 2,
            lengths=lengths if packed else (),
            state="normal" if T % 2 or packed else "absent",
            scale="other" if T % 3 else "default",
        )
        found = disagreement(chunkwise(p, operator, loop=loop), stepwise(p, operator), operator)
        assert set(found) == {"o", "state", *(f"d{n}" for n in p.wrt)}
        assert {i.name for i in operator.inputs} <= set(p.wrt)
        assert max(found.values()) < bound(p), (T, packed, found)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("cotangent", ["none", "o", "state"])
@pytest.mark.parametrize("loop", [True, False], ids=["loop", "blocks"])
def test_partial_questions(name: str, cotangent: str, loop: bool) -> None:
    p, operator = ask(name, 19, cotangent=cotangent, state="absent", final_state=cotangent == "state")
    steps = stepwise(p, operator)
    assert ("state" in steps) is (cotangent == "state")
    assert (set(steps) <= {"o", "state"}) is (cotangent == "none")
    assert max(disagreement(chunkwise(p, operator, loop=loop), steps, operator).values()) < bound(p)


@pytest.mark.parametrize("loop", [True, False], ids=["loop", "blocks"])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_chunk_size_of_the_reference_changes_nothing(chunk: int, loop: bool) -> None:
    for name in ("kda", "rwkv6", "rwkv7"):
        p, operator = ask(name, 33, gate="strong")
        found = disagreement(chunkwise(p, operator, chunk=chunk, loop=loop), stepwise(p, operator), operator)
        assert max(found.values()) < bound(p), (name, found)


def small(name: str) -> tuple[Problem, Operator]:
    operator = registry.operator(name)
    gate = "strong" if operator.gated else "none"
    grouped = {"G": 1} if operator.grouped else {}
    return ask(name, 6, B=1, K=3, V=2, gate=gate, lengths=(2, 0, 4), **grouped)


def size(x: np.ndarray) -> mpmath.mpf:
    return max(abs(value) for value in x.flat)


@pytest.mark.parametrize("name", PLAIN)
def test_two_precisions_agree_and_certify_the_steps(name: str) -> None:
    p, operator = small(name)
    fifty, eighty, steps = highprecision(p, operator), highprecision(p, operator, digits=80), stepwise(p, operator)
    assert set(fifty) == set(eighty) == set(steps)
    for n, exact in eighty.items():
        assert size(exact) > 0, n
        assert size(fifty[n] - exact) < mpmath.mpf("1e-40") * size(exact), n
        double = np.vectorize(mpmath.mpf, otypes=[object])(steps[n].numpy())
        assert size(double - exact) < bound(p) * FP64.unit_roundoff * size(exact), n


def test_fifty_digits_are_not_float64() -> None:
    p, operator = small("gated_delta_rule")
    coarse, fine = highprecision(p, operator, digits=16)["o"], highprecision(p, operator)["o"]
    assert size(coarse - fine) > mpmath.mpf("1e-20")


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_are_slopes(name: str) -> None:
    p, operator = small(name)
    assert_gradients_are_slopes(p, operator, low=-8)


# What is done to a mask of the chunkwise reference, and the operators whose results must then change.
FAULTS = {
    "strict made inclusive": ("delta_rule", "gated_delta_rule", "kda", "rwkv6", "rwkv7"),
    "inclusive made strict": (
        "gla",
        "lightning_attention",
        "linear_attention",
        "mamba2",
        "retention",
        "simple_gla",
        "kda",
    ),
}


@pytest.mark.parametrize(("fault", "name"), [(f, n) for f, names in FAULTS.items() for n in names])
def test_a_fault_in_the_reference_shows(fault: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = CHUNKWISE._pairs

    def faulty(x: Tensor, y: Tensor, reader: Tensor | None, writer: Tensor | None, mask: Tensor) -> Tensor:
        own = torch.eye(len(mask), dtype=torch.bool)
        strict = not bool(mask.diagonal().any())
        if fault == "strict made inclusive":
            return pairs(x, y, reader, writer, mask | own if strict else mask)
        return pairs(x, y, reader, writer, mask if strict else mask & ~own)

    monkeypatch.setattr(CHUNKWISE, "_pairs", faulty)
    p, operator = ask(name, 17)
    assert max(disagreement(chunkwise(p, operator), stepwise(p, operator), operator).values()) > 1e10


def test_every_operator_has_a_planted_fault() -> None:
    # what is stated in terms of these shows the same faults
    assert {n for names in FAULTS.values() for n in names} <= set(PLAIN)


def form_shares(name: str) -> tuple[float, float]:
    """Disagreement of the chunkwise form with the reference: in unit roundoffs of float32, and as the judge sees it."""
    p, operator = ask(
        name, 33, dtype="fp32", cotangent="none", gate="mild" if registry.operator(name).gated else "none"
    )
    o, _ = getattr(FORM, name)(**p.tensors, initial_state=p.initial_state, output_final_state=True)
    judge = Judge(operator, "cpu")
    answer = judge.answer(p)
    off = (o.double() - answer.reference["o"]).abs().max() / answer.reference["o"].abs().max()
    return float(off) / FP32.unit_roundoff, judge.score(answer, "o", o, "fp32").share


@pytest.mark.parametrize("name", PLAIN)
def test_a_fault_in_the_working_precision_form_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    off, share = form_shares(name)
    assert off < bound(ask(name, 33)[0])
    assert share < 1
    if registry.operator(name).of_kind("bonus"):  # an exclusive read: its own token comes from the bonus alone
        monkeypatch.setattr(FORM, "own_write", lambda _: 0.0)
    else:
        causal = FORM._causal_exp
        monkeypatch.setattr(FORM, "_causal_exp", lambda exponent, *, own: causal(exponent, own=False))
    off, share = form_shares(name)
    assert off > 1e4
    assert share > 100
