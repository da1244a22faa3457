"""Gradient bound: no derivative by a score exceeds what the operator's own mechanism bounds it by.

A gradient comes back to the last row alone, so a key's gradient is its score's derivative times a factor that the statement
gives (``linverify.rows``). Queries and keys are positive, so that nothing cancels, and fade until the divisor (or the row,
before a norm) is as small as its eps and smaller: there eps decides, and where a backward pass has lost it nothing else
shows it.
"""

from dataclasses import dataclass

import torch

from linverify.mechanism import Mechanism, by_factor
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._results import solved
from linverify.properties._spaces import CALM, CALM_GATES
from linverify.property import Property, Space, Trial
from linverify.rows import Row, last_row, mechanism_of

# Near where growth ends (not at a clamp's own kink), and well below; and where it never ends.
_OF_CROSSOVER = (2.0, 1 / 64)
_FAINT = 1 / 256
# Roundings of the output's format between a score's derivative and a key's gradient.
_STEPS = 10
# Tokens whose derivative is what is left of larger terms say little.
_CONDITION = 8.0


@dataclass(frozen=True, slots=True)
class _Found:
    """The largest derivative over what is allowed: that ratio, the ratio to the bound itself, and where."""

    share: float
    ratio: float
    where: str


def check(trial: Trial) -> None:
    """Look at full size, where eps takes over, and below; what exceeds the bound is looked for again elsewhere."""
    facts = mechanism_of(trial.operator)
    assert facts is not None
    for level in _levels(facts, trial.case.V):
        first = _largest(trial, facts, level, "first")
        if first.share <= 1.0:
            continue
        second = _largest(trial, facts, level, "second")
        key = trial.operator.of_kind("key")[0].name
        trial.require(
            second.share <= 1.0,
            "wrong_value",
            f"the derivative by a score is {second.ratio:.4g} times its mechanism's own bound {facts.words}, {second.where}",
            f"d{key}",
        )


def _levels(facts: Mechanism, width: int) -> tuple[float | None, ...]:
    """Sizes of the divisor, or of the row before a norm, to look at; None: as drawn."""
    if facts.slope == 0.0:
        return (None,)
    end = facts.crossover(width)
    return (None, *(part * end for part in _OF_CROSSOVER)) if end else (None, _FAINT)


def _largest(trial: Trial, facts: Mechanism, level: float | None, label: str) -> _Found:
    """Ask once and compare every usable derivative by a score with its bound."""
    operator = trial.operator
    key = operator.of_kind("key")[0].name
    problem = _faded(trial, facts, level, label)
    row = last_row(operator, problem.tensors, problem.scale)
    upstream = _upstream(facts, row).to(problem.tensors[operator.value_name].dtype)
    whole = torch.zeros(_shape_of_o(operator, problem), dtype=upstream.dtype)
    step = row.mixed.shape[1] // row.lever.shape[2]  # heads that share a key: one of them gets a gradient
    whole[:, -1, ::step] = upstream[:, ::step]
    _, result = solved(trial, problem.with_(cotangents={"o": whole}, wrt=tuple(problem.tensors)))
    got, lever = result.grads[key].double()[:, row.seen], row.lever
    # two vectors are compared, along the lever: a derivative itself may be beyond every format
    along = (got * lever).sum(-1).abs() / lever.norm(dim=-1)
    bound = row.bounds(upstream.double())[:, ::step].transpose(1, 2) * lever.norm(dim=-1)
    condition = _conditions(facts, row)[:, ::step].transpose(1, 2)
    rounding = trial.unit_roundoff * _STEPS + (trial.case.K + trial.case.T) * min(trial.unit_roundoff, 2.0**-24)
    fmt = torch.finfo(result.grads[key].dtype)
    usable = (condition <= _CONDITION) & (bound >= fmt.tiny) & (bound <= fmt.max / 2)
    ratio = torch.where(usable, along / bound, torch.zeros_like(bound))
    ratio = torch.where(usable & ~along.isfinite(), torch.inf, ratio)
    relative, lost = (x[:, ::step].transpose(1, 2) for x in (row.condition, row.lost))
    # a derivative is a query's feature, a key's slope, and a distance over a divisor, which rounds as its terms do
    share = ratio / (1 + rounding * condition * relative + 2.0**-24 * lost * (1 + condition))
    if not share.numel():
        return _Found(0.0, 0.0, "")
    b, t, h = (int(i) for i in torch.unravel_index(share.argmax(), share.shape))
    at = f"b={b}, t={int(row.seen[t])}, h={h * step}"
    size = (
        f"|m| = {float(row.length[b, h * step]):.3g}"
        if facts.norm != "none"
        else f"Z = {float(row.total[b, h * step]):.3g}"
    )
    return _Found(float(share[b, t, h]), float(ratio[b, t, h]), f"at {at}, {size}")


def _faded(trial: Trial, facts: Mechanism, level: float | None, label: str) -> Problem:
    """The case's problem with positive queries and keys, faded together until the divisor is as small as the level."""
    operator, problem = trial.operator, trial.problem
    generator = trial.generator(f"gradient bound {label}")
    names = [operator.of_kind(kind)[0].name for kind in ("query", "key")]
    drawn = {}
    for name in names:
        x = torch.randn(problem.tensors[name].shape, generator=generator, dtype=torch.float64)
        drawn[name] = x.abs() + 0.25
    for i in operator.inputs:
        if i.kind == "parameter" and {"B", "T"} <= set(i.axes):  # gates before their map: exponents round by their size
            drawn[i.name] = torch.zeros_like(problem.tensors[i.name])
    kept = {n: x.to(problem.tensors[n].dtype) for n, x in drawn.items()}
    problem = problem.with_(tensors={**problem.tensors, **kept}, initial_state=None, final_state=False)
    if level is None:
        return problem
    row = last_row(operator, problem.tensors, problem.scale)
    size = row.length if facts.norm != "none" else row.total.abs()
    factor = (level / size).clamp(max=1.0).sqrt()  # [B, H]: half of it for the query, half for the keys
    shrink = facts.shrink or by_factor
    for name in names:
        heads = drawn[name].shape[2]
        part = factor[:, :: factor.shape[1] // heads, None][:, None].expand_as(drawn[name])
        problem = problem.with_tensors(**{name: shrink(drawn[name], part).to(problem.tensors[name].dtype)})
    return problem


def _upstream(facts: Mechanism, row: Row) -> torch.Tensor:
    """Gradients [B, H, V] towards the token that stands out most, and across the row where a norm follows."""
    sizes = row.distances.norm(dim=-1) / (row.values.norm(dim=-1) + row.length[..., None])
    best = sizes.argmax(-1)[..., None, None].expand(-1, -1, 1, row.values.shape[-1])
    found = row.distances.gather(2, best)[:, :, 0]
    if facts.norm != "none":
        along = torch.nn.functional.normalize(row.mixed, dim=-1)
        found = found - (found * along).sum(-1, keepdim=True) * along
    return torch.nn.functional.normalize(found, dim=-1)


def _conditions(facts: Mechanism, row: Row) -> torch.Tensor:
    """By how much a derivative's terms are larger than it: [B, H, N]."""
    terms = (row.weights.abs()[..., None] * row.values.abs()).sum(-2).norm(dim=-1)[..., None]
    distance = row.distances.norm(dim=-1).clamp(min=2.0**-1000)
    found: torch.Tensor = (row.values.norm(dim=-1) + terms) / distance
    if facts.norm != "none":
        found = found + terms / row.length[..., None].clamp(min=2.0**-1000)
    return found


def _shape_of_o(operator: Operator, problem: Problem) -> tuple[int, ...]:
    sizes = operator.all_sizes(operator.sizes_of({n: t.shape for n, t in problem.tensors.items()}))
    return tuple(sizes[a] for a in operator.o_axes)


PROPERTY = Property(
    name="gradient_bound",
    law="No derivative by a score exceeds the bound that follows from the operator's divisor or norm, however small it is.",
    check=check,
    applies=lambda operator: operator.mechanism is not None,
    needs=frozenset({"gradients"}),
    space=Space(min_T=2, max_T=16, cotangents=("o",), regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="A backward pass that divides by the sum alone, without the eps of the forward pass, is right for every ordinary "
    "input and multiplies gradients without end for a query that fades.",
    against="a divisor that the backward pass forgets to bound",
)
