"""The screens: what a shared pass says of a result is what a pass of its own says, and a screen stays cheap in calls."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from linverify import analytic_states, draw, registry, screening
from linverify.analytic_states import _BLOCK, accumulated
from linverify.budget import TINY, output_variance
from linverify.case import Case
from linverify.dtype import BF16, FP16, FP32, FP64, Format, format_of
from linverify.judge import Judge
from linverify.score import Answer
from linverify.screening import Given, beside, faced, together

SHAPES = {"o": (4, 40, 24), "state": (4, 24, 24), "dg": (4, 40, 1), "dA": (1, 4, 1), "dv": (4, 40, 24)}
DTYPES = {"o": torch.bfloat16, "state": torch.float32, "dg": torch.float32, "dA": torch.float32, "dv": torch.float16}
BIASES = {"o": 0.0, "state": 1e-4, "dg": 0.0, "dA": 1e-3, "dv": 1e-4}


def results(changed: str = "") -> dict[str, Given]:
    """Results that were rounded and err a little more; one of them has an element that is far off."""
    generator, found = torch.Generator().manual_seed(3), {}
    for name, shape in SHAPES.items():
        ref = torch.randn(shape, generator=generator, dtype=torch.float64)
        value = ref * (1 + 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64))
        if name == changed:
            value[-1, -1, -1] *= 1.5
        found[name] = Given(value.to(DTYPES[name]), ref, format_of(DTYPES[name]))
    return found


def screened(given: dict[str, Given]) -> tuple[dict[str, tuple[float, str]], dict[str, tuple[float, str]], set[int]]:
    """Shares and statistics of the first screen and of the second, and how many results each pass looked at."""
    first = faced(given, 1e-5)
    for n, f in first.items():
        assert f.error.shape == f.ref.shape == f.floor.shape == SHAPES[n]
        assert torch.equal(f.ref, given[n].ref)
        assert torch.equal(f.error, given[n].value.double() - given[n].ref)
    some = {n: f for n, f in first.items() if n != "state"}
    second = beside(some, {n: (2e-3 * given[n].ref).square() for n in some}, BIASES)
    assert all(sigma.shape == SHAPES[n] for n, (_, _, sigma) in second.items())
    passes = {len(f.batch.shapes) for f in first.values()}
    return (
        {n: (f.share, f.statistic) for n, f in first.items()},
        {n: (share, statistic) for n, (share, statistic, _) in second.items()},
        passes,
    )


@pytest.mark.parametrize("changed", SHAPES)
def test_a_shared_pass_says_of_each_result_what_its_own_says(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    given = results(changed)
    monkeypatch.setitem(screening._CALL, "cpu", 10**9)
    *shared, passes = screened(given)
    assert passes == {len(SHAPES)}
    for name in SHAPES:
        monkeypatch.setitem(screening._CALL, "cpu", 0)
        alone = faced({name: given[name]}, 1e-5)[name]
        assert shared[0][name] == (pytest.approx(alone.share, rel=1e-12), alone.statistic)
        if name == "state":
            continue
        variance = {name: (2e-3 * given[name].ref).square()}
        share, statistic, sigma = beside({name: alone}, variance, BIASES)[name]
        assert shared[1][name] == (pytest.approx(share, rel=1e-12), statistic)
        assert torch.equal(sigma, (alone.floor + variance[name]).sqrt())
        assert (share > 10) == (name == changed)  # the fault is seen, and in its own result alone


def test_what_is_no_number_stays_in_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(screening._CALL, "cpu", 10**9)
    given, sound = results(), screened(results())[0]
    given["dg"].value[0, 0, 0] = float("nan")
    assert faced(given, 1e-5)["dg"].share > 1e6
    found = faced(given, 1e-5)
    assert all(found[n].share == pytest.approx(sound[n][0], rel=1e-12) for n in SHAPES if n != "dg")


def test_results_are_filled_up_only_where_that_is_less_work_than_a_call() -> None:
    assert [sorted(g) for g in together(SHAPES, "cuda")] == [sorted(SHAPES)]
    alike = [sorted(g) for g in together(SHAPES, "cpu")]
    assert ["dv", "o"] in [[n for n in g if n in ("o", "dv")] for g in alike]
    # many short sequences have many states: beside long rows they stay alone
    packed = {"o": (4, 8192, 64), "state": (512, 64, 64), "dv": (4, 8192, 64)}
    assert [sorted(g) for g in together(packed, "cuda")] == [["dv", "o"], ["state"]]
    assert together({}, "cpu") == []


@pytest.mark.parametrize("fmt", [BF16, FP16, FP32, FP64], ids=lambda f: f.name)
def test_the_spacing_of_a_format_is_read_off_the_exponent(fmt: Format) -> None:
    exponents = torch.arange(-300, 120, dtype=torch.float64)
    ref = torch.cat([torch.exp2(exponents) * x for x in (1.0, -1.5, 1.999)] + [torch.zeros(1, dtype=torch.float64)])
    u = min(FP32.unit_roundoff, fmt.unit_roundoff)
    each = output_variance(ref.view(-1, 1, 1, 1), fmt, 1e-3)  # results of one element: it is their largest
    for x, found in zip(ref.tolist(), each.flatten().tolist(), strict=True):
        exponent = max(math.frexp(x)[1] if x else fmt.min_exponent, fmt.min_exponent + 1)
        rounding = (4.0 ** (exponent - fmt.precision) / 12 if exponent > -500 else 0.0) + TINY
        assert found == pytest.approx(rounding + (u * u + u**4 + 1e-6) * x * x, rel=1e-12)
    assert float(output_variance(torch.tensor([torch.inf], dtype=torch.float64), fmt)[0]) == torch.inf


def lost(kept: Tensor | None, steps: int) -> float:
    """Relative error that states may have by both ways, in float64: of the loop, and of blocks and blocks of blocks.

    A step of the loop takes an exponential, a product and a sum. A block sums logs, takes the difference of two such sums and
    its exponential, multiplies, and sums as many terms; sums of n terms x are off by at most n sum |x| roundings (Higham,
    Accuracy and Stability of Numerical Algorithms, section 4.2). Blocks between which everything decays hand on no error.
    """
    terms, found = min(_BLOCK, steps + 1), 3.0 * (steps + 1)
    while terms > 1:
        logs = 0.0
        if kept is not None:
            blocks = (
                torch.nn.functional.pad(kept.abs(), (0, 0, 0, -kept.shape[1] % terms)).unflatten(1, (-1, terms)).sum(2)
            )
            logs = float(blocks.amax())
            kept = None if float(blocks[:, :-1].amin() if blocks.shape[1] > 1 else 0.0) > 745 else blocks
        found += terms + 3 + 2 * (terms + 1) * logs
        terms = 0 if terms < _BLOCK or steps < _BLOCK else min(_BLOCK, steps // _BLOCK + 1)
        steps //= _BLOCK
    return found * FP64.unit_roundoff


@pytest.mark.parametrize("way", ["blocks", "loop"])
@pytest.mark.parametrize("back", [False, True], ids=["forwards", "back"])
@pytest.mark.parametrize("steps", [1, 5, 31, 32, 40, 1100])
@pytest.mark.parametrize("gate", ["none", "scalar", "channel", "strong"])
def test_states_are_those_of_the_recurrence(
    monkeypatch: pytest.MonkeyPatch, steps: int, gate: str, back: bool, way: str
) -> None:
    monkeypatch.setattr(analytic_states, "_LOOPING", ("cpu",) if way == "loop" else ())
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    start, added = normal(2, 3, 4), normal(2, steps, 3, 4)
    channels, strength = 1 if gate == "scalar" else 3, 900.0 if gate == "strong" else 0.1
    kept = None if gate == "none" else -strength * normal(2, steps, channels).square()
    x, size = [start], [start.abs()]
    for i in range(steps):
        decay = 1.0 if kept is None else kept[:, i, :, None].exp()
        x.append(decay * x[-1] + added[:, i])
        size.append(decay * size[-1] + added[:, i].abs())
    if back:  # the same from the other end
        found = accumulated(None if kept is None else kept.flip(1), start, added.flip(1), back=True).flip(1)
    else:
        found = accumulated(kept, start, added)
    off = (found - torch.stack(x, 1)).abs()
    assert bool((off <= lost(kept, steps) * torch.stack(size, 1)).all())


class Calls(TorchDispatchMode):
    """Counts operations that do work; views do none."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        named = str(func)
        views = ("aten.view", "aten._unsafe_view", "aten.detach", "aten.alias", "aten._reshape_alias")
        self.count += not (func.is_view or named.startswith(views))
        return func(*args, **(kwargs or {}))


def kernel_like(answer: Answer) -> dict[str, Tensor]:
    given = {**answer.problem.tensors, "initial_state": answer.problem.initial_state}
    value = answer.question.operator.value_name
    like = {n: given[value if n == "o" else n[1:]].dtype for n in answer.reference if n != "state"}
    return {n: (t * 1.002).to(like.get(n, torch.float32)) for n, t in answer.reference.items()}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["gla", "simple_gla", "delta_rule", "gated_delta_rule", "kda", "rwkv7", "mamba2"])
def test_a_screen_makes_at_most_three_times_the_calls_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    """On a GPU short calls set the time; so this is what the screen costs there, as long as no call is a long one.

    Three times is what a screen may cost.
    """
    operator = registry.operator(name)
    gate = "production" if operator.gated else "none"
    case = Case(
        name, 1, 256, 2, 8, 8, dtype=dtype, gate=gate, state="normal", final_state=True, cotangent="both", seed=1
    )
    by, problem = Judge(operator, "cpu"), draw.problem(case, operator)
    monkeypatch.setitem(screening._CALL, "cpu", screening._CALL["cuda"])
    monkeypatch.setattr(analytic_states, "_LOOPING", ())
    with Calls() as reference:
        answer = by.answer(problem)
    values = kernel_like(answer)
    with Calls() as screen:
        by._screened(answer, values, dtype, None)
    assert answer.variances[dtype]
    assert screen.count <= 3 * reference.count
