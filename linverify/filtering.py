"""How far matched filters may reach where errors of a row or column are not independent, of several results at once.

For `linverify.screening`; what errors share says `linverify.analytic_filters`.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from linverify.analytic_filters import Sums
from linverify.rule import GENERIC
from linverify.statistics import FILTERS

# Realisations that show what filters reach, at the least: of two recipes those that did not set the scale (`linverify.rule`).
_DRAWN = 2 * (GENERIC.held + 1)


def reached(
    sigma: Tensor, ref: Tensor, sums: Mapping[int, Callable[[Tensor], Sums | None]]
) -> dict[int, dict[str, float]]:
    """What the filters of a correct kernel's errors reach, of each result that tells the sums of its errors.

    A filter's variance is one, of errors that are independent, and what sums of shared errors add over sum ref^2 / sigma^2.
    The largest of n filters is that of n normal numbers of these variances, or of fewer: the k largest alone reach at least the
    k-th times what k normal numbers reach.

    Args:
        sigma: scales of the errors, [results, heads, rows, columns], positive.
        ref: references, the same shape; zeros fill up those that are smaller.
        sums: by number of the result, variances of weighted sums of its errors, given the weights, filled up like it;
            None where they are not known.
    """
    w = ref / sigma
    weights = w / sigma
    shared = {i: found for i, of in sums.items() if (found := of(weights[i])) is not None}
    if not shared:
        return {}
    w2 = w.square_()
    by_row = w2.sum(3)
    norm = torch.cat([by_row.sum(2, keepdim=True), by_row, w2.sum(2)], 2)  # of each head, of its rows, of its columns
    rows, columns = ref.shape[2:]
    spread = torch.full_like(norm, -1.0)  # and no variance where there is no row or column
    held = [x for i in shared for x in spread[i].split([1, rows, columns], 1)]
    given = [x for found in shared.values() for x in (found.heads[:, None], found.rows, found.columns)]
    torch._foreach_copy_([x[: y.shape[0], : y.shape[1]] for x, y in zip(held, given, strict=True)], given)
    apart = spread.div_(norm.clamp_(min=1e-300)).add_(1).clamp_(min=0).sqrt_()
    largest = []
    for x in apart.split([1, rows, columns], 2):
        each = x.flatten(1).sort(descending=True).values
        largest.append((each * _largest(each.shape[1], each.device)).amax(1))
    every = torch.stack(largest, 1).tolist()
    return {i: dict(zip(FILTERS, every[i], strict=True)) for i in shared}


def _largest(count: int, device: torch.device) -> Tensor:
    """Median of the largest of k sets of normal numbers' sizes, each drawn as often as realisations are, for k up to count."""
    return _table(1 << (count - 1).bit_length(), device)[:count]


@lru_cache(maxsize=64)
def _table(count: int, device: torch.device) -> Tensor:
    sets = torch.arange(1, count + 1, dtype=torch.float64) * _DRAWN
    found: Tensor = 2**0.5 * torch.special.erfinv(0.5 ** (1 / sets))
    return found.to(device)
