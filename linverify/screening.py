"""The cheap screens, over all results of a case at once: results are stacked, and one pass serves them all.

On a GPU a screen costs the calls it makes, not what they compute: a result is 10^4 numbers, and a call of an operation takes
as long as work on 10^6 of them. So results of other shapes are filled up with zeros to fit in, where that is less work than
calls of their own; no statistic sees the zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import prod

import torch
from torch import Tensor

from linverify.analytic_filters import Sums
from linverify.budget import beyond, output_variance
from linverify.dtype import FP32, Format
from linverify.filtering import reached
from linverify.statistics import FILTERS, farthest, ratio, statistics, thresholds

Shape = tuple[int, int, int]

# Elements that a device works on in the time that a call takes.
_CALL = {"cpu": 1 << 12, "cuda": 1 << 20}


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A result as it is judged: value in its own dtype and reference in float64, [heads, rows, columns] each.

    Attributes:
        fmt: format that the value is rounded to.
    """

    value: Tensor
    ref: Tensor
    fmt: Format


@dataclass(frozen=True, eq=False)  # without slots: what is formed once is kept in the instance
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

    @cached_property
    def scale(self) -> Tensor:
        """Root of the floor."""
        return self.floor.sqrt()

    def of(self, rows: Sequence[int]) -> "Batch":
        """These results alone."""
        if list(rows) == list(range(len(self.shapes))):
            return self
        index = _index(tuple(rows), self.error.device)
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
        share: of its worst statistic, of what chance may reach; of the maximum, where that is beyond it in a float32 result.
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

    @property
    def scale(self) -> Tensor:
        """Root of the floor."""
        return _cut(self.batch.scale[self.row], self.batch.shapes[self.row])

    @property
    def shape(self) -> Shape:
        """Heads, rows and columns."""
        return self.batch.shapes[self.row]


def faced(given: Mapping[str, Given], bias: float) -> dict[str, Faced]:
    """Take every error, and hold it to the rounding of its result alone; an infinite share is an error that is no number."""
    found: dict[str, Faced] = {}
    device = next((g.ref.device.type for g in given.values()), "cpu")
    for names in together({n: _shape(g.ref) for n, g in given.items()}, device):
        ref = _filled([given[n].ref for n in names])
        error = _filled([given[n].value for n in names]).sub_(ref)
        formats = tuple(given[n].fmt for n in names)
        error.masked_fill_(beyond(ref, formats), 0.0)  # overflow is right there
        floor = output_variance(ref, formats, bias)
        batch = Batch(error, ref, floor, tuple(_shape(given[n].ref) for n in names))
        for i, (n, said) in enumerate(zip(names, _told(batch, formats, bias), strict=True)):
            found[n] = Faced(batch, i, given[n].fmt, bias, *said)
    return {n: found[n] for n in given}


def _told(batch: Batch, formats: Sequence[Format], bias: float) -> list[tuple[float, str]]:
    """Share and statistic of each result of a batch beside the rounding of the result alone.

    A result in float32 owes more to what was rounded before it: most often one element tells that, and no more is asked.
    """
    chances, every = [thresholds(shape, {}) for shape in batch.shapes], list[dict[str, float]]()
    far = farthest(batch.error, batch.scale) if set(formats) == {FP32} and batch.error.numel() else []
    if not far or any(x <= chance["maximum"] for x, chance in zip(far, chances, strict=True)):
        every = statistics(batch.error, batch.scale, batch.ref, bias, batch.shapes)
        far = [values["maximum"] for values in every]
    found = []
    for i, (fmt, x, chance) in enumerate(zip(formats, far, chances, strict=True)):
        beyond_it = fmt is FP32 and x > chance["maximum"]
        found.append((x / chance["maximum"], "maximum") if beyond_it else ratio(every[i], chance))
    return found


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
        chances = [thresholds(shape, {}) for shape in these.shapes]
        over = [
            [k for k, c in chance.items() if values[k] > line * c]
            for values, chance in zip(every, chances, strict=True)
        ]
        filters = {i: names[i] for i, some_over in enumerate(over) if some_over and set(some_over) <= set(FILTERS)}
        if sums is not None and filters:
            of = {i: partial(_sums, sums, n, these.shapes[i]) for i, n in filters.items()}
            for i, reach in reached(sigma, these.ref, of).items():
                chances[i] = thresholds(these.shapes[i], {k: reach[k] for k in over[i]})
        for i, (n, values, shape) in enumerate(zip(names, every, these.shapes, strict=True)):
            found[n] = (*ratio(values, chances[i]), _cut(sigma[i], shape))
    return found


@lru_cache(maxsize=256)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, device=device)


def _sums(sums: Callable[[str, Tensor], Sums | None], name: str, shape: Shape, weights: Tensor) -> Sums | None:
    """Of a result, weights filled up with zeros."""
    return sums(name, _cut(weights, shape))


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
    return x if x.shape == shape else x[:heads, :rows, :columns]


def _filled(parts: Sequence[Tensor], size: Sequence[int] = ()) -> Tensor:
    """Float64 [samples, heads, rows, columns], zeros where a part is smaller than the size, by default that of the largest."""
    shapes = {_shape(p) for p in parts}
    size = tuple(size) or tuple(max(n) for n in zip(*shapes, strict=True))
    if shapes == {size} and len({p.dtype for p in parts}) == 1:
        return torch.stack(list(parts)).to(torch.float64)
    found = parts[0].new_zeros(len(parts), *size, dtype=torch.float64)
    torch._foreach_copy_([_cut(found[i], _shape(p)) for i, p in enumerate(parts)], list(parts))
    return found
