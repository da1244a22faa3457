"""The budget: how large the error of a correct kernel is, element by element, and how its statistics vary by chance.

From the realisations of each recipe: s^2 is the mean square of the training errors, p = rowmean * colmean / mean its rank-1
profile a head; sigma^2 = (M s^2 + 4 p) / (M + 4) + ulp^2 / 12 + (2^-24 ref)^2, the largest over the recipes, plus the coherent
bias of tensor cores. The null of each statistic is its largest value over the realisations that did not set the scale.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from linverify.chunks import effective_chunk
from linverify.dtype import FP32, TF32, Format, round_to
from linverify.ensemble import Member
from linverify.recipe import POINTS, SMALLEST_BLOCK, Recipe
from linverify.rule import GENERIC, Rule
from linverify.statistics import FILTERS, SIDES, Axes, coherent, implied, ratio, statistics, thresholds

SHRINKAGE = 4.0
TINY = 2.0**-252
_EXPONENT = 0x7FF << 52
TENSOR_CORE_CLASSES = ("bf16", "fp16", "tf32")

# The rule for a kernel of which nothing is known.
LINE, NEAR = GENERIC.line, GENERIC.near
# One set of realisations lets pass alone only this far below the line.
MARGIN = 1.3
# Two reject alone only so far beyond it: where a whole row shares one random number, both may have drawn it far too small.
# Of a result of so few elements there are few such numbers, and even four sets are few draws: see `further`.
FAR, SMALL = 10.0, 1 << 12


def output_variance(ref: Tensor, formats: Format | tuple[Format, ...], bias: float = 0.0) -> Tensor:
    """Variance of rounding a result to its format, the arithmetic's own floor, and a bias: ulp^2 / 12 + (u^2 + b^2) ref^2.

    An exact zero has the spacing of the smallest numbers, as whatever is nearly nothing: no format rounds it. What is less than
    u^2 = 2^-48 of the result's largest element counts as nothing: 2^24 such errors together are lost beside that element in
    whatever float32 sum takes it next. Results that fade over hundreds of tokens fall far below that, and a sound form need not
    follow them: a system over all tokens that is solved in float64 leaves 1e-16 of the largest.

    Args:
        ref: reference [.., heads, rows, columns]; the largest element is one of these three axes.
        formats: of the result; or of each sample, [samples, heads, rows, columns].
        bias: relative, of products that truncate.
    """
    smallest, most, lost, spacing, relative = _numbers(ref, formats, bias)
    floor = ref.new_full((), TINY)
    # without its sign and mantissa a float64 is the power of two below it; the spacing is 2^(1 - precision) of that
    power = ref.view(torch.int64).bitwise_and(_EXPONENT).view(torch.float64)
    power.clamp_(min=smallest)
    if ref.numel():
        largest = torch.linalg.vector_norm(ref, torch.inf, tuple(range(max(-3, -ref.dim()), 0)), keepdim=True)
        largest.masked_fill_(largest > most, 0.0)  # what overflows is right whatever it is, and no sum takes it
        floor = torch.addcmul(floor, largest * lost, largest)
    rounding = torch.addcmul(floor, power * spacing, power)
    return rounding.addcmul_(ref * relative, ref)


def beyond(ref: Tensor, formats: Format | tuple[Format, ...]) -> Tensor:
    """Where a result overflows its format: any value is right there, of a kernel and of a realisation."""
    most: float | Tensor = _numbers(ref, formats, 0.0)[1]
    return ref.abs() > most


def _numbers(ref: Tensor, formats: Format | tuple[Format, ...], bias: float) -> tuple[Any, ...]:
    """Of a format, or tensors that go with the samples of a reference: copying them to a GPU once is enough."""
    return _of_one(formats, bias) if isinstance(formats, Format) else _of_each(formats, bias, ref.device)


def _of_one(fmt: Format, bias: float) -> tuple[float, ...]:
    """Smallest normal and largest number, and what squares count: of the largest element, of the spacing, of the result."""
    u = min(FP32.unit_roundoff, fmt.unit_roundoff)
    return 2.0**fmt.min_exponent, fmt.largest, u**4, 4.0 ** (1 - fmt.precision) / 12, u * u + bias * bias


@lru_cache(maxsize=256)
def _of_each(formats: tuple[Format, ...], bias: float, device: torch.device) -> tuple[Tensor, ...]:
    table = torch.tensor([_of_one(f, bias) for f in formats], dtype=torch.float64, device=device)
    return tuple(table.T[..., None, None, None].unbind())


def profiled(train: Tensor) -> Tensor:
    """Mean square of the training errors [..., M, heads, rows, columns], shrunk towards its rank-1 profile."""
    m = train.shape[-4]
    s2 = train.square().mean(-4)
    overall = s2.mean((-2, -1), keepdim=True).clamp(min=1e-290)
    profile = s2.mean(-1, keepdim=True) * s2.mean(-2, keepdim=True) / overall
    return (m * s2 + SHRINKAGE * profile) / (m + SHRINKAGE)


def scale(
    members: Sequence[Member],
    errors: Callable[[Mapping[str, Tensor]], Tensor],
    axes: Axes,
    floor: Tensor,
    right: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale of an error, and the realisations that did not set it.

    Args:
        members: realisations.
        errors: picks (or combines) one error tensor [M, *shape] from a member's named errors.
        axes: of the shape.
        floor: variance that is there whatever the recipe, [heads, rows, columns].
        right: where any value is right, the same shape: there is no error there.

    Returns:
        sigma [heads, rows, columns]; errors of the other realisations [samples, heads, rows, columns]; and by how much every
        realisation differs from the mean of its member, in the size of one's own scatter, the same shape.
    """
    of_each = [torch.cat([errors(m.train), errors(m.held), errors(m.nearest)]) for m in members]
    every, known = axes.view(torch.stack(of_each)), errors(members[0].train).shape[0]
    if right is not None:
        every = every.masked_fill(right, 0.0)
    count, train, others = every.shape[1], every[:, :known], every[:, known:]
    apart = (every - every.mean(1, keepdim=True)) * (count / (count - 1)) ** 0.5
    return (profiled(train).amax(0) + floor).sqrt(), others.flatten(0, 1), apart.flatten(0, 1)


def judged(
    e: Tensor, samples: Tensor, apart: Tensor, sigma: Tensor, ref: Tensor, bias: float
) -> tuple[float, str, float]:
    """Ratio of an error's worst statistic to what it may reach; which one; and what a single element may reach.

    The null of each statistic is its largest value over realisations that did not set the scale, or what the nulls of smaller
    groups imply for it. A filter has one for either sign: products that truncate take from a result, so what they lose is no
    reason to let a gain pass. What has no sign of its own shows in how realisations of one member differ; more than the
    largest of either sign is no null.

    Args:
        e: error, [heads, rows, columns].
        samples: realisations, [samples, heads, rows, columns].
        apart: how realisations differ from their members' means, [samples, heads, rows, columns].
        sigma: scale, the shape of e.
        ref: reference, the shape of e.
        bias: coherent relative bias that filters forgive.
    """
    found, *others = statistics(torch.cat([e[None], samples, apart]), sigma, ref, bias)
    drawn, differing = others[: len(samples)], others[len(samples) :]
    null = {k: max(o[k] for o in drawn) for k in drawn[0]}
    for name in FILTERS:
        unsigned = min(null[name], max(o[name] for o in differing))
        null |= {name + side: max(null[name + side], unsigned) for side in SIDES}
    beside = implied(null, sigma, ref)
    chance = thresholds((e.shape[0], e.shape[1], e.shape[2]), {})
    allowed = {k: max(x, beside.get(k, 0.0), chance[k.partition(",")[0]]) for k, x in null.items() if k not in FILTERS}
    worst, which = ratio(found, allowed)
    return worst, which.partition(",")[0], allowed["maximum"]


def measured(
    e: Tensor, r: Tensor, members: Sequence[Member], result: str, axes: Axes, floor: Tensor, fmt: Format, bias: float
) -> tuple[float, str, Tensor, float]:
    """Hold one result to realisations: ratio to what it may reach, the statistic that says so, sigma, and `judged`'s last.

    Args:
        e: error, [heads, rows, columns].
        r: reference, the same shape.
        members: realisations; at least one of them has this result finite.
        result: its name.
        axes: of it.
        floor: variance that is there whatever the recipe.
        fmt: format in which the target gave it.
        bias: coherent relative bias that filters forgive.
    """
    able, right = [m for m in members if result in m.finite], beyond(r, fmt)
    sigma, samples, apart = scale(able, lambda errors: errors[result], axes, floor, right)
    samples = torch.where(right, 0.0, round_to(r + samples, fmt) - r)
    worst, which, allowed = judged(e, samples, apart, sigma, r, bias)
    return worst, which, sigma, allowed


def coherence(precision: str) -> float:
    """Relative bias that truncated products may leave in a whole result: two operands lose 0.36 * 2^-10 each on average.

    16-bit kernels may contain one such product.
    """
    return {"tf32": 0.72, "bf16": 0.36, "fp16": 0.36}.get(precision, 0.0) * TF32.unit_roundoff


def bias_for(precision: str, tokens: int) -> float:
    """Coherent relative bias of a precision class."""
    return coherent(tokens) if precision in TENSOR_CORE_CLASSES else 0.0


def seeds() -> tuple[int, ...]:
    """Seeds of the realisations, in the order they are drawn: one, its check, and two more to settle a near thing."""
    return (0, 99991, 777, 31337)


def further(result: int, problem: int) -> tuple[int, ...]:
    """More of them, for a result of few elements of a problem whose results have few: a set realises, and keeps, them all."""
    few = result <= SMALL and problem <= 16 * SMALL
    return tuple(1_000_003 * n + 17 for n in range(1, 9)) if few else ()


def settled(ratios: Sequence[float], rule: Rule = GENERIC) -> str:
    """Say whether these ratios (one a seed, so far) decide: "pass", "reject", "marginal", or "more".

    Of sets that cannot be kept together: one far from the line passes alone; two must agree; four decide by their median.
    """
    if len(ratios) == 1:
        return "pass" if ratios[0] <= rule.near / MARGIN else "more"
    if len(ratios) == 2:
        if max(ratios) <= rule.near:
            return "pass"
        return "reject" if min(ratios) > rule.line else "more"
    if len(ratios) < 4:
        return "more"
    middle = float(torch.tensor(sorted(ratios)[1:3]).mean())
    return "reject" if middle > rule.line else "marginal" if middle > rule.near else "pass"


# A reference may be off by this share of the budget's scale before it is no yardstick.
CERTIFICATE = 1e-3
# Relative rounding that a float64 reference may carry from sums of a few thousand terms.
ROUNDED = 2.0**-46
# Draws that estimate how output rounding passes through a relation; few would make a small tensor's scale a matter of luck.
DRAWS = 12


def certify(offset: Tensor, sigma: Tensor, references: Iterable[Tensor] = ()) -> None:
    """Raise ValueError unless a relation holds between the references: otherwise the property is wrong, not the kernel.

    Args:
        offset: by how much it does not hold.
        sigma: the budget's scale.
        references: what enters; the float64 it was computed in holds no relation better than its own rounding.
    """
    if not bool((offset.abs() > CERTIFICATE * sigma.amax()).any()):
        return
    size = max((float(t.abs().nan_to_num().max()) for t in references if t.numel()), default=0.0)
    if bool((offset.abs() > ROUNDED * size).any()):
        raise ValueError(f"the relation does not hold between the references: off by {float(offset.abs().max()):.3g}")


def structure(stack: Sequence[Recipe], longest: int) -> tuple[object, ...]:
    """What tells stacks apart on rows of this length: members that differ in chunk size alone may coincide.

    So may those of one stack that differ in how they merge inverses, where a chunk has one block.
    """
    recipe = stack[0]
    lead = (
        recipe.lead if longest > recipe.chunk - recipe.lead else 0
    )  # no boundary inside: the first chunk holds it all
    chunk = effective_chunk(recipe.chunk, longest + lead, recipe.sub)
    merges = chunk > SMALLEST_BLOCK
    members = (
        (*(m.format(p) for p in POINTS), m.folded_query, m.folded_key, m.blocks, merges and m.merge) for m in stack
    )
    return lead, chunk, *dict.fromkeys(members)
