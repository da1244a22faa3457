"""Imagined kernels: realisations in which every result is there, each from another member, for relations between results."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from linverify.dtype import Format, round_to
from linverify.ensemble import Member
from linverify.lazy import Lazy
from linverify.rule import Rule

# [member][sample] -> errors by result.
Realisations = Sequence[Sequence[Mapping[str, Tensor]]]


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


def anonymous(samples: Tensor, rule: Rule) -> Member:
    """A member of a relation: its residuals, in the order train, held, nearest."""
    return Member("", {"": samples[: rule.train]}, {"": samples[rule.train : -1]}, {"": samples[-1:]}, frozenset({""}))
