"""The rounding model: exact without rounding, and with rounding as noisy as it says."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.budget import seeds
from linverify.case import Case
from linverify.chunks import effective_chunk
from linverify.dtype import BF16, FORMATS, FP16, FP32, FP64, TF32, Format, parse, round_to, ulp
from linverify.ensemble import Member, realise, run
from linverify.noise import Noise
from linverify.operator import GATE_KINDS, Operator
from linverify.problem import Problem
from linverify.recipe import Recipe, exact, family, precision_class, uniform
from linverify.reference import chunkwise, stepwise
from linverify.reference.question import Question, pose
from linverify.rule import GENERIC
from tests.kinds import PLAIN

CPU = torch.device("cpu")


class Silent(Noise):
    """A noise that rounds nowhere, in float64."""

    def __init__(self, recipe: Recipe, rows: int, copies: int = 1) -> None:
        super().__init__((recipe,), copies, rows, dither=False, generator=None, device=CPU)
        self.carrier = torch.float64


def ask(name: str, T: int, **changes: object) -> tuple[Problem, Operator]:
    operator = registry.operator(name)
    gate = "production" if operator.gated else "none"
    case = Case(
        name, 1, T, 2, 6, 5, dtype="fp64", gate=gate, state="normal", final_state=True, cotangent="both", seed=2
    )
    return draw.problem(case.with_(**changes), operator), operator


def gates_of(operator: Operator) -> tuple[str, ...]:
    return tuple(i.name for i in operator.of_kind(*GATE_KINDS))


def forms(name: str, T: int, recipe: Recipe, **changes: object) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """What the model computes without rounding, in every form of the gate gradient, and the stepwise reference."""
    p, operator = ask(name, T, **changes)
    question = pose(p, operator, CPU)
    found = run(question, Silent(recipe, question.rows.q.shape[0]), 1, gates_of(operator))
    return found, stepwise(p, operator)


def off(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Largest difference in unit roundoffs; gate gradients are sums that cancel, so one yardstick serves all gradients."""
    every = max(float(t.abs().max()) for n, t in reference.items() if n[0] == "d")
    worst = 0.0
    for n, t in found.items():
        yardstick = every if n[0] == "d" else float(reference[n].abs().max())
        worst = max(worst, float((t[0] - reference[n]).abs().max()) / yardstick / FP64.unit_roundoff)
    return worst


@pytest.mark.parametrize("T", [1, 7, 33, 70])
@pytest.mark.parametrize("chunk", [16, 64, 0])
@pytest.mark.parametrize("name", PLAIN)
def test_without_rounding_the_model_is_the_mathematics(name: str, chunk: int, T: int) -> None:
    found, reference = forms(name, T, exact(chunk))
    direct, *summed = found
    assert set(direct) == set(reference)
    gates = {f"d{n}" for n in gates_of(registry.operator(name))}
    assert len(summed) == (2 if gates else 0)
    assert all(set(form) == gates for form in summed)
    assert all(off(form, reference) < 32 * (T + 11) for form in found), [off(form, reference) for form in found]


@pytest.mark.parametrize("name", PLAIN)
def test_chunks_that_begin_elsewhere_are_the_same_mathematics(name: str) -> None:
    for chunk, lead, T in ((16, 8, 37), (64, 32, 70), (16, 8, 5)):
        found, reference = forms(name, T, replace(exact(chunk), lead=lead))
        assert max(off(form, reference) for form in found) < 32 * (T + 11), (chunk, T)


@pytest.mark.parametrize("gate", ["none", "mild", "strong"])
@pytest.mark.parametrize("name", [n for n in PLAIN if registry.operator(n).gated])
def test_gate_gradients_of_all_forms_agree(name: str, gate: str) -> None:
    for chunk in (16, 0):
        found, reference = forms(name, 35, exact(chunk), gate=gate)
        assert len(found) == 3
        assert max(off(form, reference) for form in found) < 32 * 46


@pytest.mark.parametrize("name", PLAIN)
def test_packed_sequences_and_partial_questions(name: str) -> None:
    found, reference = forms(name, 40, exact(16), lengths=(3, 0, 20, 17))
    assert max(off(form, reference) for form in found) < 32 * 51
    for changes in ({"cotangent": "o", "state": "absent", "final_state": False}, {"cotangent": "state"}):
        found, reference = forms(name, 20, exact(64), **changes)
        assert set(found[0]) == set(reference)
        assert max(off(form, reference) for form in found) < 32 * 31
    p, operator = ask(name, 20, cotangent="none")
    question = pose(p, operator, CPU)
    (forward,) = run(question, Silent(exact(16), question.rows.q.shape[0]), 1, gates_of(operator))
    assert set(forward) == {"o", "state"}


@pytest.mark.parametrize("point", ["folded_query", "folded_key"])
def test_a_decayed_operand_is_the_same_mathematics(point: str) -> None:
    folded = replace(exact(64), **{point: FP64})  # type: ignore[arg-type]  # a format, whichever point it is
    for name in ("simple_gla", "gated_delta_rule", "mamba2", "retention"):
        found, reference = forms(name, 70, folded)
        assert max(off(form, reference) for form in found) < 32 * 81


def test_copies_are_alike_without_noise() -> None:
    p, operator = ask("kda", 20)
    question = pose(p, operator, CPU)
    found = run(question, Silent(exact(16), question.rows.q.shape[0], 3), 3, ("g",))
    for form in found:
        for t in form.values():
            assert t.shape[0] == 3
            assert torch.equal(t[0], t[2])


@pytest.mark.parametrize(
    ("length", "chunk"), [(1, 1), (7, 7), (15, 15), (16, 16), (17, 32), (48, 48), (49, 64), (300, 64)]
)
def test_a_short_row_is_one_chunk(length: int, chunk: int) -> None:
    assert effective_chunk(64, length) == chunk


# Rounding


def log_uniform(n: int = 1 << 17) -> Tensor:
    """Numbers between 1/16 and 16 of either sign whose mantissas are log-uniform."""
    generator = torch.Generator().manual_seed(3)
    x = torch.exp2(8 * torch.rand(n, generator=generator, dtype=torch.float64) - 4)
    return x * (2 * torch.randint(0, 2, (n,), generator=generator) - 1)


def relative(fmt: Format, *, dither: bool) -> Tensor:
    """Relative errors of rounding in this format, in units of its roundoff."""
    x = log_uniform()
    noise = Noise(
        (uniform("one", 16, fmt),), 1, len(x), dither=dither, generator=torch.Generator().manual_seed(4), device=CPU
    )
    y = noise.round(x[:, None], "scores")[:, 0]
    return (y - x) / x / fmt.unit_roundoff


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("fmt", [BF16, FP16, FP32], ids=lambda f: f.name)
def test_rounding_leaves_the_stated_error(fmt: Format, dither: bool) -> None:
    e = relative(fmt, dither=dither)
    assert float(e.square().mean().sqrt()) == pytest.approx(0.4247, rel=0.01)
    assert abs(float(e.mean())) < 0.01
    assert float(e.abs().max()) <= 1 + fmt.unit_roundoff


@pytest.mark.parametrize("dither", [False, True])
def test_truncation_leaves_a_bias(dither: bool) -> None:
    e = relative(TF32, dither=dither)
    assert float(e.max()) <= FP32.unit_roundoff / TF32.unit_roundoff
    # the mean of a truncated log-uniform mantissa is -(1/2) (1 - 1/2) / ln 2 = -0.3607 units; dither has -0.7355 / 2
    assert float(e.mean()) == pytest.approx(-0.7355 / 2 if dither else -0.3607, rel=0.01)
    assert float(e.square().mean().sqrt()) == pytest.approx(0.4247, rel=0.02)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_round_to_keeps_what_is_representable(fmt: Format) -> None:
    x = log_uniform(4096)
    once = round_to(x, fmt)
    assert torch.equal(round_to(once, fmt), once)
    assert bool(((once - x).abs() <= ulp(x, fmt) * (1 if fmt.truncates else 0.5)).all())
    assert parse(fmt.name) is fmt


def test_members_of_a_stack_round_each_in_its_own_format() -> None:
    stack = family("bf16")[0]
    x = log_uniform(64)[:, None].repeat(2, 1)
    noise = Noise(stack, 1, 64, dither=False, generator=None, device=CPU)
    y = noise.round(x, "scores")
    assert torch.equal(y[:64], round_to(x[:64], BF16))
    assert torch.equal(y[64:], round_to(x[64:], TF32))
    assert torch.equal(noise.round(x, "sum"), round_to(x, FP32))


def test_accumulation_is_a_random_walk() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(1, 400, 256, generator=generator).double(), torch.randn(1, 256, 40, generator=generator).double()
    noise = Noise((uniform("fp32", 16, FP32),), 1, 1, dither=True, generator=generator, device=CPU)
    e = (noise.product(a, b) - a @ b) / FP32.unit_roundoff
    n, squares, sums = 256, (a * a) @ (b * b), (a @ b).square()
    expected = 0.42 * (n / 2 * squares + n / 3 * sums).sqrt()
    assert float((e / expected).square().mean().sqrt()) == pytest.approx(1.0, rel=0.03)
    quiet = Noise((uniform("fp32", 16, FP32),), 1, 1, dither=False, generator=None, device=CPU)
    assert torch.equal(quiet.product(a, b), a @ b)


# Recipes and realisations


@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("gate", ["", "scalar", "channel"])
def test_families(precision: str, gate: str) -> None:
    stacks = family(precision, gate=gate)
    names = [r.name for stack in stacks for r in stack]
    assert len(set(names)) == len(names)
    for stack in stacks:
        assert len({(r.chunk, r.input) for r in stack}) == 1  # one batch
        assert len({r.folded_query is None for r in stack}) == 1
        assert all(r.format("sum") is FP32 for r in stack)
    longest = {"bf16": {256}, "fp16": {512}}.get(precision, set()) if gate == "scalar" else set()
    assert {r.chunk for stack in stacks for r in stack} == (
        {0, 16, 64, 128} if precision in ("fp32", "fp64") else {16, 64} | longest
    )
    # nothing is solved for in longer chunks
    assert max(stack[0].chunk for stack in family(precision, gate=gate, low_rank=True)) <= 128
    for point, formats in (("folded_query", ("bf16", "fp16")), ("folded_key", ("bf16",))):
        folded = any(getattr(r, point) for stack in stacks for r in stack)
        assert folded is (gate == "scalar" and precision in formats)
    decayed = {r.folded_key for stack in family(precision, gate=gate, low_rank=True) for r in stack} - {None}
    assert decayed == ({"bf16": {BF16}, "fp16": {TF32}}.get(precision, set()) if gate == "scalar" else set())
    # boundaries elsewhere come last: where operands round, and where a chunk's tokens share what is lost
    ieee = precision in ("fp32", "fp64")
    coarse = [32] if (gate, precision) == ("channel", "fp16") else []  # sub-chunks whose products are in fp16
    assert [stack[0].lead for stack in stacks if stack[0].blocks] == ([0, 32] if coarse else [])
    leads = [stack[0].lead for stack in stacks if stack[0].lead]
    assert leads == (([64] if gate else []) if ieee else [8, *coarse])
    assert [s[0].lead for s in family(precision, gate=gate, low_rank=True) if s[0].lead] == (
        [64] if ieee else [8, 32, 16, 48, 8, 24, 40, 56, *coarse]
    )


def test_float32_is_ieee_on_a_cpu_and_truncated_on_a_gpu() -> None:
    assert precision_class("fp32", "cpu", {}) == "fp32"
    assert precision_class("fp32", "cuda:0", {}) == "tf32"
    assert precision_class("fp32", "cuda:0", {"fp32": "ieee"}) == "fp32"
    assert precision_class("bf16", "cuda:0", {"fp32": "ieee"}) == "bf16"


def realised(name: str, precision: str, **changes: object) -> tuple[Question, list[Member]]:
    p, operator = ask(name, 37, **{"dtype": precision, **changes})
    question = pose(p, operator, CPU)
    rows, reference = question.rows, chunkwise(p, operator)
    generator = torch.Generator().manual_seed(seeds()[0])
    stacks = family(precision, gate=rows.gate)
    return question, [m for s in stacks for m in realise(question, s, reference, gates_of(operator), generator)]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", PLAIN)
def test_every_recipe_is_finite_in_ordinary_cases(name: str, precision: str) -> None:
    for gate in ("none", "mild", "strong", "reset") if registry.operator(name).gated else ("none",):
        question, members = realised(name, precision, gate=gate)
        wanted = {"o", "state", *(f"d{n}" for n in question.problem.wrt)}
        names = [m.name for m in members]
        assert len(set(names)) == len(names)
        for m in members:
            assert m.finite == set(m.train), (m.name, gate, set(m.train) - m.finite)
            assert {t.shape[0] for t in m.train.values()} == {GENERIC.train}
            assert {t.shape[0] for t in m.held.values()} == {GENERIC.held}
            assert {t.shape[0] for t in m.nearest.values()} == {1}
        assert all(m.finite == wanted for m in members if "gate gradient" not in m.name)
        assert any("gate gradient" in n for n in names) is bool(gates_of(registry.operator(name)))


def test_realisations_grow_with_the_unit_roundoff_and_differ() -> None:
    sizes = []
    for precision in ("bf16", "fp16", "fp32"):
        # strong gates would be judged by their sums, which a family takes as badly as any kernel may (`running_sum`)
        _, members = realised("gla", precision, dtype="fp64", gate="mild")
        first = members[0].train["o"]
        assert not torch.equal(first[0], first[1])
        sizes.append(float(first.square().mean().sqrt()))
        assert float(members[0].nearest["o"].square().mean().sqrt()) == pytest.approx(sizes[-1], rel=0.6)
    assert all(small < wide / 4 for wide, small in pairwise(sizes))
