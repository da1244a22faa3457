"""A case is replayed under the properties that would draw such cases, and under no other."""

import pytest

from linverify import registry
from linverify.case import Case
from linverify.errors import EmptyCaseSpace
from linverify.explore import draw
from linverify.membership import outside
from linverify.profile import profile
from linverify.strategies import strata
from tests.kinds import PLAIN

EVERYTHING = frozenset({"scale", "initial_state", "final_state", "packed", "gradients", "groups"})


@pytest.mark.parametrize("name", PLAIN[:4])
def test_what_a_property_draws_lies_in_its_space(name: str) -> None:
    operator, seen = registry.operator(name), 0
    for capabilities in (EVERYTHING, frozenset({"gradients"})):
        for law in registry.properties().values():
            if not law.applies(operator):
                continue
            try:
                found = strata(
                    *(operator, capabilities, law.space),
                    profile=profile("quick"),
                    device="cpu",
                    dtypes=("fp32", "bf16"),
                    claims={},
                )
            except EmptyCaseSpace:
                continue
            for stratum in found:
                for case in draw(stratum.strategy, 4, 7):
                    assert outside(case, law.space, operator) == "", (law.name, case.id)
                    seen += 1
    assert seen > 200


def test_an_ordinary_case_is_no_exact_one() -> None:
    gla, plain = registry.operator("gla"), Case("gla", T=17, K=8, V=8)
    assert outside(plain, registry.property_named("agreement").space, gla) == ""
    assert "regime" in outside(plain, registry.property_named("exact").space, gla)
    assert "upstream gradient" in outside(plain, registry.property_named("gradients").space, gla)
    assert "T" in outside(plain.with_(T=1), registry.property_named("state_passing").space, gla)


def test_one_sequence_has_no_borders_to_change() -> None:
    gla, borders = registry.operator("gla"), registry.property_named("changed_borders").space
    alone = Case("gla", T=80, K=8, V=8, lengths=(80,))
    assert "sequences" in outside(alone, borders, gla)
    assert outside(alone.with_(lengths=(50, 30)), borders, gla) == ""
