"""What a property may ask of a target: the space of the property, cut down to what operator, target and machine offer.

Every list runs from the simplest member to the hardest; a member listed twice is drawn twice as often.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from linverify.draw import COTANGENTS, LAYOUTS, OFFSETS, SCALES, WIDENED
from linverify.errors import EmptyCaseSpace
from linverify.operator import Operator
from linverify.profile import BOUNDARIES, INTERPRETED, Profile, Widths
from linverify.property import Space
from linverify.regime import (
    EXACT_GATES,
    EXACT_MAX_T,
    EXACT_MAX_WIDTH,
    INTEGER_REGIMES,
    STATES,
    fits,
    gate_regimes,
    operand_regimes,
)

_INTERPRETED_MAX_T = 40
_INTERPRETED_ROWS = 2
_HEADS, _GROUPED_HEADS = 2, 4  # of a compiled target: the number of heads is often a constant of the kernel
_WIDE = 3.0  # weight of the properties that also see T = 1 and packed sequences on a compiled target
_BOUNDARY_WEIGHT = 3  # how much of a span of sizes its boundaries make up, relative to the rest


@dataclass(frozen=True, slots=True)
class Choices:
    """Lists to draw a case's fields from; none is empty, except that `long_T` may be None."""

    operator: Operator
    dtypes: tuple[str, ...]
    regimes: tuple[str, ...]
    gates: tuple[str, ...]
    layouts: tuple[str, ...]
    states: tuple[str, ...]
    final_state: tuple[bool, ...]
    cotangents: tuple[str, ...]
    packed: tuple[bool, ...]
    scales: tuple[str, ...]
    exact_scales: tuple[str, ...]
    widths: Widths
    exact_widths: Widths
    ordinary_T: tuple[int, int]
    long_T: tuple[int, int] | None
    least_T: int
    rows: int
    min_B: int
    min_H: int
    min_sequences: int
    one_input: bool
    mixtures: tuple[str, ...]
    interpreted: bool
    compiled: bool

    def geometries(self, dtype: str, *, exact: bool) -> tuple[tuple[int, int, int], ...]:
        """(H, K, V) of a compiled target: every one is compiled anew in every dtype, so each dtype gets few of them."""
        widths = self.exact_widths if exact else self.widths
        mine = widths[1:] if dtype == "bf16" and len(widths) > 1 else widths[:1]
        heads = max(self.min_H, _GROUPED_HEADS if self.operator.grouped else _HEADS)
        heads = heads if "H" in self.operator.axes else 1
        return tuple((heads, k, v) for k, v in mine)

    @property
    def exact_states(self) -> tuple[str, ...]:
        """Initial states small enough for exact sums, if there is such a choice."""
        return tuple(s for s in self.states if s != "large") or self.states

    @property
    def exact_cotangents(self) -> tuple[str, ...]:
        """Upstream gradients small enough for exact sums: not a one at every token, if there is a choice."""
        return tuple(c for c in self.cotangents if c != "expanded") or self.cotangents


def choices(
    operator: Operator,
    capabilities: frozenset[str],
    space: Space,
    *,
    profile: Profile,
    device: str,
    dtypes: Sequence[str],
    backend: str,
    weight: float = 1.0,
) -> Choices:
    """Return what can be asked.

    Raises:
        EmptyCaseSpace: some list is empty; the message says what the property asks for and what there is.
    """
    gpu = device.startswith("cuda")
    interpreted = backend == "triton" and not gpu
    compiled = gpu and backend != "torch"
    widths = INTERPRETED if interpreted else profile.compiled_widths if compiled else profile.widths
    regimes = (
        _only("operand regime", operand_regimes(operator, on_request=True), space.regimes)
        if space.regimes
        else operand_regimes(operator)
    )
    cotangents = _cotangents(capabilities, space)
    scales = _scales(capabilities, space)
    ordinary, long = _spans(
        space, profile, gpu=gpu, interpreted=interpreted, exact_only=set(regimes) <= set(INTEGER_REGIMES)
    )
    allowed_dtypes = _only("dtype", tuple(dtypes), space.dtypes)
    allowed_dtypes = tuple(d for d in allowed_dtypes if any(fits(r, d) for r in regimes))
    if not allowed_dtypes:
        raise EmptyCaseSpace(f"none of the regimes {', '.join(regimes)} fits the range of {', '.join(dtypes)}")
    gates = _gates(operator, space, regimes)
    if not set(gates) & set(EXACT_GATES):
        regimes = tuple(r for r in regimes if r not in INTEGER_REGIMES)
        if not regimes:
            raise EmptyCaseSpace(
                f"exact regimes need a gate of {', '.join(EXACT_GATES)}; the property allows {', '.join(gates)}"
            )
    return Choices(
        operator=operator,
        dtypes=allowed_dtypes,
        regimes=regimes,
        gates=gates,
        layouts=_only("layout", LAYOUTS, space.layouts),
        states=_states(capabilities, space),
        final_state=_final_state(capabilities, space),
        cotangents=cotangents,
        packed=(False,) if compiled and space.packed is None and weight < _WIDE else _packed(capabilities, space),
        scales=scales,
        exact_scales=_exact_scales(scales),
        widths=widths,
        exact_widths=_exact_widths(operator, widths, scales),
        ordinary_T=ordinary,
        long_T=long,
        least_T=2 if compiled and weight < _WIDE else 1,
        rows=_INTERPRETED_ROWS if interpreted else profile.rows,
        min_B=space.min_B,
        min_H=space.min_H,
        min_sequences=space.min_sequences,
        one_input=space.one_input,
        mixtures=_mixtures(operator, capabilities) if space.mixed and not compiled else ("usual",),
        interpreted=interpreted,
        compiled=compiled,
    )


def enriched(c: Choices) -> Choices:
    """Return choices whose first members ask for the most.

    Hypothesis always tries the first members first. Few long cases are drawn, so theirs should not be the trivial ones.
    """
    return replace(
        c,
        dtypes=c.dtypes[1:] + c.dtypes[:1],
        gates=tuple(sorted(c.gates, key=lambda g: g == "none")),
        states=tuple(sorted(c.states, key=lambda s: s != "normal")),
        final_state=c.final_state[::-1],
        cotangents=c.cotangents[::-1],
    )


def _only(what: str, offered: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is both offered and asked for, in the order of the offer; all of it where nothing is asked for."""
    found = tuple(o for o in offered if o in asked) if asked else offered
    if not found:
        raise EmptyCaseSpace(
            f"the property asks for a {what} of {', '.join(asked)}; there is {', '.join(offered) or 'none'}"
        )
    return found


def _gates(operator: Operator, space: Space, regimes: Sequence[str]) -> tuple[str, ...]:
    if space.gates:
        return _only("gate regime", gate_regimes(operator, on_request=True), space.gates)
    ordinary = gate_regimes(operator)
    return (*ordinary, "exact") if operator.gated and set(regimes) & set(INTEGER_REGIMES) else ordinary


def _states(capabilities: frozenset[str], space: Space) -> tuple[str, ...]:
    offered = tuple(s.name for s in STATES) if "initial_state" in capabilities else ("absent",)
    found = _only("initial state", offered, space.states)
    return (*found, "normal") if "normal" in found and len(found) > 1 else found


def _final_state(capabilities: frozenset[str], space: Space) -> tuple[bool, ...]:
    if "final_state" not in capabilities:
        if space.final_state:
            raise EmptyCaseSpace("the property asks for the final state, which the target does not return")
        return (False,)
    return (False, True) if space.final_state is None else (space.final_state,)


def _cotangents(capabilities: frozenset[str], space: Space) -> tuple[str, ...]:
    offered: tuple[str, ...] = COTANGENTS if "gradients" in capabilities else ("none",)
    wanted = space.cotangents
    if "final_state" not in capabilities or space.final_state is False:
        offered = tuple(c for c in offered if c not in ("state", "both"))
        # Both means all there is: of a function without a final state that is o.
        wanted = tuple(dict.fromkeys("o" if c == "both" else c for c in wanted))
    return _only("upstream gradient", offered, wanted)


def _mixtures(operator: Operator, capabilities: frozenset[str]) -> tuple[str, ...]:
    """Dtype mixtures, the usual one most often; on a compiled target each would be compiled anew."""
    found = [
        *(["gates"] if any(i.keeps_float32 for i in operator.inputs) else []),
        *(["state"] if "initial_state" in capabilities else []),
        *(["wide"] if operator.of_kind(*WIDENED) else []),
    ]
    return (*["usual"] * (2 * len(found) + 1), *found)


def _packed(capabilities: frozenset[str], space: Space) -> tuple[bool, ...]:
    if "packed" not in capabilities:
        if space.packed:
            raise EmptyCaseSpace("the property asks for packed sequences, which the target does not take")
        return (False,)
    if space.min_B > 1:  # a packed case has one row
        if space.packed:
            raise EmptyCaseSpace(f"packed sequences have B = 1, the property asks for at least {space.min_B}")
        return (False,)
    return (False, False, True) if space.packed is None else (space.packed,)


def _scales(capabilities: frozenset[str], space: Space) -> tuple[str, ...]:
    found = _only("scale", SCALES if "scale" in capabilities else ("default",), space.scales)
    if len(found) > 1:  # what a function's default is, is a law of its own; elsewhere the scale is passed
        found = tuple(s for s in found if s != "default")
    return found


def _exact_scales(scales: tuple[str, ...]) -> tuple[str, ...]:
    return ("one",) if "one" in scales else tuple(s for s in scales if s != "other") or scales


def _exact_widths(operator: Operator, widths: Widths, scales: tuple[str, ...]) -> Widths:
    """Return widths small enough for exact sums; where K**-0.5 is the scale it must be a power of two as well."""
    small = tuple((k, v) for k, v in widths if max(k, v) <= EXACT_MAX_WIDTH)
    if _exact_scales(scales) != ("one",) and (operator.default_scale is None or "sqrt" in scales):
        small = tuple((k, v) for k, v in small if k in (4, 16, 64))
    return small or ((16, 32),)


def _spans(
    space: Space, profile: Profile, *, gpu: bool, interpreted: bool, exact_only: bool
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return the ordinary span of T and the long one, if the property allows it."""
    largest = space.max_T or 2**30
    if exact_only:
        largest = min(largest, EXACT_MAX_T)
    usual = _INTERPRETED_MAX_T if interpreted else profile.gpu_max_T if gpu else profile.max_T
    low = max(1, space.min_T)
    ordinary = (low, max(low, min(largest, usual)))
    long = profile.gpu_long_T if gpu else profile.long_T
    if interpreted or largest < long[0]:
        return ordinary, None
    return ordinary, (max(low, long[0]), max(low, min(largest, long[1])))


def token_choices(span: tuple[int, int], allowed: Choices) -> list[int]:
    """Numbers of tokens from the smallest, those around block sizes repeated so that they make up most draws."""
    low, high = span
    sizes = [t for t in range(low, high + 1) if t >= allowed.least_T] or [high]
    edges = [t for t in BOUNDARIES if low <= t <= high and t >= allowed.least_T]
    repeat = max(1, _BOUNDARY_WEIGHT * len(sizes) // max(1, len(edges)))
    return sorted([*sizes, *edges * min(repeat, 40)])


def row_choices(allowed: Choices, T: int, *, packed: bool, several: bool, narrow: bool) -> list[tuple[int, int]]:
    """(B, H) from the smallest; both above one, and H other than T, most of the time, because coincidences hide bugs."""
    grouped = allowed.operator.grouped
    rows = max(allowed.rows, 4) if grouped else allowed.rows
    rows = min(rows, 2) if narrow and not grouped else rows
    pairs = [(b, h) for b in range(allowed.min_B, rows + 1) for h in range(allowed.min_H, rows + 1) if b * h <= rows]
    pairs = pairs or [(allowed.min_B, allowed.min_H)]
    if "H" not in allowed.operator.axes:
        pairs = [(b, 1) for b, h in pairs if h == 1] or [(allowed.min_B, 1)]
    if packed:
        pairs = [(1, h) for b, h in pairs if b == 1] or [(1, allowed.min_H)]
    pairs = [p for p in pairs if p[1] != T or T == 1] or pairs
    if several:
        pairs = [p for p in pairs if p != (1, 1)] or pairs
    weighted = [p for p in pairs for _ in range(1 + 8 * (p[0] > 1 and p[1] > 1) + 2 * (grouped and p[1] >= 4))]
    return sorted(weighted, key=lambda p: (p[0] * p[1], p))


def group_choices(heads: int) -> list[int]:
    """Numbers of groups, 0 standing for one a head; true groups (neither one for all nor one a head) twice as often."""
    proper = [g for g in range(2, heads) if heads % g == 0]
    return [0, *([1] if heads > 1 else []), *proper, *proper]


def offset_choices(allowed: Choices) -> tuple[str, ...]:
    """Dtypes of the offsets of packed sequences; on a compiled target each would be compiled anew."""
    return OFFSETS[:1] if allowed.compiled else (OFFSETS[0], *OFFSETS)


def length_choices(remaining: int) -> list[int]:
    """Lengths of one packed sequence, one and zero most often."""
    return [1, 1, 0, 0, *(t for t in BOUNDARIES if 1 < t <= remaining)] if remaining else [0]
