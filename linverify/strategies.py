"""Which cases a property draws: strata of Hypothesis strategies, valid by construction and shrinking to the simplest case.

WHY strata. A uniform draw may miss a dtype or never draw a long sequence; one stratum for each dtype and one for long, narrow
cases make both certain.

HOW shrinking stays meaningful. Each choice is an index into a list that runs from the simplest to the hardest member, with the
members worth drawing often repeated; Hypothesis lowers indices, so sizes fall and named regions become ordinary. No filter is
used: what depends on an earlier choice is drawn from a list built for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from hypothesis import strategies as st

from linverify.case import Case
from linverify.choices import (
    Choices,
    choices,
    enriched,
    group_choices,
    length_choices,
    offset_choices,
    row_choices,
    token_choices,
)
from linverify.long_cases import long_strata
from linverify.operator import Operator
from linverify.profile import Profile
from linverify.property import Space
from linverify.regime import EXACT_GATES, EXACT_MAX_T, INTEGER_REGIMES, fits
from linverify.share import as_claimed

_Item = TypeVar("_Item")
_COUNTS = (1, 2, 2, 3, 3, 4, 5)  # packed sequences
_SEEDS = st.integers(0, 9999)


@dataclass(frozen=True, slots=True)
class Stratum:
    """Cases that are drawn together.

    Attributes:
        label: dtype, "forward" or "long".
        strategy: draws them.
        cases: how many to draw.
    """

    label: str
    strategy: st.SearchStrategy[Case]
    cases: int


def strata(
    operator: Operator,
    capabilities: frozenset[str],
    space: Space,
    *,
    profile: Profile,
    device: str,
    dtypes: Sequence[str],
    claims: Mapping[str, str],
    backend: str = "",
    weight: float = 1.0,
) -> tuple[Stratum, ...]:
    """Return the strata from which a property draws its cases.

    Args:
        operator: what the target claims to compute.
        capabilities: what the target offers: scale, initial_state, final_state, packed, gradients, groups.
        space: which cases the property asks about.
        profile: sizes and numbers.
        device: "cpu" or "cuda:0".
        dtypes: short names of the dtypes of this run.
        claims: of the target; gva=true lets heads share keys and queries.
        backend: torch, triton, cuda or external; "" where unknown. Decides what a new size costs.
        weight: of the property; multiplies the number of cases.

    Raises:
        EmptyCaseSpace: nothing can be drawn; the message says what is missing.
    """
    operator = as_claimed(operator, claims)
    if space.streamed:
        return long_strata(operator, capabilities, profile, device, dtypes, backend)
    allowed = choices(
        operator, capabilities, space, profile=profile, device=device, dtypes=dtypes, backend=backend, weight=weight
    )
    count = _count(profile.cases, weight, allowed)
    found = [Stratum(d, _cases(allowed, (d,), allowed.ordinary_T), count) for d in allowed.dtypes]
    # one case a dtype is one with gradients, if it can be (explore.draw); what goes wrong without them needs one, too
    if count == 1 and "none" in allowed.cotangents and len(allowed.cotangents) > 1:
        gates = tuple(g for g in allowed.gates if g != "none") or allowed.gates
        forward = replace(allowed, cotangents=("none",), gates=gates)
        found.append(Stratum("forward", _cases(forward, forward.dtypes, forward.ordinary_T), 1))
    if allowed.long_T:
        rich = enriched(allowed)
        cases = _count(profile.long_cases, weight, allowed)
        found.append(Stratum("long", _cases(rich, rich.dtypes, allowed.long_T, narrow=True), cases))
    return tuple(found)


def _mixtures(allowed: Choices, dtype: str, *, exact: bool, state: str) -> tuple[str, ...]:
    """Mixtures that this case can have: of 16 bits, with a state where it is the state that differs."""
    if exact or dtype not in ("bf16", "fp16"):
        return ("usual",)
    return tuple(m for m in allowed.mixtures if m != "state" or state in ("normal", "zero"))


def _count(cases: int, weight: float, allowed: Choices) -> int:
    """Return how many cases to draw; fewer where an interpreter or a compiler makes them dear."""
    return max(1, round(cases * weight * (0.6 if allowed.compiled else 0.5 if allowed.interpreted else 1.0)))


@lru_cache(maxsize=1024)
def _one_of(items: tuple[_Item, ...], _kind: str) -> st.SearchStrategy[_Item]:
    """A strategy made once: Hypothesis looks at every member of a new one, which costs more than the draw.

    The name of the members' type tells (False, True) from (0, 1), which are equal.
    """
    return st.sampled_from(items)


@st.composite
def _cases(
    draw: st.DrawFn, allowed: Choices, dtypes: Sequence[str], span: tuple[int, int], *, narrow: bool = False
) -> Case:
    def pick(items: Sequence[_Item]) -> _Item:
        return items[0] if len(items) == 1 else draw(_one_of(tuple(items), type(items[0]).__name__))

    dtype = pick(dtypes)
    regime = pick([r for r in allowed.regimes if fits(r, dtype)])
    exact = regime in INTEGER_REGIMES
    T = pick(token_choices((span[0], min(span[1], EXACT_MAX_T)) if exact else span, allowed))
    packed = pick(allowed.packed)
    layout = pick(allowed.layouts)
    B, H = pick(row_choices(allowed, T, packed=packed, several=layout == "expanded", narrow=narrow))
    widths, scales = (allowed.exact_widths, allowed.exact_scales) if exact else (allowed.widths, allowed.scales)
    if allowed.compiled:
        H, K, V = pick(allowed.geometries(dtype, exact=exact))
    else:
        K, V = pick(widths[:3] if narrow else widths)
    G = pick(group_choices(H)) if allowed.operator.grouped else 0
    gate = pick([g for g in allowed.gates if g in EXACT_GATES] if exact else allowed.gates)
    state = pick(allowed.exact_states if exact else allowed.states)
    cotangent = pick(allowed.exact_cotangents if exact else allowed.cotangents)
    if cotangent in ("state", "both"):
        final_state = True
    elif allowed.compiled and len(allowed.final_state) > 1:
        final_state = state != "absent"  # two variants of the kernel, not four
    else:
        final_state = pick(allowed.final_state)
    lengths: tuple[int, ...] = ()
    if packed:
        parts: list[int] = []
        for _ in range(pick([n for n in _COUNTS if n >= allowed.min_sequences]) - 1):
            parts.append(pick(length_choices(T - sum(parts))))
        place = pick(range(len(parts) + 1))
        lengths = (*parts[:place], T - sum(parts), *parts[place:])  # the rest may come first, between or last
    inputs = [i.name for i in allowed.operator.inputs] + (["initial_state"] if state != "absent" else [])
    return Case(
        allowed.operator.name,
        *(B, T, H, K, V, G),
        dtype=dtype,
        regime=regime,
        gate=gate,
        layout=layout,
        state=state,
        final_state=final_state,
        cotangent=cotangent,
        wrt=pick(["all", "all", *inputs]) if allowed.one_input and cotangent != "none" else "all",
        lengths=lengths,
        scale=pick(scales),
        mixture=pick(_mixtures(allowed, dtype, exact=exact, state=state)),
        offsets=pick(offset_choices(allowed)) if lengths else "int64",
        seed=draw(_SEEDS),
    )
