"""The page as text: the verdict first, self-contained, escaped, small; and what its plots draw."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import lxml.etree
import lxml.html
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linverify.insight import ErrorCloud, ErrorMap, Growth, Insight, RecipeMatch
from linverify.reports.changes import compare
from linverify.reports.html import SCRIPT_BYTES, html
from linverify.reports.plot_attribution import plot_attribution
from linverify.reports.plot_cloud import plot_cloud
from linverify.reports.plot_growth import plot_growth
from linverify.reports.plot_heat import plot_heat
from linverify.reports.plot_recipes import plot_recipes
from linverify.reports.plot_shares import plot_shares
from linverify.reports.svg import Figure
from linverify.verdict import PropertyResult, Report, Status, TargetResult


def parsed(page: str) -> Any:
    return lxml.html.document_fromstring(page)


def text_of(page: str) -> str:
    return " ".join(parsed(page).find("body").text_content().split())


# The page as text


def test_the_verdict_comes_first_then_what_is_wrong(full_run: Report) -> None:
    text = text_of(html(full_run))
    order = [
        "my_gla.py::my_gla",
        "2 of 4 required properties broken",
        "The last chunk is wrong when T is no multiple of 16",
        "17 of 561 elements",
        "linverify replay gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3 --target my_gla.py::my_gla",
        "Every property",
        "What the errors say",
        "Limits of this check",
        "refused 5 cases",
    ]
    places = [text.index(words, text.index("2 targets") if i == 0 else 0) for i, words in enumerate(order)]
    assert places == sorted(places)
    assert parsed(html(full_run)).findtext(".//title") == "VIOLATION · 2 targets · linverify"


def test_nothing_is_loaded_from_anywhere(full_run: Report, script: str) -> None:
    page = html(full_run, compare(full_run, full_run))
    assert "://" not in re.sub(r'xmlns="[^"]*"', "", page).replace(script, "")
    root = parsed(page)
    assert not root.xpath("//link | //img | //iframe | //object | //*[@src] | //style[contains(., '@import')]")
    assert all(a.get("href").startswith("#") for a in root.iter("a"))
    policy = root.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]


def test_every_anchor_leads_somewhere(full_run: Report) -> None:
    root = parsed(html(full_run))
    ids = root.xpath("//@id")
    assert len(ids) == len(set(ids))
    assert {a.get("href")[1:] for a in root.iter("a")} <= set(ids)
    assert {b.get("data-copy-from") for b in root.xpath("//button[@data-copy-from]")} <= set(ids)


def test_a_kernel_s_texts_never_become_markup(full_run: Report) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"
    result = full_run.results[0]
    found = result.properties[0]
    assert found.failure is not None
    failure = dataclasses.replace(found.failure, diagnosis=hostile, case_id=hostile, log=hostile)
    odd = dataclasses.replace(
        result,
        target=hostile,
        operator=hostile,
        reason=hostile,
        notes=(hostile,),
        file=hostile,
        properties=(dataclasses.replace(found, failure=failure, note=hostile, name=hostile),),
        insight=dataclasses.replace(
            result.insight,
            attribution=tuple(
                dataclasses.replace(a, case_id=hostile, sentence=hostile) for a in result.insight.attribution
            ),
        ),
    )
    report = dataclasses.replace(full_run, results=(odd,), environment={hostile: hostile}, laws={hostile: hostile})
    root = parsed(html(report))
    assert len(root.xpath("//script")) == 1
    assert not root.xpath("//img | //@onerror")
    assert text_of(html(report)).count("{{ 7 * 7 }}") > 8


def test_the_reproducer_stands_on_the_page_or_is_said_to_be_missing(
    full_run: Report, script: str, tmp_path: Path
) -> None:
    (shown,) = parsed(html(full_run)).xpath("//pre[@id='target-0-agreement-script']")
    assert shown.text_content() == script
    (tmp_path / "gla-agreement.py").unlink()
    assert "it is not where this page was made" in html(full_run)
    (tmp_path / "gla-agreement.py").write_text("x" * (SCRIPT_BYTES + 1))
    assert "too large for this page (1500 kB)" in html(full_run)


def test_the_page_stays_below_three_megabytes(full_run: Report, tmp_path: Path) -> None:
    """With 60 failures, their large reproducers, and more insight than a check gathers."""
    result = full_run.results[0]
    script = tmp_path / "gla-agreement.py"
    script.write_text("x = 1\n" * 50_000)
    many = tuple(dataclasses.replace(result.properties[0], name=f"law_{i}") for i in range(60))
    cloud = dataclasses.replace(result.insight.clouds[0], allowed=(0.1,) * 100_000, errors=(0.01,) * 100_000)
    heat = ErrorMap("o", "bf16", "x", 128, ((0.5, 1.5) * 64,) * 64)
    insight = dataclasses.replace(result.insight, clouds=(cloud,) * 9, maps=(heat,) * 9)
    page = html(dataclasses.replace(full_run, results=(dataclasses.replace(result, properties=many, insight=insight),)))
    assert len(page.encode()) < 3_000_000
    assert "too large for this page" in page


def test_every_kind_of_run_has_a_page(report: Report, passing: TargetResult) -> None:
    gone = TargetResult("k.py", "", "", "", "unchecked", reason="importing k.py raised ImportError: no x")
    for results, says in [((), "nothing was checked"), ((gone,), "importing k.py raised"), ((passing,), "1 required")]:
        page = html(dataclasses.replace(report, results=results))
        assert says in text_of(page)
        assert "nan" not in text_of(page)


# The plots


def svg(figure: Figure | None) -> Any:
    assert figure is not None
    return lxml.etree.fromstring(str(figure.drawing).encode())


def of_class(root: Any, tag: str, name: str) -> list[Any]:
    return [e for e in root.iter() if e.tag == tag and name in (e.get("class") or "").split()]


def subpaths(root: Any, name: str) -> int:
    return sum(e.get("d").count("M") for e in of_class(root, "path", name))


shares = st.floats(0, 1e9) | st.sampled_from([0.0, 1.0, 1.0001, float("inf")])


@given(st.lists(shares, min_size=1, max_size=20))
def test_a_bar_crosses_the_line_exactly_when_the_share_does(values: list[float]) -> None:
    found = [PropertyResult(f"law_{i}", Status.PASS, True, 1, worst_budget_fraction=v) for i, v in enumerate(values)]
    root = svg(plot_shares(found))
    (line,) = of_class(root, "line", "limit")
    at = float(line.get("x1"))
    bars = of_class(root, "rect", "bar")
    assert len(bars) == len(values)
    for bar, value in zip(bars, sorted(values, reverse=True), strict=True):
        end = float(bar.get("x")) + float(bar.get("width"))
        assert end <= at + 0.11 if value <= 1 else end >= at - 0.11
        assert ("bad" in bar.get("class")) == (value > 1)
        assert end <= 400


def test_only_laws_with_a_budget_are_drawn() -> None:
    assert plot_shares([PropertyResult("exact", Status.PASS, True, 3)]) is None
    assert plot_shares([PropertyResult("packed", Status.REFUSED, True, 0, 3, worst_budget_fraction=0.0)]) is None


def test_the_waterfall_begins_where_it_ended_and_ends_at_all(insight: Insight) -> None:
    root = svg(plot_attribution(insight.attribution[0]))
    stages = of_class(root, "rect", "stage")
    starts = [float(r.get("x")) for r in stages]
    ends = [float(r.get("x")) + float(r.get("width")) for r in stages]
    assert starts[1:] == pytest.approx(ends[:-1], abs=0.2)
    (rest,) = of_class(root, "rect", "bad")
    assert float(rest.get("width")) == pytest.approx(0.6 * (ends[-1] - starts[0]), abs=0.2)
    assert not of_class(svg(plot_attribution(insight.attribution[1])), "rect", "bad")


def test_stages_of_nearly_nothing_share_a_row_and_the_steps_still_end_at_all(insight: Insight) -> None:
    small = {f"stage {i}": 0.004 for i in range(5)}
    found = dataclasses.replace(insight.attribution[1], shares={"gates": 0.98, **small, "input": 0.0})
    root = svg(plot_attribution(found))
    assert [t.text for t in of_class(root, "text", "name")] == ["gates", "others"]
    bars = of_class(root, "rect", "stage")
    width = float(bars[0].get("width")) / 0.98
    assert sum(float(b.get("width")) for b in bars) == pytest.approx(width, abs=0.2)


def test_dots_above_the_diagonal_are_those_beyond_the_line(insight: Insight) -> None:
    figure = plot_cloud(insight.clouds[0])
    assert subpaths(svg(figure), "bad") == 3
    assert figure.answer == "3 of 400 sampled elements beyond the line; the worst uses 7.00 of its budget."
    odd = ErrorCloud("o", "fp32", "x", (0.0, 0.0, 1e-7, 1e-7), (0.0, 1e-9, float("inf"), 0.0))
    assert plot_cloud(odd).answer.startswith("2 of 4 sampled elements beyond the line")
    assert plot_cloud(ErrorCloud("o", "fp32", "x", (), ())).answer.startswith("All 0 sampled")


def test_the_heat_map_has_a_red_cell_for_every_position_beyond_the_line(insight: Insight) -> None:
    figure = plot_heat(insight.maps[1])
    assert subpaths(svg(figure), "beyond") == 4
    assert subpaths(svg(figure), "heat") == 64
    assert figure is not None
    assert figure.answer.startswith("4 of 64 cells beyond the line. The worst is b0 h1, piece 12 of t")
    nan = plot_heat(ErrorMap("o", "fp32", "x", 2, ((0.1, float("nan")),)))
    assert subpaths(svg(nan), "beyond") == 1
    assert plot_heat(ErrorMap("o", "fp32", "x", 2, ())) is None


def test_growth_draws_every_length_and_stands_what_it_cannot_draw(insight: Insight) -> None:
    assert subpaths(svg(plot_growth(insight.growth[0])), "dots") == 6
    odd = Growth("o", "fp32", (1, 2, 3), (0.0, float("inf"), 0.1), 0.0, 0.0, 0.0, 0.0)
    assert subpaths(svg(plot_growth(odd)), "dots") == 1
    svg(plot_growth(Growth("o", "fp32", (), (), 0.0, 0.0, 0.0, 0.0)))


def test_the_better_recipe_has_the_longer_bar(insight: Insight) -> None:
    figure = plot_recipes(insight.recipes)
    widths = {r[0].text: float(r.get("width")) for r in of_class(svg(figure), "rect", "bar")}
    assert widths["state in bf16: -3.20"] > widths["ieee: -0.40"] > widths["none accepted: -0.20"]
    assert figure is not None
    assert "bf16: no recipe explains the error (80 % of its energy is left)." in figure.answer
    assert plot_recipes(()) is None
    svg(plot_recipes((RecipeMatch("fp32", "x", float("inf")),)))
