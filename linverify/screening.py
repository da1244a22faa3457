"""The cheap screens, over all results of a case at once: results of one shape are stacked, and one pass serves them all.

On a GPU a screen costs the calls it makes, not what they compute: a result is 10^4 numbers, and a call of an operation takes
as long as work on 10^6 of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.budget import beyond, output_variance
from linverify.dtype import Format
from linverify.statistics import ratio, statistics, thresholds


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
class Faced:
    """A result beside its reference, and how it stands if nothing erred but the rounding of the result itself.

    Attributes:
        error, ref, floor: [heads, rows, columns]; the floor is a variance.
        fmt: format that the value is rounded to.
        bias: relative bias that filters forgive.
        share: of its worst statistic, of what chance may reach.
        statistic: which one.
    """

    error: Tensor
    ref: Tensor
    floor: Tensor
    fmt: Format
    bias: float
    share: float
    statistic: str


def faced(given: Mapping[str, Given], bias: float) -> dict[str, Faced]:
    """Take every error, and hold it to the rounding of its result alone; an infinite share is an error that is no number."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, g in given.items():
        groups.setdefault((g.ref.shape, g.value.dtype, g.fmt), []).append(name)
    found = {}
    for names in groups.values():
        fmt = given[names[0]].fmt
        ref = torch.stack([given[n].ref for n in names])
        error = torch.stack([given[n].value for n in names]).to(ref.dtype) - ref
        error = error.masked_fill_(beyond(ref, fmt), 0.0)  # overflow is right there
        floor = output_variance(ref, fmt, bias)
        for i, (n, values) in enumerate(zip(names, statistics(error, floor.sqrt(), ref, bias), strict=True)):
            share, which = _worst(values, ref[i])
            found[n] = Faced(error[i], ref[i], floor[i], fmt, bias, share, which)
    return {n: found[n] for n in given}


def beside(
    some: Mapping[str, Faced], variances: Mapping[str, Tensor], leans: Mapping[str, float]
) -> dict[str, tuple[float, str, Tensor]]:
    """Hold errors to variances of what is rounded on the way.

    Args:
        some: results.
        variances: of each, [heads, rows, columns].
        leans: relative bias of each, beside that of its accumulation.

    Returns:
        share of what chance may reach, statistic and scale of each result.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, f in some.items():
        groups.setdefault((f.ref.shape, f.bias + leans[name]), []).append(name)
    found = {}
    for (_, bias), names in groups.items():
        assert isinstance(bias, float)
        error, ref, floor = (torch.stack([getattr(some[n], x) for n in names]) for x in ("error", "ref", "floor"))
        sigma = (floor + torch.stack([variances[n] for n in names])).sqrt_()
        for i, (n, values) in enumerate(zip(names, statistics(error, sigma, ref, bias), strict=True)):
            found[n] = (*_worst(values, ref[i]), sigma[i])
    return found


def _worst(values: Mapping[str, float], ref: Tensor) -> tuple[float, str]:
    heads, rows, columns = ref.shape
    return ratio(values, thresholds((heads, rows, columns), {}))
