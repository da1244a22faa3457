"""Statistics of an error measured in units of its scale: maximum, energies of groups, and matched filters.

An error e with scale sigma gives z = e / sigma. Energies find excess in the whole, a head, a token's row, a feature's column
or a 16 x 16 tile; a matched filter sum(z w) / |w| with w = ref / sigma finds an error parallel to the result (a missing factor)
far below each element's noise. The thresholds are the largest values that correct kernels reach by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def _tiles(z2: Tensor) -> Tensor:
    """Mean square of each 16 x 16 tile; a ragged tile counts its own elements, but never fewer than chance needs.

    Over fewer than that a single element would decide: then the sum may reach 6^2, as a group's may.
    """
    rows, columns = z2.shape[-2:]
    pad = (0, -columns % TILE, 0, -rows % TILE)
    n, m = (rows + pad[3]) // TILE, (columns + pad[1]) // TILE

    def sums(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, pad).reshape(*x.shape[:-2], n, TILE, m, TILE).sum((-3, -1))

    return sums(z2) / sums(torch.ones_like(z2[:1, :1])).clamp(min=(6 / CHANCE["tile"]) ** 2)


def statistics(errors: Tensor, sigma: Tensor, ref: Tensor, bias: float) -> list[dict[str, float]]:
    """All statistics of each of several errors of one result.

    Args:
        errors: results minus reference, [samples, heads, rows, columns], float64.
        sigma: scale of the error, [heads, rows, columns], positive.
        ref: reference, the same shape.
        bias: relative bias that the filters forgive.
    """
    z = torch.nan_to_num(errors / sigma, nan=HUGE, posinf=HUGE, neginf=-HUGE).clamp(-HUGE, HUGE)
    z2, w = z * z, ref / sigma
    zw, w2 = z * w, w * w
    found = [
        z.abs().amax((1, 2, 3)),
        z2.mean((1, 2, 3)).sqrt(),
        z2.mean((2, 3)).amax(1).sqrt(),
        z2.mean(3).amax((1, 2)).sqrt(),
        z2.mean(2).amax((1, 2)).sqrt(),
        _tiles(z2).amax((1, 2, 3)).sqrt(),
    ]
    for axes in ((-2, -1), (-1,), (-2,)):
        energy = w2.sum(axes)
        filtered = (zw.sum(axes).abs() - bias * energy).clamp(min=0) / energy.clamp(min=1e-300).sqrt()
        found.append(filtered.flatten(1).amax(1))
    rows = torch.stack(found, 1).tolist()  # one transfer from the device
    return [dict(zip(CHANCE, row, strict=True)) for row in rows]


def implied(null: Mapping[str, float], sigma: Tensor, ref: Tensor) -> dict[str, float]:
    """What a null of small groups says of the groups that hold them.

    Where a normaliser nearly vanishes, errors have the heavy tail of 1 / x: few realisations do not show how far one row may
    tip its whole head. One element as far off as some element of the null was, or one row, is enough to reach these values.
    """
    rows, columns = ref.shape[-2:]
    w2 = (ref / sigma).square()
    largest, row, column = w2.amax((1, 2)), w2.sum(2), w2.sum(1)

    def weight(part: Tensor, whole: Tensor) -> float:
        return float((part / whole.clamp(min=1e-300)).max().sqrt())

    maximum, filtered = null["maximum"], null["row filter"]
    filtered = max(filtered, maximum * weight(w2.amax(2), row))
    return {
        "rms": null["head"] / ref.shape[0] ** 0.5,
        "head": null["row"] / rows**0.5,
        "row": maximum / columns**0.5,
        "column": maximum / rows**0.5,
        "tile": maximum / (6 / CHANCE["tile"]),
        "head filter": max(filtered * weight(row.amax(1), row.sum(1)), maximum * weight(largest, row.sum(1))),
        "row filter": filtered,
        "column filter": maximum * weight(w2.amax(1), column),
    }


def thresholds(shape: tuple[int, int, int], null: Mapping[str, float]) -> dict[str, float]:
    """What each statistic may reach: by chance, or as realisations of correct kernels did."""
    heads, rows, columns = shape
    sizes = {"rms": heads * rows * columns, "head": rows * columns, "row": columns, "column": rows}
    chance = {k: max(c, 6 / sizes[k] ** 0.5) if k in sizes else c for k, c in CHANCE.items()}
    return {k: max(c, null.get(k, 0.0)) for k, c in chance.items()}


def ratio(found: Mapping[str, float], allowed: Mapping[str, float]) -> tuple[float, str]:
    """Largest statistic over its threshold, and which."""
    worst = max(found, key=lambda k: found[k] / allowed[k])
    return found[worst] / allowed[worst], worst
