"""Laws that hold on their own cases are asked about the case that fails, and nothing is concluded from cases it is not like."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from linverify import registry, session
from linverify.bench import Bench, signature
from linverify.case import Case, parse_case
from linverify.compiled import Compiled
from linverify.crossing import Crossed, compiled, crossed, nearest
from linverify.errors import UsageError
from linverify.membership import outside
from linverify.plan import Plan
from linverify.property import Property, Space
from linverify.scout import calls_of
from linverify.silence import Silence
from linverify.verdict import Status

LAWS = registry.properties()
GLA = registry.operator("gla")
CASE = parse_case("gla/B1.T17.H1.K4.V6/fp32/gate=mild/scale=one")
OFFERS = frozenset({"initial_state", "final_state", "gradients", "scale"})


def told(broken: Callable[[str, Case], bool], *names: str, case: Case = CASE) -> Crossed:
    def ask(law: Property, one: Case) -> Status:
        return Status.VIOLATION if broken(law.name, one) else Status.PASS

    return crossed(LAWS["agreement"], case, [LAWS[n] for n in names], GLA, ask, OFFERS)


@pytest.mark.parametrize("name", [n for n, law in LAWS.items() if law.against and not law.space.streamed])
def test_a_case_is_brought_into_every_space_that_has_cases_like_it(name: str) -> None:
    law = LAWS[name]
    near = nearest(CASE, law.space, OFFERS)
    why = outside(near, law.space, GLA)
    demanding = {"packed": "packing", "exact": "regime", "gradient_bound": "T"}
    assert why == "" or demanding.get(name, "gate") in why, why
    assert (near.K, near.V, near.dtype, near.regime, near.gate) == (CASE.K, CASE.V, CASE.dtype, CASE.regime, CASE.gate)


def test_what_a_target_cannot_do_is_not_asked_for() -> None:
    space = Space(cotangents=("none", "both"), states=("normal",), min_B=2, min_H=3, min_T=20, layouts=("strided",))
    near = nearest(CASE, space, OFFERS)
    assert (near.B, near.H, near.T, near.layout, near.state) == (2, 3, 20, "strided", "normal")
    assert nearest(CASE.with_(cotangent="o"), space, OFFERS) == near.with_(cotangent="both", final_state=True)
    assert nearest(CASE.with_(cotangent="o"), space, frozenset()).cotangent == "none"
    assert nearest(CASE, space, frozenset()).state == "absent"
    assert nearest(CASE, Space(final_state=True), OFFERS).final_state


def test_a_law_speaks_only_of_cases_that_fail() -> None:
    names = ("batch_independence", "head_independence", "linearity")
    assert told(lambda law, _: law == "agreement", *names) == Crossed(names)
    assert told(lambda law, _: law in ("agreement", "head_independence"), *names) == Crossed(
        ("batch_independence", "linearity"), ("head_independence",)
    )
    alone = told(lambda law, case: law == "agreement" and case.B == 1, *names)
    assert alone == Crossed(("head_independence", "linearity")), "with two batch rows the case does not fail"
    assert told(lambda *_: False, *names) == Crossed()


def test_one_seed_on_which_a_law_is_broken_is_enough_and_what_cannot_be_told_is_not_held() -> None:
    assert told(lambda law, case: law == "agreement" or case.seed == 2, "linearity") == Crossed((), ("linearity",))

    def ask(law: Property, case: Case) -> Status:
        if case.seed == 1:
            raise UsageError("fields that do not go together")
        return Status.VIOLATION if law.name == "agreement" else Status.REFUSED if case.seed else Status.PASS

    assert crossed(LAWS["agreement"], CASE, [LAWS["linearity"]], GLA, ask, OFFERS) == Crossed()


def test_a_case_outside_a_law_s_space_is_not_put_to_it() -> None:
    space = replace(LAWS["linearity"].space, gates=("reset",))
    law = replace(LAWS["linearity"], space=space)

    def ask(asked: Property, case: Case) -> Status:
        assert asked.name == "agreement", case.id
        return Status.VIOLATION

    assert crossed(LAWS["agreement"], CASE, [law], GLA, ask, OFFERS) == Crossed()


def test_a_kernel_that_reads_the_next_head_is_not_said_to_keep_heads_apart() -> None:
    """In a partial block it reads rows that belong to the next head; few of the law's own cases are like that."""
    kernel = Path(__file__).parents[1] / "examples" / "my_gla_without_tail_mask.py"
    laws = ("agreement", "head_independence", "batch_independence", "changed_in_place", "repeated_call")
    plan = Plan(f"{kernel}::my_gla", operator="gla", dtypes=("fp32",), profile="quick", properties=laws)
    (result,) = session.check(plan, Silence())
    status = {p.name: p.status for p in result.properties}
    assert status["agreement"] is Status.VIOLATION
    assert result.synthesis is not None
    against = {name for a in result.synthesis.against for name in a.laws}
    assert not {"head_independence", "batch_independence"} & against
    said = {lead.text for lead in result.synthesis.leads}
    assert not {LAWS[n].against for n in ("changed_in_place", "repeated_call")} & said, "any wrong value breaks them"
    assert status["head_independence"] is Status.VIOLATION or "heads mixed up" in said


def test_what_would_have_to_be_compiled_first_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    asked = set[object]()
    bench = cast("Bench", SimpleNamespace(operator=GLA, met=asked.__contains__))
    before = Compiled("k.py", "")
    able = compiled(bench, LAWS["agreement"], CASE, before)
    assert able(LAWS["agreement"], CASE), "whoever found the failure compiled it"
    assert able(LAWS["linearity"], CASE), "the same shapes and flags"
    back = CASE.with_(cotangent="o")
    assert not able(LAWS["gradients"], back)
    needed = {signature(call, GLA) for call in calls_of(LAWS["gradients"], back, GLA)}
    before.add(needed.pop())
    asked |= needed
    assert able(LAWS["gradients"], back)
