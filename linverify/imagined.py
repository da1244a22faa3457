"""Imagined kernels: realisations in which every result is there, each from another member, for relations between results."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from linverify.budget import output_variance, profiled
from linverify.dtype import Format, round_to
from linverify.ensemble import Member
from linverify.lazy import Lazy
from linverify.rule import Rule
from linverify.statistics import Axes

# [member][sample] -> errors by result.
Realisations = Sequence[Sequence[Mapping[str, Tensor]]]
# By how much a relation does not hold, of the results of several problems.
Residual = Callable[[Sequence[Mapping[str, Tensor]]], Tensor]


def completed(
    reference: Mapping[str, Tensor], members: Sequence[Member], formats: Mapping[str, Format], rule: Rule
) -> Realisations:
    """Realisations with every result in them, rounded to the result formats: [member][sample] -> errors by result."""
    out = []
    direct: dict[str, Member] = {}
    for m in members:
        whole_of = direct.setdefault(m.name.split(",")[0], m)
        samples = []
        for part, count in (("train", rule.train), ("held", rule.held), ("nearest", 1)):
            merged: dict[str, Tensor] = {**getattr(whole_of, part), **getattr(m, part)}
            samples += [Lazy(formats, partial(_rounded, reference, formats, merged, j)) for j in range(count)]
        out.append(samples)
    return out


def _rounded(
    reference: Mapping[str, Tensor], formats: Mapping[str, Format], errors: Mapping[str, Tensor], j: int, name: str
) -> Tensor:
    ref = reference[name]
    return round_to(ref + errors[name][j], formats[name]) - ref


def mixed(realisations: Realisations, i: int, j: int, rule: Rule) -> Lazy:
    """Errors of one imagined kernel: each result from another member, and from another of the training samples."""
    names = list(realisations[0][0])

    def make(name: str) -> Tensor:
        k = names.index(name)
        return realisations[(i + k) % len(realisations)][(j + k) % rule.train if j < rule.train else j][name]

    return Lazy(names, make)


def anonymous(number: int, samples: Tensor, rule: Rule) -> Member:
    """A member of a relation: its residuals, in the order train, held, nearest."""
    finite = frozenset({""} if bool(torch.isfinite(samples).all()) else ())
    train, held, nearest = samples[: rule.train], samples[rule.train : -1], samples[-1:]
    return Member(str(number), {"": train}, {"": held}, {"": nearest}, finite)


class Shaken:
    """What output rounding alone leaves of a relation: every element is rounded, and every result leans as a whole.

    Products truncate, forward and backward apart.
    """

    def __init__(
        self,
        references: Sequence[Mapping[str, Tensor]],
        formats: Sequence[Mapping[str, Format]],
        residual: Residual,
        axes: Axes,
        lean: float,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            references: results of each problem.
            formats: that results come in, of each problem.
            residual: the relation.
            axes: of the residual.
            lean: relative bias of a result.
        """
        self._parts = list(zip(references, formats, strict=True))
        self._residual, self._axes, self._lean = residual, axes, lean
        devices = {t.device for r in references for t in r.values()}
        self._generators = {device: torch.Generator(device=device).manual_seed(0) for device in devices}

    def variance(self, draws: int) -> Tensor:
        """Variance of the residual, [heads, rows, columns], from so many draws."""
        drawn = [self._residual([Lazy(f, partial(self._noise, r, f)) for r, f in self._parts]) for _ in range(draws)]
        return profiled(self._axes.view(torch.stack(drawn)))

    def _noise(self, reference: Mapping[str, Tensor], formats: Mapping[str, Format], name: str) -> Tensor:
        ref = reference[name]
        noise = torch.randn(ref.numel() + 1, generator=self._generators[ref.device], device=ref.device).double()
        spread: Tensor = output_variance(ref, formats[name]).sqrt() * noise[1:].reshape(ref.shape)
        return spread + self._lean * noise[0] * ref
