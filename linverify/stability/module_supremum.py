"""D2 of a module, the supremum: the largest derivative of a weight by a score, by search, against its mechanism's bound.

A module's scores are known where its forward pass goes through a method ``mix(scores, values)`` of its own, or through a
softmax over scores [.., T, T]. Then a row's scores are what is searched over, of the signs that the module itself makes, down
to where a divisor vanishes. The bound is that of the operator that the part with the method names, as after ``--op``
(``operator = "softmax_attention"``); where it names none, growth of the derivative tells what bounds it. A softmax needs no
naming.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linverify import registry
from linverify.dtype import FP32, FP64
from linverify.errors import UsageError
from linverify.implementation import declared
from linverify.mechanism import BOUNDED, BY_EPS, UNBOUNDED, Mechanism
from linverify.options import operator_option
from linverify.parameters import with_parameters
from linverify.rows import mechanism_of, row_of
from linverify.stability.growth_exponent import NEAR, Law, law
from linverify.stability.probe import STEPS
from linverify.stability.records import Curve, Finding, unchecked
from linverify.stability.weights import METHOD, SOFTMAX, Mix, mixes, rows, softmaxes

RESTARTS, GENERATIONS, TOKENS = 64, 60, 4
_SUCCESS = 1.5
_FAILURE = _SUCCESS**-0.25
_SMALLEST, _LARGEST = 2.0**-8, 8.0
# Powers of two that scores fade by: as far below an eps as it takes to see growth end, or so far where none is known.
_BELOW, _FARTHEST, _CANCELLING = 10, 60, 20
_ORDER: dict[str, int] = {BOUNDED: 0, BY_EPS: 1, UNBOUNDED: 2}
_UNKNOWN = (
    "its scores cannot be told from outside: let its forward pass go through a method mix(scores, values), or diagnose "
)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What turns scores into weights in a module.

    Attributes:
        mix: maps scores [B, H, T, T] and values [B, H, T, V] to [B, H, T, V].
        heads: H.
        signed: whether the module itself makes scores of both signs.
        facts: the mechanism that bounds it; None where none is named.
        source: METHOD or SOFTMAX.
        device: where the module's parameters are.
    """

    mix: Mix
    heads: int
    signed: bool
    facts: Mechanism | None
    source: str
    device: torch.device

    def weights(self, scores: Tensor) -> Tensor:
        """Weights [B, H, N] of the last token, from scores [B, H, N] of its row; the rows before it are the same."""
        each = scores[:, :, None].expand(-1, -1, scores.shape[-1] - 1, -1).detach()
        return rows(self.mix, torch.cat([each, scores[:, :, None]], 2).to(self.device))[:, :, -1].cpu()


@dataclass(frozen=True, slots=True)
class Best:
    """The largest derivative, the largest ratio to the bound, that over what rounding may make of it, and where."""

    entry: float
    ratio: float
    share: float
    shown_by: str


def supremum(block: nn.Module, x: Tensor) -> Finding:
    """Search every part that mixes by scores; the worst one is told.

    Raises:
        ValueError: ``mix`` does not take and return its shapes, or ``operator`` names none with rows of weights.
    """
    found = [_searched(part) for part in parts(block, x)]
    if not found:
        return unchecked("D2", "supremum", "fp64", _UNKNOWN + _instead(block))
    return max(found, key=lambda f: (not f.holds, _ORDER[f.verdict], f.number))


def parts(block: nn.Module, x: Tensor) -> list[Part]:
    """The parts of a block that turn scores into weights, each once."""
    made = {id(part): (part, mix, scores) for part, mix, scores in mixes(block, x)}
    if made:
        return [
            Part(
                mix,
                scores.shape[1],
                bool((scores < 0).logical_and(scores.isfinite()).any()),
                _facts(part),
                METHOD,
                x.device,
            )
            for part, mix, scores in made.values()
        ]
    if not softmaxes(block, x):
        return []
    facts = mechanism_of(registry.operator("softmax_attention"))
    return [Part(lambda scores, values: scores.softmax(-1) @ values, 1, True, facts, SOFTMAX, x.device)]


def _instead(block: nn.Module) -> str:
    """What can be diagnosed in a module's place: the kernels that its parts call, where they are marked as such."""
    values = [value for part in block.modules() for value in vars(part).values() if callable(value)]
    names = dict.fromkeys(claim.operator for value in values for claim in declared(value))
    return "what it calls: " + ", ".join(f"linverify stability {n}" for n in names) if names else "its kernel with --op"


def _facts(part: nn.Module) -> Mechanism | None:
    """The mechanism of the operator that a part names."""
    named = getattr(part, "operator", None)
    if not isinstance(named, str):
        return None
    try:
        name, parameters = operator_option(named)
        facts = mechanism_of(with_parameters(registry.operator(name or ""), parameters))
    except UsageError as error:
        raise ValueError(f"operator = {named!r} of the part with mix: {error}") from None
    if facts is None:
        raise ValueError(f"operator = {named!r} of the part with mix: it has no rows of weights by scores")
    return facts


def _searched(part: Part) -> Finding:
    found = _search(part, 0)
    through = f"through {part.source}"
    if part.facts is None:
        return _by_growth(part, found, through)
    confirmed = _search(part, 1) if found.share > 1.0 else None
    holds = confirmed is None or confirmed.share <= 1.0
    cap = "" if math.isinf(part.facts.cap) else f"; its cap is {part.facts.cap:.4g}"
    told = f"largest |dp/ds| {found.entry:.4g} {through}, {found.ratio:.4g} of the bound {part.facts.words}{cap}"
    if confirmed is not None and not holds:
        told = f"|dp/ds| {through} is {found.ratio:.4g} times the bound {part.facts.words}; a second search found "
        told += f"{confirmed.ratio:.4g}"
    figures = {"sup": found.entry, "cap": part.facts.cap, "rho": found.ratio}
    verdict = part.facts.promise if holds else UNBOUNDED
    return Finding("D2", "supremum", "fp64", verdict, holds, found.ratio, 1.0, found.shown_by, told, figures)


def _by_growth(part: Part, found: Best, through: str) -> Finding:
    """No bound is stated: whether the derivative grows as scores fade, and as they cancel."""
    laws: list[Law] = []
    curves = []
    for label, name, x, scores in _paths(part):
        entries = derivatives(part, scores).amax((1, 2, 3)).tolist()
        laws.append(law(x, entries))
        curves.append(Curve(tuple(x), tuple(entries), name, "|dp| / |ds|", mark=laws[-1].crossover, label=label))
    worst = max(laws, key=lambda each: _ORDER[_verdict(each)])
    told = f"largest |dp/ds| {found.entry:.4g} {through}; as scores fade or cancel it goes like Z^{worst.slope:.2f}"
    told += "" if _verdict(worst) == BOUNDED else ", until an eps ends it" if worst.level else ", without end"
    told += "; its part names no operator whose bound it could be held to"
    figures = {"sup": found.entry, "slope": worst.slope}
    return Finding(
        "D2", "supremum", "fp64", _verdict(worst), True, found.entry, None, found.shown_by, told, figures, tuple(curves)
    )


def _verdict(found: Law) -> str:
    return BOUNDED if found.slope > -NEAR else found.verdict


def _paths(part: Part) -> list[tuple[str, str, list[float], Tensor]]:
    """Scores [steps, H, N] that fade to nothing, and, where the module makes both signs, two that cancel; with abscissas."""
    factors = 2.0 ** -torch.arange(_FARTHEST + 1, dtype=torch.float64)
    faint = torch.linspace(0.5, 2.0, TOKENS, dtype=torch.float64).expand(part.heads, TOKENS) * factors[:, None, None]
    found = [("scores that fade", "Z", faint.sum(-1)[:, 0].tolist(), faint)]
    if part.signed:
        apart = factors[1 : _CANCELLING + 1]
        pole = _pole(part)
        found.append(("scores that cancel", "Z less its pole", apart.tolist(), _pair(part, pole + apart)))
    return found


def _pair(part: Part, total: Tensor) -> Tensor:
    """Two scores [steps, H, 2] of about 1 and -1 whose sums are these."""
    return torch.stack([torch.ones_like(total), total - 1], -1)[:, None].expand(-1, part.heads, -1)


@torch.no_grad()
def _pole(part: Part) -> float:
    """The sum of two scores at which their weights change sign, which an eps moves away from 0; 0 where they do not."""
    low, high = torch.tensor([-0.5, 0.5], dtype=torch.float64)

    def sign(total: Tensor) -> Tensor:
        return part.weights(_pair(part, total[None]))[0, 0, 0].sign()

    if sign(low) == sign(high):
        return 0.0
    for _ in range(_CANCELLING * 3):
        middle = (low + high) / 2
        low, high = (middle, high) if sign(middle) == sign(low) else (low, middle)
    return float(high)


def derivatives(part: Part, scores: Tensor) -> Tensor:
    """|dp_j / ds_k| [B, H, N, N] of rows of scores [B, H, N].

    Raises:
        ValueError: weights carry no gradient of their scores.
    """
    leaf = scores.detach().clone().requires_grad_()
    with torch.enable_grad():
        p = part.weights(leaf)
        if not p.requires_grad:
            raise ValueError("mix(scores, values): what it returns carries no gradient of its scores")
        each = [torch.autograd.grad(p[..., j].sum(), leaf, retain_graph=True)[0] for j in range(p.shape[-1])]
    return torch.stack(each, 2).abs()


def _search(part: Part, seed: int) -> Best:
    """Climb from many starts, half of them the derivative, half its ratio to the bound (``supremum.search``, on scores)."""
    generator = torch.Generator().manual_seed(seed)
    facts = part.facts
    signed = part.signed and (facts is None or facts.weight == "exponential" or facts.divisor == "none")
    s = torch.randn(RESTARTS, part.heads, TOKENS, generator=generator, dtype=torch.float64)
    s = s if signed else s.abs() + 0.25
    low = _lowest(facts)
    fade = torch.rand(RESTARTS, generator=generator, dtype=torch.float64) * low
    step = torch.full((RESTARTS,), 0.5, dtype=torch.float64)
    by_ratio = (torch.arange(RESTARTS) % 2 == 1) & (facts is not None)
    best = _heights(part, s, fade)
    height = torch.where(by_ratio, best[2], best[0])
    for _ in range(GENERATIONS):
        noise = torch.randn(s.shape, generator=generator, dtype=torch.float64) * step[:, None, None]
        child = s + noise if signed else s * noise.clamp(-4, 4).exp()
        child = torch.where(child.abs() < _SMALLEST, s, child).clamp(-_LARGEST, _LARGEST)
        shift = torch.randn(RESTARTS, generator=generator, dtype=torch.float64) * step * 8
        faded = (fade + shift).clamp(min=low, max=0.0)
        new = _heights(part, child, faded)
        found = torch.where(by_ratio, new[2], new[0])
        better = found > height
        height = torch.where(better, found, height)
        s, fade = torch.where(better[:, None, None], child, s), torch.where(better, faded, fade)
        best = tuple(torch.where(better, a, b) for a, b in zip(new, best, strict=True))
        step = step * torch.where(better, _SUCCESS, _FAILURE)
    entry, ratio, share, total = best
    far = int((share if bool((share > 1).any()) else entry).argmax())
    shown_by = f"{TOKENS} tokens, Z = {float(total[far]):.3g}, scores faded by 2^{float(fade[far]):.0f}"
    return Best(float(entry.amax()), float(ratio.amax()), float(share.amax()), shown_by)


def _lowest(facts: Mechanism | None) -> float:
    """Down to which power of two scores fade."""
    if facts is None:
        return -float(_FARTHEST)
    if facts.weight == "exponential":
        return 0.0
    end = facts.crossover(TOKENS)
    return -float(_FARTHEST) if end is None else min(0.0, math.log2(end)) - _BELOW


def _heights(part: Part, s: Tensor, fade: Tensor) -> tuple[Tensor, ...]:
    """Of each start: its largest |dp_j / ds_k|, that over the bound, over what rounding may make of it, and Z."""
    faint = s * (2.0**fade)[:, None, None]
    entries = derivatives(part, faint).flatten(2).amax(-1)
    total = faint.sum(-1).amax(-1)
    if part.facts is None:
        return entries.amax(1), torch.zeros_like(total), torch.zeros_like(total), total
    unit = torch.eye(TOKENS, dtype=torch.float64).expand(*s.shape, TOKENS)
    row = row_of(part.facts, faint, unit)
    cap = torch.full_like(entries, part.facts.cap)
    bound = cap if part.facts.weight == "exponential" else row.entry_bound
    ratio = entries / bound
    rounding = (STEPS + TOKENS) * _unit(entries) * row.condition.amax(-1)
    return entries.amax(1), ratio.amax(1), (ratio / (1 + rounding)).amax(1), row.total.amax(1)


def _unit(entries: Tensor) -> float:
    """Unit roundoff of what a part computes with: float32's where its float64 results are float32's numbers."""
    single = bool((entries == entries.float().double()).all()) and entries.unique().numel() > 1
    return (FP32 if single else FP64).unit_roundoff
