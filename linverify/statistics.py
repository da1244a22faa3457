"""Statistics of an error measured in units of its scale: maximum, energies of groups, and matched filters.

An error e with scale sigma gives z = e / sigma. Energies find excess in the whole, a head, a token's row, a feature's column
or a 16 x 16 tile; a matched filter sum(z w) / |w| with w = ref / sigma finds an error parallel to the result (a missing factor)
far below each element's noise. The thresholds are the largest values that correct kernels reach by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from linverify.dtype import FP32

TILE = 16
HUGE = 1e9

# What chance alone may reach. Energies of groups of m elements may reach 6 / sqrt(m) where that is more.
CHANCE = {
    "maximum": 6.0,
    "rms": 1.15,
    "head": 1.5,
    "row": 3.0,
    "column": 3.0,
    "tile": 2.5,
    "head filter": 6.0,
    "row filter": 6.0,
    "column filter": 6.0,
}
# A filter tells an error that adds to the result from one that takes from it.
FILTERS = ("head filter", "row filter", "column filter")
SIDES = (", gain", ", loss")


@dataclass(frozen=True, slots=True)
class Axes:
    """How a result's axes become (heads, rows, columns).

    Attributes:
        letters: one letter an axis, from B N T H G K V.
    """

    letters: str

    @property
    def _roles(self) -> tuple[list[int], int | None, int | None]:
        found = self.letters
        column = len(found) - 1 if found and found[-1] in "KV" else None
        row = (
            found.index("T")
            if "T" in found
            else next((i for i, a in enumerate(found) if a in "KHG" and i != column), None)
        )
        if "T" not in found and "K" in found[:-1]:
            row = found.index("K")
        rest = [i for i in range(len(found)) if i not in (row, column)]
        return rest, row, column

    def view(self, x: Tensor) -> Tensor:
        """[..., *axes] to [..., heads, rows, columns]; leading axes are kept."""
        rest, row, column = self._roles
        lead = x.dim() - len(self.letters)
        order = [
            *range(lead),
            *(lead + i for i in [*rest, *([] if row is None else [row]), *([] if column is None else [column])]),
        ]
        moved = x.permute(order)
        rows = 1 if row is None else x.shape[lead + row]
        columns = 1 if column is None else x.shape[lead + column]
        heads = 1
        for i in rest:
            heads *= x.shape[lead + i]
        return moved.reshape(*x.shape[:lead], heads, rows, columns)


def axes_of(letters: Sequence[str]) -> Axes:
    """Axes of a result."""
    return Axes("".join(letters))


def coherent(tokens: int) -> float:
    """Relative bias that tensor cores may leave: they truncate partial sums, an error along the result that grows with T."""
    return (4 + tokens / 8) * FP32.unit_roundoff


@lru_cache(maxsize=256)
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a tensor: to copy them to a GPU takes as long as several calls, so it is done once."""
    return torch.tensor(values, device=device, dtype=torch.float64)


@lru_cache(maxsize=256)
def _sizes(shapes: tuple[tuple[int, int], ...], n: int, m: int, device: torch.device) -> Tensor:
    """What the sum over each 16 x 16 tile is divided by, [shapes, n, m]: its elements, but never fewer than chance needs.

    Over fewer than that a single element would decide: then the sum may reach 6^2, as a group's may.
    """
    ends = np.array(shapes, dtype=float)[..., None]
    of_rows, of_columns = (np.clip(ends[:, i] - np.arange(0, k * TILE, TILE), 0, TILE) for i, k in enumerate((n, m)))
    held = np.maximum(of_rows[:, :, None] * of_columns[:, None], (6 / CHANCE["tile"]) ** 2)
    return torch.from_numpy(held).to(device)


def _tiles(z2: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Mean square of each 16 x 16 tile of [samples, heads, rows, columns]; a ragged tile counts its own elements.

    Args:
        z2: squares.
        shapes: rows and columns of each sample, or of all.
    """
    rows, columns = z2.shape[-2:]
    n, m = -(-rows // TILE), -(-columns // TILE)
    ragged = rows % TILE or columns % TILE
    padded = torch.nn.functional.pad(z2, (0, -columns % TILE, 0, -rows % TILE)) if ragged else z2
    sums = padded.reshape(*z2.shape[:-2], n, TILE, m, TILE).sum((-3, -1))
    return sums / _sizes(shapes, n, m, z2.device)[:, None]


def statistics(
    errors: Tensor,
    sigma: Tensor,
    ref: Tensor,
    bias: float | Sequence[float],
    shapes: Sequence[tuple[int, int, int]] = (),
    leans: Sequence[float] = (),
) -> list[dict[str, float]]:
    """All statistics of each of several errors, of one result or each of a result of its own.

    On a GPU a call of an operation costs more than what it does here, so sums are taken of all that is summed at once: of
    z^2, z w and w^2, over rows and over columns, and over heads from those.

    A filter comes three times: its size, and how far it shows an error that adds to the result or takes from it.

    Args:
        errors: results minus reference, [samples, heads, rows, columns], float64.
        sigma: scale of the error, positive: [heads, rows, columns], or one for each sample.
        ref: reference, the same shape as sigma.
        bias: relative bias that the filters forgive, of all or of each.
        shapes: heads, rows and columns of each, where some are smaller and filled up with zeros.
        leans: relative bias beside that which takes from a result and never adds to it, of each.
    """
    z = _scaled(errors, sigma)
    w = (ref / sigma).reshape(-1, *z.shape[1:])
    count, (heads, rows, columns) = z.shape[0], z.shape[1:]
    sides = tuple((r, c) for _, r, c in shapes) or ((rows, columns),)
    parts = z.new_empty(2 * count + w.shape[0], heads, rows, columns)
    z2, zw, w2 = parts.split([count, count, w.shape[0]])
    for part, x, y in ((z2, z, z), (zw, z, w), (w2, w, w)):
        torch.mul(x, y, out=part)
    by_row, by_column = parts.sum(-1), parts.sum(-2)
    sums = torch.cat([by_row.sum(-1, keepdim=True), by_row, by_column], -1)  # of each head, of its rows, of its columns
    energy, filtered, norm = sums.split([count, count, w.shape[0]])
    forgiven = norm * _each(bias, norm)
    size = norm.clamp(min=1e-300).sqrt()
    taken = forgiven + norm * _each(leans, norm) if leans else forgiven
    sided = torch.stack([filtered - forgiven, -(filtered + taken)]).div_(size)  # what adds to it, what takes from it
    largest = torch.cat([energy[None], sided]).amax(2)
    head, row, column = largest.split([1, rows, columns], -1)
    groups = torch.stack([head[..., 0], row.amax(-1), column.amax(-1)], 1)  # [3, groups, samples]
    whole = torch.stack([z2.amax((1, 2, 3)), _tiles(z2, sides).amax((1, 2, 3)), energy[:, :, 0].sum(1)])
    found = torch.cat([whole, groups.flatten(0, 1)]).T.tolist()  # one transfer
    each = shapes or [(heads, rows, columns)] * count
    return [_named(values, shape) for values, shape in zip(found, each, strict=True)]


def farthest(errors: Tensor, sigma: Tensor) -> list[float]:
    """The largest element of each of several errors, in units of its scale: of the statistics, "maximum" alone."""
    found: list[float] = _scaled(errors, sigma).abs_().flatten(1).amax(1).tolist()
    return found


def _scaled(errors: Tensor, sigma: Tensor) -> Tensor:
    return (errors / sigma).clamp_(-HUGE, HUGE).nan_to_num_(nan=HUGE)


def _each(values: float | Sequence[float], norm: Tensor) -> Tensor | float:
    """One number of all results, or one of each."""
    if isinstance(values, (int, float)):
        return values
    return values[0] if len(set(values)) == 1 else _constants(tuple(values), norm.device)[:, None, None]


def _named(values: Sequence[float], sizes: tuple[int, int, int]) -> dict[str, float]:
    """Statistics by name, from sums of squares (the mean of a tile's) and from filters of either sign."""
    heads, rows, columns = sizes
    maximum, tile, total, head, row, column, *filters = values
    energies = {
        "maximum": maximum,
        "rms": total / (heads * rows * columns),
        "head": head / (rows * columns),
        "row": row / columns,
        "column": column / rows,
        "tile": tile,
    }
    found = {k: x**0.5 for k, x in energies.items()}
    for i, name in enumerate(FILTERS):
        gain, loss = max(filters[i], 0.0), max(filters[i + len(FILTERS)], 0.0)
        found |= {name: max(gain, loss), f"{name}, gain": gain, f"{name}, loss": loss}
    return found


def implied(null: Mapping[str, float], sigma: Tensor, ref: Tensor) -> dict[str, float]:
    """What a null of small groups says of the groups that hold them.

    Where a normaliser nearly vanishes, errors have the heavy tail of 1 / x: few realisations do not show how far one row may
    tip its whole head. One element as far off as some element of the null was, or one row, is enough to reach these values.
    """
    heads, rows, columns = ref.shape
    w2 = (ref / sigma).square()
    by_row, by_column = w2.sum(2), w2.sum(1)
    head = by_row.sum(1)
    parts = [w2.amax(2), w2.amax(1), by_row.amax(1), w2.amax((1, 2))]
    wholes = [by_row, by_column, head, head]
    # largest share of a row or column that one element has, of a head that one row or one element has
    shares = torch.stack([(p / w.clamp(min=1e-300)).max() for p, w in zip(parts, wholes, strict=True)])
    of_row, of_column, row_of_head, of_head = shares.sqrt().tolist()
    maximum = null["maximum"]
    found = {
        "rms": null["head"] / heads**0.5,
        "head": null["row"] / rows**0.5,
        "row": maximum / columns**0.5,
        "column": maximum / rows**0.5,
        "tile": maximum / (6 / CHANCE["tile"]),
    }
    for side in ("", *SIDES):
        filtered = max(null["row filter" + side], maximum * of_row)
        found["head filter" + side] = max(filtered * row_of_head, maximum * of_head)
        found["row filter" + side] = filtered
        found["column filter" + side] = maximum * of_column
    return found


def thresholds(shape: tuple[int, int, int], null: Mapping[str, float]) -> dict[str, float]:
    """What each statistic may reach: by chance, or as realisations of correct kernels did."""
    heads, rows, columns = shape
    sizes = {"rms": heads * rows * columns, "head": rows * columns, "row": columns, "column": rows}
    chance = {k: max(c, 6 / sizes[k] ** 0.5) if k in sizes else c for k, c in CHANCE.items()}
    return {k: max(c, null.get(k, 0.0)) for k, c in chance.items()}


def ratio(found: Mapping[str, float], allowed: Mapping[str, float]) -> tuple[float, str]:
    """Largest statistic over its threshold, and which, of those that have one."""
    worst = max(allowed, key=lambda k: found[k] / allowed[k])
    return found[worst] / allowed[worst], worst
