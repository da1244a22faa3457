"""What all broken laws say together: each sentence follows from the verdicts, and none is said where it does not."""

from html import unescape
from pathlib import Path

import pytest

from linverify import registry, session
from linverify.crossing import Crossed
from linverify.plan import Plan
from linverify.reports import json_file, synthesis_panel
from linverify.reports.console import plain, print_target
from linverify.reports.github import job_summary
from linverify.reports.html import html
from linverify.silence import Silence
from linverify.synthesis import synthesis
from linverify.verdict import (
    Alike,
    BudgetUse,
    Evidence,
    Failure,
    Lead,
    PropertyResult,
    Report,
    Status,
    Synthesis,
    TargetResult,
)
from tests.scripts import load

trial = load("reading_trial")
LAWS = registry.properties()
CASE = "gla/B1.T17.H1.K4.V6/{}/gate=mild"
GRADIENTS = ("dq", "dk", "dv", "dg")


def failure(
    wrong: tuple[str, ...] = (),
    right: tuple[str, ...] = (),
    *,
    dtype: str = "fp32",
    kind: str = "wrong_value",
    **facts: object,
) -> Failure:
    return Failure(CASE.format(dtype), {}, Evidence(kind, (*wrong, "o")[0]), wrong=wrong, right=right, **facts)  # type: ignore[arg-type]


def broken(name: str, found: Failure, *, required: bool = True) -> PropertyResult:
    return PropertyResult(name, Status.VIOLATION if required else Status.REPORTED, required, 3, failure=found)


def held(*names: str) -> list[PropertyResult]:
    return [PropertyResult(name, Status.PASS, True, 5) for name in names]


def used(*names: str, dtype: str = "fp32", worst: float = 0.5) -> list[BudgetUse]:
    return [BudgetUse(name, dtype, 5, worst, dtype) for name in names]


def together(
    found: list[PropertyResult],
    budget: list[BudgetUse] | None = None,
    crossing: Crossed = Crossed(),  # noqa: B008
) -> Synthesis:
    said = synthesis(found, budget or [], LAWS, crossing)
    assert said is not None
    return said


def test_nothing_is_said_where_no_required_law_is_broken() -> None:
    reported = broken("batch_invariance", failure(("o",)), required=False)
    assert synthesis([*held("agreement"), reported], used("o"), LAWS) is None
    assert synthesis([PropertyResult("agreement", Status.UNCHECKED, True)], [], LAWS) is None


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        (
            ("dk",),
            ("o", "state", "dq", "dv"),
            "o, dq and dv are right, and so is what they share with dk; look at the lines",
        ),
        (("dk", "dv"), ("o", "dq"), "look at what dk and dv share and dq does not"),
        (GRADIENTS, ("o", "state"), "the forward is right and every gradient is wrong"),
        (("dk",), ("o",), "the forward is right and dk is wrong"),
        (("o",), ("state",), "the state is right, so what is written to it, forgotten and handed on is"),
        (("state",), ("o",), "look at what is returned as the final state"),
        (("o", "state"), (), "look at what both come from"),
        (("o",), ("state", *GRADIENTS), "every gradient is right, so none reads what is wrong in o"),
        (("o", "dk"), ("state", "dq"), "dq is right, and reads none of what is wrong"),
        (("o", "dk"), ("dq", "dv"), "dq and dv are right, and read none of what is wrong"),
    ],
)
def test_what_is_right_narrows_down_what_is_wrong(wrong: tuple[str, ...], right: tuple[str, ...], said: str) -> None:
    found = together([broken("gradients", failure(wrong, right))])
    assert (set(found.wrong), set(found.right)) == (set(wrong), set(right))
    assert any(said in text.replace("the final state", "state") or said in text for text in found.reading), (
        found.reading
    )


@pytest.mark.parametrize(("wrong", "right"), [(("dk",), ()), (("o",), ()), (("o", "dk"), ())])
def test_nothing_follows_where_nothing_is_known_to_be_right(wrong: tuple[str, ...], right: tuple[str, ...]) -> None:
    assert together([broken("gradients", failure(wrong, right))]).reading == ()


def test_a_result_is_right_only_if_no_judged_case_found_it_wrong() -> None:
    first = broken("gradients", failure(("dk",), ("o", "dq", "dg")))
    later = broken("state_passing", failure(("dk", "dg"), ("o",)))
    found = together([first, later], [*used("o", "dq", "dk", "dv"), *used("dv", dtype="bf16", worst=1.2)])
    assert (found.wrong, found.right) == (("dk", "dg"), ("o", "dq"))


def test_nan_that_a_law_puts_in_says_nothing_of_the_results_elsewhere() -> None:
    spread = broken("containment", failure(("o", "dq"), kind="not_finite"))
    found = together([broken("gradients", failure(("dk",), ("o", "dq"))), spread], used("dv"))
    assert found.wrong == ("dk",)
    assert found.right == ("dv",), "o and dq were wrong somewhere"
    assert together([spread]).wrong == ("o", "dq")


def test_sixteen_bits_alone_are_told_from_a_wrong_formula() -> None:
    only = broken("agreement", failure(("o",), ("state",), dtype="bf16"))
    assert "in float32 o is right, so the formula is" in together([only], used("o", "state")).reading[0]
    assert "float32" not in together([only], used("o", worst=7.0)).reading[0]
    assert "float32" not in together([only], used("o", dtype="bf16", worst=7.0)).reading[0], "float32 was not judged"
    both = [only, broken("gradients", failure(("o",), dtype="fp32"))]
    assert not any("float32" in text for text in together(both, used("o")).reading)


def test_what_all_cases_need_and_what_none_needs() -> None:
    first = failure(("o",), needs=("a gate (regime mild)", "an initial state"), spare=("several heads", "16 bits"))
    second = failure(("o",), needs=("a gate (regime reset; mild is right)",), spare=("an initial state", "16 bits"))
    third = failure(("o",))  # was not looked into
    found = together([broken("agreement", first), broken("packed", second), broken("linearity", third)])
    assert found.needs == ("a gate",)
    assert found.spare == ("several heads", "16 bits")
    assert together([broken("agreement", first)]).needs == first.needs


def test_leads_that_say_the_same_are_told_once_the_most_telling_first() -> None:
    def scale(value: float, names: str) -> Lead:
        return Lead("question", f"{names} what the equations give with scale 1 in place of {value}")

    shape = Lead("shape", "dv differs from the equations at all positions: a term is missing")
    found = together(
        [
            broken(
                "agreement", failure(("o",), leads=(Lead("question", "o is what the equations give without g"), shape))
            ),
            broken("gradients", failure(("dq",), leads=(scale(0.75, "dq and dk are"), shape))),
            broken(
                "contract", failure(kind="aliased", leads=(Lead("finding", "state shares memory with initial_state"),))
            ),
            broken("linearity", failure(leads=(Lead("relation", "two sides differ"),))),
            broken("packed", failure(("dq",), leads=(scale(0.3536, "dq is"),))),
            broken("state_passing", failure(("o",), leads=(Lead("blocks", "o is right for one block: T=16"),))),
            broken("linear_balance", failure(("dq",), leads=(Lead("blocks", "dq is right for one block: T=32"),))),
        ]
    )
    assert found.leads == (
        Alike("dq and dk are what the equations give with scale 1 in place of 0.75", ("gradients", "packed")),
        Alike("o is what the equations give without g", ("agreement",)),
        Alike("state shares memory with initial_state", ("contract",)),
        Alike("o is right for one block: T=16", ("state_passing", "linear_balance")),
    )


def test_a_law_that_compares_two_runs_says_what_it_sees_where_nothing_says_more() -> None:
    differ = failure(leads=(Lead("relation", "o in another order: the two sides differ at head 1"),))
    shape = failure(("o",), leads=(Lead("shape", "o is wrong only in head 1 of 2: an index or stride"),))
    found = together([broken("agreement", shape), broken("head_independence", differ)])
    assert [lead.text for lead in found.leads] == [
        "heads mixed up",
        "o is wrong only in head 1 of 2: an index or stride",
    ]


def test_laws_that_hold_on_the_failing_case_speak_against_what_they_would_see() -> None:
    names = ("batch_independence", "causality_values", "query_euler", "key_value_balance", "contract")
    agreement = broken("agreement", failure(("o",), ("state",)))
    assert together([agreement, *held(*names)]).against == (), "that a law holds elsewhere excludes nothing"
    assert together([agreement], crossing=Crossed(names)).against == (
        Alike(LAWS["batch_independence"].against, ("batch_independence",)),
        Alike(LAWS["causality_values"].against, ("causality_values",)),
        Alike(LAWS["query_euler"].against, ("query_euler", "key_value_balance")),
    )
    tipped = together([broken("linear_balance", failure())], crossing=Crossed(names))
    assert LAWS["query_euler"].against not in {a.text for a in tipped.against}, "a law that says the same is broken"
    mixed = together([agreement], crossing=Crossed(("call_history",), ("call_sequences", "head_independence")))
    assert mixed.against == ()
    assert mixed.leads == (
        Alike(LAWS["call_sequences"].against, ("call_sequences",)),
        Alike("heads mixed up", ("head_independence",)),
    )


def test_every_law_that_says_what_it_speaks_against_is_short() -> None:
    assert max(len(law.against) for law in LAWS.values()) < 80
    assert sum(bool(law.against) for law in LAWS.values()) > 25


def test_it_stands_before_the_failures_and_says_of_one_law_what_its_panel_lacks() -> None:
    one = [broken("gradients", failure(("dk",), ("o", "dq"), needs=("a gate",), leads=(Lead("shape", "dk is odd"),)))]
    both = [*one, broken("packed", failure(("dk",), needs=("a gate",), leads=(Lead("shape", "dk is odd"),)))]
    labels = [[label for label, _ in synthesis_panel.rows(together(f))] for f in (one, both)]
    assert labels[0] == ["wrong", "right", "so"]
    assert labels[1] == ["broken", "wrong", "right", "so", "look first", "all need"]
    target = TargetResult("k.py::f", "gla", "", "", "violation", properties=tuple(both), synthesis=together(both))
    console = plain(80)
    print_target(console, target)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert 0 < text.index("IN SHORT") < text.index("VIOLATION  gradients")
    assert "look first   dk is odd (gradients, packed)" in text


@pytest.mark.parametrize(("count", "said"), [(1, "a"), (4, "a, b, c, d"), (5, "a, b, c and 2 more")])
def test_many_laws_are_counted(count: int, said: str) -> None:
    assert synthesis_panel.named("abcdefgh"[:count]) == said


@pytest.mark.parametrize(
    ("number", "wrong", "said"),
    [
        (11, {"dq", "dk", "dv"}, ["the forward is right and every gradient is wrong", "give with scale 1 in place of"]),
        (18, {"dg"}, ["look at the lines that make up dg alone", "heads mixed up (head independence)"]),
        (8, {"state"}, ["look at what is returned as the final state"]),
        (5, {"o", "state"}, ["o and the final state are wrong"]),
    ],
)
def test_a_planted_fault_is_read_once_in_every_report(
    number: int, wrong: set[str], said: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "kernel.py"
    file.write_text(trial.planted(trial.FAULTS[number]))
    laws = ("agreement", "gradients", "query_euler", "head_independence", "state_passing")
    plan = Plan(f"{file}::my_gated_delta_rule", dtypes=("fp32",), profile="quick", properties=laws)
    (result,) = session.check(plan, Silence())
    found = result.synthesis
    assert found is not None
    assert wrong <= set(found.wrong)
    assert not set(found.wrong) & set(found.right)
    report = Report("0", {}, 0, "quick", (result,))
    assert json_file.from_json(json_file.to_json(report)).results[0].synthesis == found
    console = plain(400)
    print_target(console, result)
    page, summary = unescape(html(report)), job_summary(report).replace("\\", "")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for label, value in synthesis_panel.rows(found):
        assert f"<dt>{label}</dt><dd>{value}</dd>" in page
        assert f"* {label}: {value}" in summary
        assert value in text
    for sentence in said:
        assert sentence in text, text
