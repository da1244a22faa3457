"""D2, the supremum: the largest derivative of a weight by a score that a search finds, against its bound.

64 searches run side by side as rows of one batch, each an evolution strategy of one parent and one child with its own step
size (Rechenberg's one-fifth rule), over queries, keys and a factor by which the queries fade. It asks the kernel itself and
needs no second derivative. Half of the searches climb the derivative, half its ratio to the bound at the same input.

Where the bound is attained a search comes to 1 (0.5 and less would be a weak search); what exceeds it by more than rounding
is confirmed by a second search from other starts before it counts.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.dtype import FORMATS
from linverify.mechanism import UNBOUNDED
from linverify.problem import Fault, Refused
from linverify.stability.inputs import Tensors, faded, ladder, one_hot, telling
from linverify.stability.probe import Probe
from linverify.stability.records import Finding, unchecked

RESTARTS = 64
GENERATIONS = 40
TOKENS = 4
_SUCCESS = 1.5
_FAILURE = _SUCCESS**-0.25
# Queries and keys stay ordinary numbers: fading alone makes them small, and squares of large ones overflow by themselves.
_SMALLEST, _LARGEST = 2.0**-8, 8.0


@dataclass(frozen=True, slots=True)
class Best:
    """What a search found.

    Attributes:
        entry: the largest derivative by a score, with Z and the fading there.
        ratio: the largest ratio to the bound, after what rounding may add to it; with Z and the fading there.
        share: that ratio over what rounding may make of it.
        broken: derivatives that were not finite.
    """

    entry: float
    entry_at: str
    ratio: float
    ratio_at: str
    share: float
    broken: int


def supremum(probe: Probe) -> Finding:
    """Search twice where the first search exceeds the bound."""
    facts = probe.facts
    if facts is None:
        return unchecked("D2", "supremum", probe.dtype, f"{probe.operator.name} has no rows of weights by scores")
    try:
        found = search(probe, "supremum")
        confirmed = search(probe, "supremum again") if found.share > 1.0 else None
    except (Refused, Fault, TypeError) as error:
        return unchecked("D2", "supremum", probe.dtype, str(error))
    holds = confirmed is None or confirmed.share <= 1.0
    verdict = facts.promise if holds else UNBOUNDED
    cap = "" if math.isinf(facts.cap) else f"; its cap is {facts.cap:.4g}"
    sentence = f"largest |dp/ds| {found.entry:.4g}, {found.ratio:.4g} of the bound {facts.words}{cap}"
    if confirmed is not None and not holds:
        sentence = (
            f"|dp/ds| is {found.ratio:.4g} times the bound {facts.words}; a second search found {confirmed.ratio:.4g}"
        )
    return Finding(
        "D2",
        "supremum",
        probe.dtype,
        verdict,
        holds,
        found.ratio,
        1.0,
        found.ratio_at if not holds else found.entry_at,
        sentence,
        {"sup": found.entry, "cap": facts.cap, "rho": found.ratio, "not finite": float(found.broken)},
    )


def search(probe: Probe, label: str) -> Best:
    """Run all searches side by side."""
    facts = probe.facts
    assert facts is not None
    generator = probe.generator(label)
    # signed scores of a divisor cancel, and rounding grows with it: there everything stays positive, and so does what is
    # held to the bound; some of those that climb the derivative alone are free
    ratio_wanted = torch.arange(RESTARTS) % 2 == 1
    free = ~ratio_wanted & (torch.arange(RESTARTS) % 4 == 0) & (facts.weight == "exponential" or not facts.signed)
    base = telling(probe, RESTARTS, TOKENS, label)
    signed = telling(probe, RESTARTS, TOKENS, label, positive=False)
    base |= {n: torch.where(free[:, None, None, None], signed[n], base[n]) for n in (probe.query, probe.key)}
    low = float(ladder(probe, probe.row(base))[-1].log2()) if facts.slope else 0.0
    fade = torch.rand(RESTARTS, generator=generator, dtype=torch.float64) * low
    step = torch.full((RESTARTS,), 0.5, dtype=torch.float64)
    parent = {probe.query: base[probe.query], probe.key: base[probe.key]}
    entry, ratio, share, totals, broken = _heights(probe, {**base, **parent}, fade)
    height = torch.where(ratio_wanted, share, entry)
    for _ in range(GENERATIONS):
        child = {n: _moved(x, step, generator, free) for n, x in parent.items()}
        shift = torch.randn(RESTARTS, generator=generator, dtype=torch.float64) * step * 8
        faded_child = (fade + shift).clamp(min=low, max=0.0)
        e, r, s, z, bad = _heights(probe, {**base, **child}, faded_child)
        found = torch.where(ratio_wanted, s, e)
        better = found > height
        broken += bad
        height = torch.where(better, found, height)
        pairs = ((e, entry), (r, ratio), (s, share), (z, totals), (faded_child, fade))
        entry, ratio, share, totals, fade = (torch.where(better, new, old) for new, old in pairs)
        parent = {n: torch.where(better[:, None, None, None], child[n], x) for n, x in parent.items()}
        step = step * torch.where(better, _SUCCESS, _FAILURE)
    high, far = int(entry.argmax()), int(share.masked_fill(free, 0.0).argmax())
    return Best(
        float(entry[high]),
        _at(totals[high], fade[high]),
        float(ratio.masked_fill(free, 0.0).amax()),
        _at(totals[far], fade[far]),
        float(share[far]),
        broken,
    )


def _at(total: Tensor, fade: Tensor) -> str:
    return f"{TOKENS} tokens, Z = {float(total):.3g}, query faded by 2^{float(fade):.0f}"


def _moved(x: Tensor, step: Tensor, generator: torch.Generator, free: Tensor) -> Tensor:
    """A child: moved where signs are free, multiplied at random otherwise."""
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64) * step[:, None, None, None]
    moved = torch.where(free[:, None, None, None], x + noise, x * noise.clamp(-4, 4).exp())
    return torch.where(moved.abs() < _SMALLEST, x, moved).clamp(-_LARGEST, _LARGEST)


def _heights(probe: Probe, tensors: Tensors, fade: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Of each search: its largest |dp_j / ds_k|, that over the bound and over what is allowed, and Z; how many were not finite.

    All derivatives of a row take one backward pass: every search is so many batch rows as there are tokens.
    """
    faint = faded(probe, tensors, 2.0**fade)
    batched = {i.name for i in probe.operator.inputs if "B" in i.axes}
    wide = {n: t.repeat_interleave(TOKENS, 0) if n in batched else t for n, t in faint.items()}
    wide[probe.value] = one_hot(RESTARTS * TOKENS, TOKENS, tensors[probe.value].shape[-1])
    upstream = torch.eye(wide[probe.value].shape[-1], dtype=torch.float64)[:TOKENS].repeat(RESTARTS, 1)[:, None]
    row, found, _ = probe.score_gradients(wide, upstream)
    entries = found.abs().amax((1, 2)).reshape(RESTARTS, TOKENS).amax(1)
    bound = row.entry_bound[::TOKENS].amax(1)
    if probe.facts is not None and probe.facts.weight == "exponential":
        bound = torch.full_like(entries, probe.facts.cap)
    bound = (
        bound * row.values.norm(dim=-1).amax((1, 2))[::TOKENS]
    )  # not of unit length where a step size multiplies them
    # where the kernel's format holds the exact derivative, one that is not finite exceeds every bound
    moved = row.lever.abs().amax((1, 2, 3))[::TOKENS]
    fits = (bound * moved < FORMATS[probe.dtype].largest / 2) & (bound < 1 / probe.least)
    finite = entries.isfinite() & bound.isfinite() & (bound > 0)
    nothing, beyond = torch.zeros_like(entries), torch.full_like(entries, math.inf)
    ratio = torch.where(finite, entries / bound, torch.where(fits & ~entries.isfinite(), beyond, nothing))
    entries = torch.where(finite, entries, nothing)
    rounding = (probe.allowance(TOKENS) - 1) * row.condition.amax((1, 2))[::TOKENS]
    return entries, ratio, ratio / (1 + rounding), row.total[::TOKENS].amax(1), int((~finite).sum())
