"""The cheap screens, over all results of a case at once: results are stacked, and one pass serves them all.

On a GPU a screen costs the calls it makes, not what they compute: a result is 10^4 numbers, and a call of an operation takes
as long as work on 10^6 of them. So results of other shapes are filled up with zeros to fit in, where that is less work than
calls of their own; no statistic sees the zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod

import torch
from torch import Tensor

from linverify.analytic_filters import Sums
from linverify.budget import beyond, output_variance
from linverify.dtype import Format
from linverify.rule import GENERIC
from linverify.statistics import FILTERS, ratio, statistics, thresholds

Shape = tuple[int, int, int]

# Elements that a device works on in the time that a call takes.
_CALL = {"cpu": 1 << 12, "cuda": 1 << 20}
# Realisations that show what filters reach, at the least: of two recipes those that did not set the scale (`linverify.rule`).
_DRAWN = 2 * (GENERIC.held + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A result as it is judged: value in its own dtype and reference in float64, [heads, rows, columns] each.

    Attributes:
        fmt: format that the value is rounded to.
    """

    value: Tensor
    ref: Tensor
    fmt: Format


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Results that are looked at together, [samples, heads, rows, columns]; zeros fill up those that are smaller.

    Attributes:
        error, ref, floor: the floor is a variance.
        shapes: of each result.
    """

    error: Tensor
    ref: Tensor
    floor: Tensor
    shapes: tuple[Shape, ...]

    def of(self, rows: Sequence[int]) -> "Batch":
        """These results alone."""
        if list(rows) == list(range(len(self.shapes))):
            return self
        index = torch.tensor(rows, device=self.error.device)
        error, ref, floor = (x[index] for x in (self.error, self.ref, self.floor))
        return Batch(error, ref, floor, tuple(self.shapes[i] for i in rows))


@dataclass(frozen=True, slots=True, eq=False)
class Faced:
    """A result beside its reference, and how it stands if nothing erred but the rounding of the result itself.

    Attributes:
        batch: results that were looked at together.
        row: which of them it is.
        fmt: format that the value is rounded to.
        bias: relative bias that filters forgive.
        share: of its worst statistic, of what chance may reach.
        statistic: which one.
    """

    batch: Batch
    row: int
    fmt: Format
    bias: float
    share: float
    statistic: str

    @property
    def error(self) -> Tensor:
        """[heads, rows, columns]."""
        return _cut(self.batch.error[self.row], self.batch.shapes[self.row])

    @property
    def ref(self) -> Tensor:
        """[heads, rows, columns]."""
        return _cut(self.batch.ref[self.row], self.batch.shapes[self.row])

    @property
    def floor(self) -> Tensor:
        """Variance of the result's own rounding, [heads, rows, columns]."""
        return _cut(self.batch.floor[self.row], self.batch.shapes[self.row])


def faced(given: Mapping[str, Given], bias: float) -> dict[str, Faced]:
    """Take every error, and hold it to the rounding of its result alone; an infinite share is an error that is no number."""
    found: dict[str, Faced] = {}
    device = next((g.ref.device.type for g in given.values()), "cpu")
    for members in together({n: _shape(g.ref) for n, g in given.items()}, device):
        names = sorted(members, key=lambda n: given[n].fmt.name)  # those of one format side by side
        ref = _filled([given[n].ref for n in names])
        error = _filled([given[n].value for n in names]).sub_(ref)
        floors, formats = [], [given[n].fmt for n in names]
        for fmt in dict.fromkeys(formats):
            first, count = formats.index(fmt), formats.count(fmt)
            some = slice(first, first + count)
            right = ref[some]
            error[some].masked_fill_(beyond(right, fmt), 0.0)  # overflow is right there
            floors.append(output_variance(right, fmt, bias))
        floor = torch.cat(floors)
        batch = Batch(error, ref, floor, tuple(_shape(given[n].ref) for n in names))
        every = statistics(error, floor.sqrt(), ref, bias, batch.shapes)
        for i, (n, values) in enumerate(zip(names, every, strict=True)):
            found[n] = Faced(batch, i, given[n].fmt, bias, *ratio(values, thresholds(batch.shapes[i], {})))
    return {n: found[n] for n in given}


def beside(
    some: Mapping[str, Faced],
    variances: Mapping[str, Tensor],
    leans: Mapping[str, float],
    sums: Callable[[str, Tensor], Sums | None] | None = None,
    line: float = 1.0,
) -> dict[str, tuple[float, str, Tensor]]:
    """Hold errors to variances of what is rounded on the way.

    Args:
        some: results.
        variances: of each, [heads, rows, columns].
        leans: relative bias of products that truncate, of each, beside that of its accumulation.
        sums: variances of weighted sums of a result's errors, given the weights [heads, rows, columns], for errors that are not
            independent; asked where nothing but filters is beyond the line.
        line: share of what chance may reach up to which a result is settled.

    Returns:
        share of what chance may reach, statistic and scale of each result.
    """
    found = {}
    for batch in dict.fromkeys(f.batch for f in some.values()):
        names = [n for n, f in some.items() if f.batch is batch]
        these = batch.of([some[n].row for n in names])
        sigma = _filled([variances[n] for n in names], batch.ref.shape[1:]).add_(these.floor).sqrt_()
        biases, taken = [some[n].bias for n in names], [leans[n] for n in names]
        every = statistics(these.error, sigma, these.ref, biases, these.shapes, taken if any(taken) else ())
        for i, (n, values, shape) in enumerate(zip(names, every, these.shapes, strict=True)):
            chance, scale = thresholds(shape, {}), _cut(sigma[i], shape)
            over = [k for k, c in chance.items() if values[k] > line * c]
            if sums is not None and over and set(over) <= set(FILTERS):
                chance = thresholds(shape, _filtered(scale, some[n].ref, partial(sums, n), over))
            found[n] = (*ratio(values, chance), scale)
    return found


def _filtered(
    sigma: Tensor, ref: Tensor, sums: Callable[[Tensor], Sums | None], names: Sequence[str] = FILTERS
) -> dict[str, float]:
    """What these filters of a correct kernel's errors reach where errors of a row or column are not independent.

    A filter's variance is one, of errors that are independent, and what sums of shared errors add over sum ref^2 / sigma^2.
    The largest of n filters is that of n normal numbers of these variances, or of fewer: the k largest alone reach at least the
    k-th times what k normal numbers reach.
    """
    w = ref / sigma
    shared = sums(w / sigma)
    if shared is None:
        return {}
    w2, reached = w.square(), []
    parts: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "head filter": (shared.heads, (1, 2)),
        "row filter": (shared.rows, (2,)),
        "column filter": (shared.columns, (1,)),
    }
    for name in names:
        variance, over = parts[name]
        apart = (variance / w2.sum(over).clamp_(min=1e-300)).add_(1).sqrt_().flatten().sort(descending=True).values
        reached.append((apart * _largest(apart.numel(), apart.device)).amax())
    return dict(zip(names, torch.stack(reached).tolist(), strict=True))


@lru_cache(maxsize=256)
def _largest(count: int, device: torch.device) -> Tensor:
    """Median of the largest of k sets of normal numbers' sizes, each drawn as often as realisations are, for k up to count."""
    sets = torch.arange(1, count + 1, dtype=torch.float64) * _DRAWN
    found: Tensor = 2**0.5 * torch.special.erfinv(0.5 ** (1 / sets))
    return found.to(device)


def together(shapes: Mapping[str, Shape], device: str) -> list[list[str]]:
    """Results that share a pass: of one shape, or where filling them up is less work than a call of an operation.

    Args:
        shapes: [heads, rows, columns] of each.
        device: type of the device that works.
    """
    groups: list[tuple[Shape, list[str]]] = []
    for name, shape in sorted(shapes.items(), key=lambda x: -prod(x[1])):
        for i, (size, names) in enumerate(groups):
            whole = (max(size[0], shape[0]), max(size[1], shape[1]), max(size[2], shape[2]))
            more = prod(whole) * (len(names) + 1) - prod(size) * len(names) - prod(shape)
            if more <= _CALL.get(device, _CALL["cuda"]):
                groups[i] = whole, [*names, name]
                break
        else:
            groups.append((shape, [name]))
    return [names for _, names in groups]


def _shape(x: Tensor) -> Shape:
    heads, rows, columns = x.shape
    return heads, rows, columns


def _cut(x: Tensor, shape: Shape) -> Tensor:
    heads, rows, columns = shape
    return x[:heads, :rows, :columns]


def _filled(parts: Sequence[Tensor], size: Sequence[int] = ()) -> Tensor:
    """Float64 [samples, heads, rows, columns], zeros where a part is smaller than the size, by default that of the largest."""
    shapes = {_shape(p) for p in parts}
    size = tuple(size) or tuple(max(n) for n in zip(*shapes, strict=True))
    if shapes == {size} and len({p.dtype for p in parts}) == 1:
        return torch.stack(list(parts)).to(torch.float64)
    found = parts[0].new_zeros(len(parts), *size, dtype=torch.float64)
    for i, p in enumerate(parts):
        _cut(found[i], _shape(p)).copy_(p)
    return found
