"""Ablation says what a fault needs and what it does without: each thing that a case holds, and nothing that it does not."""

from collections.abc import Callable

import pytest

from linverify import registry
from linverify.ablation import Ablated, ablated
from linverify.case import Case, parse_case
from linverify.errors import UsageError
from linverify.property import Space
from linverify.verdict import Status

OFFERS = frozenset({"initial_state", "final_state", "packed", "gradients", "scale"})
ALL = Space(cotangents=("none", "o", "state", "both"), packed=None, layouts=("contiguous", "strided"), one_input=True)
FULL = parse_case(
    "gla/B2.T37.H3.K16.V24/bf16/regime=outlier/gate=reset/layout=strided/state=large/final_state=1/cotangent=both"
    "/wrt=k/scale=other/mixture=gates/seed=5"
)


def taken(case: Case, broken: Callable[[Case], bool], space: Space = ALL, **options: object) -> Ablated:
    def ask(one: Case) -> Status:
        return Status.VIOLATION if broken(one) else Status.PASS

    given = {"offers": OFFERS, "dtypes": ("fp32", "bf16"), "widths": (4, 6), **options}
    return ablated(case, registry.operator(case.operator), space, ask, **given)  # type: ignore[arg-type]


def test_a_fault_that_needs_nothing_leaves_the_plainest_case() -> None:
    found = taken(FULL, lambda _: True)
    assert found.case.id == "gla/B1.T1.H1.K4.V6/fp32/final_state=1/cotangent=o/scale=one/seed=5"
    assert found.needs == ()
    assert found.spare == (
        *(
            "a backward pass",
            "the final state asked for",
            "packed sequences",
            "strided inputs",
            "unusual inputs",
            "a gate",
        ),
        *("an initial state", "an upstream gradient of the final state", "a scale other than 1", "16 bits"),
        *("several batch rows", "several heads", "several tokens"),
    )


@pytest.mark.parametrize(
    ("broken", "needs"),
    [
        (lambda c: c.B > 1, "several batch rows"),
        (lambda c: c.H > 1, "several heads"),
        (lambda c: c.T > 16, "17 tokens (16 are right)"),
        (lambda c: c.T > 1, "2 tokens (1 is right)"),
        (lambda c: c.gate != "none", "a gate (regime mild)"),
        (lambda c: c.gate == "reset", "a gate (regime reset; mild is right)"),
        (lambda c: c.state != "absent", "an initial state"),
        (lambda c: c.state not in ("absent", "zero"), "an initial state (zero is right)"),
        (lambda c: c.state == "large", "an initial state (large; of ordinary size it is right)"),
        (lambda c: c.cotangent in ("state", "both"), "an upstream gradient of the final state"),
        (lambda c: c.cotangent in ("o", "both"), "an upstream gradient of o"),
        (lambda c: c.final_state, "the final state asked for"),
        (lambda c: c.scale != "one", "a scale other than 1"),
        (lambda c: c.dtype == "bf16", "bf16"),
        (lambda c: c.regime != "normal", "unusual inputs (regime outlier)"),
        (lambda c: c.layout != "contiguous", "strided inputs (strided)"),
        (lambda c: c.wrt == "k", "the gradient of k alone asked for"),
        (lambda c: c.mixture != "usual", "a mixture of dtypes (gates)"),
        (lambda c: c.K * c.V > 100, "wide heads (K=16, V=24; K=4, V=6 is right)"),
        (lambda c: c.K != c.V, "K other than V (K=V=4 is right)"),
        (lambda c: c.seed == 5, "values such as seed 5 draws (of 2 other seeds both are right)"),
    ],
)
def test_each_thing_that_a_fault_needs_is_named_and_nothing_else(broken: Callable[[Case], bool], needs: str) -> None:
    found = taken(FULL, broken)
    assert broken(found.case)
    assert [n for n in found.needs if n not in ("a backward pass", "the final state asked for")] == (
        [] if needs == "the final state asked for" else [needs]
    )
    assert needs in found.needs
    assert not {n.partition(" (")[0] for n in found.needs} & set(found.spare)


def test_packed_sequences_and_groups_of_heads() -> None:
    packed = parse_case("gla/B1.T20.H2.K4.V6/fp32/lengths=7.13/offsets=int32/scale=one")
    found = taken(packed, lambda c: bool(c.lengths))
    assert found.needs == ("packed sequences",)
    assert found.case.offsets == "int64"
    assert found.case.H == 1
    assert "several batch rows" not in found.spare
    assert taken(packed, lambda c: c.offsets == "int32").needs == ("packed sequences", "offsets in int32")
    assert taken(packed, lambda _: True).case == Case("gla", T=1, K=4, V=6, scale="one")
    grouped = parse_case("mamba2/B1.T3.H4.K4.V6.G2/fp32/gate=mild/scale=one")
    assert "heads that share groups" in taken(grouped, lambda c: c.G == 2).needs


def test_a_replayed_case_stays_as_it_is() -> None:
    def broken(case: Case) -> bool:
        return case.gate != "none" and case.cotangent in ("state", "both")

    found = taken(FULL, broken, goes_on=False)
    assert found.case == FULL
    assert found.needs == ("a gate (regime reset)", "an upstream gradient of the final state")
    assert {"an upstream gradient of o", "several heads", "strided inputs", "bf16", "an initial state"} <= set(
        found.spare
    )
    assert "37 tokens (36 are right)" in taken(FULL, lambda c: c.T > 36, goes_on=False).needs


def test_nothing_outside_the_law_s_space_is_asked() -> None:
    asked: list[Case] = []
    space = Space(
        min_B=2, min_H=2, min_T=5, gates=("reset",), states=("large",), cotangents=("both",), scales=("other",)
    )

    def ask(case: Case) -> Status:
        asked.append(case)
        return Status.VIOLATION

    ablated(FULL, registry.operator("gla"), space, ask, widths=(4, 6))
    kept = {(c.B, c.H, c.gate, c.state, c.cotangent, c.scale, c.final_state) for c in asked}
    assert kept == {(2, 3, "reset", "large", "both", "other", True)}
    assert min(c.T for c in asked) == 5


@pytest.mark.parametrize("status", [Status.UNCHECKED, Status.REFUSED, Status.NOT_OFFERED, Status.MARGINAL])
def test_what_cannot_be_told_is_neither_a_need_nor_spare(status: Status) -> None:
    found = ablated(FULL, registry.operator("gla"), ALL, lambda _: status, offers=OFFERS, widths=(4, 6))
    assert (found.case, found.needs, found.spare) == (FULL, (), ("packed sequences",))


def test_fields_that_go_together_are_left_alone() -> None:
    def refuses(case: Case) -> Status:
        raise UsageError("it needs a final state")

    found = ablated(FULL, registry.operator("gla"), ALL, refuses, offers=OFFERS, widths=(4, 6))
    assert (found.case, found.needs) == (FULL, ())


def test_no_other_widths_are_asked_where_they_are_dear() -> None:
    asked: list[Case] = []

    def ask(case: Case) -> Status:
        asked.append(case)
        return Status.PASS

    ablated(FULL, registry.operator("gla"), ALL, ask)
    assert {(c.K, c.V) for c in asked} == {(16, 24)}
