"""Equal gates err alike: a kernel that takes the same exponential at every token is off by its error T times over.

A decay that rounds up at one token rounds up at all of them. The kernels here go token by token in float32, with exponentials
that are right to a unit or two in the last place; what is wrong with others is four times the error that the model has.
"""

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import parse_case
from linverify.dtype import FP32
from linverify.judge import Judge
from linverify.noise import Noise
from linverify.recipe import uniform
from linverify.reference.question import Question
from linverify.score import Answer, Score

U = FP32.unit_roundoff
LOG2E = 1.4426950408889634
HEADS = 4
CONSTANT = ("retention", "simple_gla", "gla")


def asked(name: str, length: int = 300) -> tuple[Judge, Answer]:
    """A judge, and a problem with one gate a head (and channel) for all tokens; those that are inputs round worst."""
    op = registry.operator(name)
    case = f"{name}/B1.T{length}.H{HEADS}.K16.V32/fp32/state=normal/final_state=1/scale=one/seed=3"
    problem = draw.problem(parse_case(case), op)
    if "g" in problem.tensors:
        grid = -torch.linspace(0.01, 0.03, 4001)
        gates = grid[(exponential(grid).double() / grid.double().exp() - 1).abs().argsort(descending=True)]
        g = problem.tensors["g"]
        g[:] = gates[: g[0, 0].numel()].reshape(g.shape[2:])
    judge = Judge(op, "cpu")
    return judge, judge.answer(problem)


def exponential(g: Tensor) -> Tensor:
    """Exp of float32 gates as GPU kernels take it."""
    return torch.exp2(g.float() * LOG2E)


def kernel(question: Question, units: float = 0.0) -> dict[str, Tensor]:
    """O and the final state, token by token in float32; decays are exponentials, or off by so many units of roundoff."""
    rows = question.rows
    assert rows.log_decay is not None
    q, k, v, state = (x.detach().float() for x in (rows.q, rows.k, rows.v, rows.state))
    g = rows.log_decay.detach()
    decay = torch.where(g == 0, 1.0, g.exp() * (1 + units * U)).float() if units else exponential(g)
    read = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, None] * state + k[:, t, :, None] * v[:, t, None]
        read.append((q[:, t, :, None] * state).sum(1))
    o = question.scale * torch.stack(read, 1)
    return {"o": question.folding.untokens(o), "state": question.unstates(state)}


def judged(name: str, units: float) -> dict[str, Score]:
    judge, answer = asked(name)
    return {n: judge.score(answer, n, x, "fp32") for n, x in kernel(answer.recurrence, units).items()}


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw errors of decays anew for every token."""
    monkeypatch.setattr(Noise, "_sign", lambda self, x: self.random(x, normal=True))


@pytest.mark.parametrize("units", [-1.5, 0.0, 1.5])
@pytest.mark.parametrize("name", CONSTANT)
def test_the_exponential_of_a_constant_is_no_fault(name: str, units: float) -> None:
    for n, score in judged(name, units).items():
        assert score.outcome == "pass", (n, score.share, score.statistic)
        assert score.share < 1


@pytest.mark.parametrize("name", CONSTANT)
def test_it_would_be_one_if_every_token_erred_for_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    anew(monkeypatch)
    assert any(score.outcome == "reject" for score in judged(name, 1.5).values())


@pytest.mark.parametrize("units", [-8.0, 8.0])
@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_that_is_wrong_by_four_times_as_much_is_found(name: str, units: float) -> None:
    assert all(score.outcome == "reject" for score in judged(name, units).values())


def returned(name: str, precision: str, units: float) -> Score:
    """What a kernel that goes token by token makes of the state's gradient, where that is all there is: a product of decays."""
    op, dtype = registry.operator(name), "fp32" if precision == "tf32" else precision
    gate = "/gate=mild" if op.gated else ""
    case = parse_case(f"{name}/B2.T70.H2.K64.V32/{dtype}{gate}/state=normal/final_state=1/cotangent=state/seed=4")
    judge = Judge(op, "cpu")
    answer = judge.answer(draw.problem(case, op))
    question = answer.recurrence
    assert question.dstate is not None
    assert question.rows.log_decay is not None
    decay = question.rows.log_decay.detach().exp()
    errors = torch.randn(decay.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    decay = (decay * (1 + units * U * (errors if op.gated else 1.0))).float()
    back = question.dstate.float()
    for t in reversed(range(decay.shape[1])):
        back = decay[:, t, :, None] * back
    return judge.score(answer, "dinitial_state", question.unstates(back), precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
@pytest.mark.parametrize("name", CONSTANT)
def test_a_product_of_decays_is_float32_in_every_class(name: str, precision: str) -> None:
    """Nothing else is rounded on the way; GPU kernels of flash-linear-attention are off by about two units a step."""
    score = returned(name, precision, 2.0)
    assert score.outcome == "pass"
    assert score.share < 0.6
    assert returned(name, precision, 12.0).outcome == "reject"


def noise(samples: int = 4, rows: int = 2) -> Noise:
    generator = torch.Generator().manual_seed(7)
    return Noise(
        (uniform("fp32", 16, FP32),), samples, rows, dither=True, generator=generator, device=torch.device("cpu")
    )


def test_equal_gates_err_alike_in_a_realisation_and_others_not() -> None:
    g = -torch.linspace(0.1, 1.0, 2000, dtype=torch.float64).reshape(1, -1, 1).repeat(8, 2, 1)
    e = (noise().decay(g) - g) / U
    first, second = e[:, :2000, 0], e[:, 2000:, 0]
    assert torch.equal(first, second)
    assert torch.equal(e[::2], e[1::2])  # two rows of one realisation
    signs = first[::2].sign()
    # what is left of it in float64, whose roundoff is U^2 / 32 of a gate of at most 1
    assert float((first.abs() - (4 + (0.58 * g[:, :2000, 0]).square()).sqrt()).abs().max()) < U
    # 2000 signs: five standard deviations of their mean, and of the mean of products of two realisations
    assert float(signs.mean(1).abs().max()) < 5 / 2000**0.5
    assert float((signs @ signs.T / 2000).fill_diagonal_(0).abs().max()) < 5 / 2000**0.5
    assert float((signs[:, 1:] * signs[:, :-1]).mean(1).abs().max()) < 5 / 2000**0.5


def test_without_gates_no_decay_errs() -> None:
    zero = torch.zeros(8, 2000, 1, dtype=torch.float64)
    assert torch.equal(noise().decay(zero), zero)
    assert torch.equal(noise().total(zero[:, None], zero[:, None], 2), zero[:, None, :1])


def test_a_total_is_a_sum_of_its_own() -> None:
    g = -torch.rand(8, 500, 32, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n = noise()
    sums = n.running_sum(g, 2)
    exact, total = g.sum(2, keepdim=True), n.total(g, sums, 2)
    scan, own = sums[:, :, -1:] - exact, total - exact
    # as large as the scan's own error, and apart from it: 8 x 500 totals, of which two rows at a time share signs
    assert float(own.std() / scan.std()) == pytest.approx(1.0, rel=0.1)
    assert abs(float((own * scan).mean() / own.std() / scan.std())) < 5 / 2000**0.5
