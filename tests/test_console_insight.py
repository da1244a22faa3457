"""What the console shows of insight: at 80 and 120 columns, without colour, without Unicode."""

import dataclasses
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from linverify.insight import Attribution, ErrorMap, Insight
from linverify.reports.attribution_bars import Span, attribution_bars
from linverify.reports.console import plain, print_target
from linverify.reports.growth_lines import Sparkline
from linverify.reports.heat_strip import Strip, heat_strip
from linverify.reports.insight_parts import insight_parts, shows, telling_map
from linverify.verdict import TargetResult


def drawn(*parts: RenderableType, width: int = 80) -> str:
    console = plain(width)
    for part in parts:
        console.print(part)
        console.print()
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def drawn_whole(result: TargetResult, width: int) -> str:
    console = plain(width)
    print_target(console, result)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# The least width at which a column of the table of properties is there, with the names and the refusals of the fixture.
LEAST = {"cases": 49, "share of": 41, "budget": 68, "time": 77}

INSIGHT_80 = """\
where the error comes from  (shares of the expected squared error; unexplained:
of the measured one)
o  bf16  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  input        ████                                      10 %
  gates            ████████                              20 %
  scores                   ████████████████████          50 %
  output                                       ████████  20 %
  unexplained  ████████████████████████                  60 %
  Scores.
dq  bf16  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  input        ██████████████████████████████            75 %
  output                                     ██████████  25 %

where the error sits  o  bf16  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  b0 h0 │                │
  b1 h0 │            ████│
  b2 h0 │     ░░░░░░░░░░░│
  b3 h0 │░░░░░░░░░░░░░░░░│
         t mod 16; ░▒▓ nearer to the line, █ beyond it
  worst: b1 h0, t mod 16 = 12, share of the budget 3.50

error against T
o  bf16  ▁▂▄▅▇█  T 64 to 2048, 0.001 to 0.00566; slope 0.50 (0.45 to 0.55), the
                 recipe's own 0.10

precision recipe
  fp32: state in bf16 (4 % of the error's energy is left; cannot be told from
  scores in bf16).
  bf16: no recipe explains the error (80 % of its energy is left).
  fp32: what state in bf16 leaves of o is 4.50 of what flipped bits explain
  (row, at t 3, 7): a fault below the rounding level.
  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3

largest shares of the budget
  o   bf16  25.0  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  dq  bf16  0.75  gla/B1.T64.H2.K16.V32/bf16

"""
INSIGHT_120 = """\
where the error comes from  (shares of the expected squared error; unexplained: of the measured one)
o  bf16  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  input        ████                                      10 %
  gates            ████████                              20 %
  scores                   ████████████████████          50 %
  output                                       ████████  20 %
  unexplained  ████████████████████████                  60 %
  Scores.
dq  bf16  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  input        ██████████████████████████████            75 %
  output                                     ██████████  25 %

where the error sits  o  bf16  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  b0 h0 │                │
  b1 h0 │            ████│
  b2 h0 │     ░░░░░░░░░░░│
  b3 h0 │░░░░░░░░░░░░░░░░│
         t mod 16; ░▒▓ nearer to the line, █ beyond it
  worst: b1 h0, t mod 16 = 12, share of the budget 3.50

error against T
o  bf16  ▁▂▄▅▇█  T 64 to 2048, 0.001 to 0.00566; slope 0.50 (0.45 to 0.55), the recipe's own 0.10

precision recipe
  fp32: state in bf16 (4 % of the error's energy is left; cannot be told from scores in bf16).
  bf16: no recipe explains the error (80 % of its energy is left).
  fp32: what state in bf16 leaves of o is 4.50 of what flipped bits explain (row, at t 3, 7): a fault below the rounding
  level. gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3

largest shares of the budget
  o   bf16  25.0  gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
  dq  bf16  0.75  gla/B1.T64.H2.K16.V32/bf16

"""


@pytest.mark.parametrize(("width", "expected"), [(80, INSIGHT_80), (120, INSIGHT_120)])
def test_every_kind_of_insight_has_its_place(insight: Insight, width: int, expected: str) -> None:
    assert drawn(*insight_parts(insight), width=width) == expected


def test_a_target_without_insight_shows_nothing_of_it() -> None:
    assert list(insight_parts(Insight())) == []


def test_insight_stands_between_the_budget_and_the_failures(violation: TargetResult, insight: Insight) -> None:
    text = drawn_target(dataclasses.replace(violation, insight=insight))
    order = [
        "share of the budget   fp32",
        "where the error comes from",
        "largest shares of the budget",
        "refused (a limitation",
        "how many",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def drawn_target(result: TargetResult) -> str:
    console = plain(80)
    print_target(console, result)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [30, 36, 40, 48, 56, 60, 72, 80, 100, 120, 200])
def test_at_no_width_is_a_word_or_a_number_cut(violation: TargetResult, insight: Insight, width: int) -> None:
    """A narrow console does without columns; what it shows is whole, and no line but the command is wider than it."""
    text = drawn_whole(dataclasses.replace(violation, insight=insight), width)
    assert "…" not in text
    assert not [line for line in text.splitlines() if len(line) > width and not line.startswith("replay ")]
    rows = {
        p.name: next(line for line in text.splitlines() if line.startswith(p.name)) for p in violation.properties[:4]
    }
    assert rows["agreement"].split()[1] == "violation"
    assert rows["linearity"].split()[1] == "marginal"
    joined = " ".join(text.split())
    assert "nearer to the line, █ beyond it" in joined
    for said in ("25.0", "0.75", "0.20") if width > 30 else ():
        assert said in text
    dispensable = [
        word
        for word in ("cases", "share of", "budget", "time")
        if word in text[text.index("property") :].split("\n")[0]
    ]
    assert dispensable == [word for word, least in LEAST.items() if width >= least]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_pipe_of_any_encoding_gets_all_of_it(violation: TargetResult, insight: Insight, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")  # a character that has no place raises
    print_target(Console(file=stream, width=80), dataclasses.replace(violation, insight=insight))
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert "\x1b" not in text
    assert text.count("b1 h0") == 2
    assert "####" in text or "████" in text


def test_a_dumb_terminal_without_colour_gets_no_escapes(
    violation: TargetResult, insight: Insight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    print_target(Console(file=stream, force_terminal=True, width=80), dataclasses.replace(violation, insight=insight))
    assert "\x1b[3" not in stream.getvalue()
    assert "████" in stream.getvalue()


parts = st.lists(st.floats(0.001, 1), min_size=1, max_size=8).map(lambda xs: [x / sum(xs) for x in xs])


@given(parts, st.integers(10, 40))
def test_the_steps_of_the_waterfall_leave_no_gap(shares: list[float], width: int) -> None:
    reached, covered = 0.0, set[int]()
    for part in shares:
        cells = Span(reached, reached + part).cells(width)
        assert len(cells) == width
        assert "█" in cells
        covered |= {i for i, cell in enumerate(cells) if cell != " "}
        reached += part
    assert covered == set(range(width))


def test_the_least_explained_results_are_shown_and_the_rest_counted() -> None:
    found = [Attribution(f"r{i}", "fp32", "c", {"input": 1.0}, i / 10) for i in range(4)]
    text = drawn(attribution_bars(found))
    assert text.index("r3  fp32") < text.index("r2  fp32")
    assert "r1" not in text
    assert "2 more results in the HTML report" in text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((), ""),
        ((1.0, 1.0), "▁▁"),
        ((1.0, 10.0, 100.0), "▁▅█"),
        ((0.0, 1.0, float("inf"), float("nan"), 2.0), "?▁??█"),
    ],
)
def test_the_sparkline_is_logarithmic_and_marks_what_it_cannot_draw(values: tuple[float, ...], line: str) -> None:
    assert Sparkline(values).cells() == line
    assert len(Sparkline(values).cells(ascii_only=True)) == len(values)


grids = st.integers(1, 40).flatmap(
    lambda n: st.lists(st.tuples(*[st.floats(0, 4) | st.just(float("nan"))] * n), min_size=1, max_size=12)
)


@given(grids, st.integers(4, 60))
def test_nothing_beyond_the_line_is_lost_when_a_strip_is_squeezed(grid: list[tuple[float, ...]], width: int) -> None:
    lines = Strip(ErrorMap("o", "fp32", "c", 0, tuple(grid))).lines(width)
    beyond = [any(not v <= 1 for v in row) for row in grid]
    assert all(len(cells) <= width for _, cells in lines)
    assert sum("█" in cells for _, cells in lines) == min(sum(beyond), 8)
    assert len(lines) == min(len(grid), 8)


def test_a_strip_leaves_the_milder_rows_out_and_says_so() -> None:
    grid = tuple((0.1 if h != 10 else 2.0,) * 16 for h in range(12))
    text = drawn(heat_strip(ErrorMap("o", "fp32", "gla/B1.T64.H12.K16.V32/fp32", 16, grid)))
    assert "  b0 h10 │████████████████│" in text
    assert "4 milder rows left out" in text
    assert "worst: b0 h10, t mod 16 = 0, share of the budget 2.00" in text


def test_the_map_of_the_first_failure_is_shown(violation: TargetResult, insight: Insight) -> None:
    assert telling_map(insight.maps[::-1], violation.properties) is insight.maps[0]
    louder = dataclasses.replace(insight.maps[1], grid=((9.0,),))
    assert telling_map((insight.maps[0], louder), ()) is louder


def test_a_map_of_the_case_before_shrinking_is_of_the_failure_as_well(
    violation: TargetResult, insight: Insight
) -> None:
    failure = violation.properties[0].failure
    assert failure is not None
    before = dataclasses.replace(insight.maps[0], case_id=failure.original_case_id)
    elsewhere = dataclasses.replace(before, result="dq")
    assert shows(before, violation.properties[0])
    assert not shows(elsewhere, violation.properties[0])
    assert not shows(before, violation.properties[2])


@pytest.mark.parametrize(
    ("case", "chunk", "columns", "says"),
    [
        ("gla/B1.T64.H1", 16, 16, "t mod 16 = 3"),
        ("gla/B1.T8.H1", 0, 8, "t = 3"),
        ("gla/B1.T64.H1", 0, 8, "piece 3 of t"),
    ],
)
def test_positions_are_named_for_what_they_are(case: str, chunk: int, columns: int, says: str) -> None:
    row = tuple(2.0 if c == 3 else 0.1 for c in range(columns))
    assert f"worst: b0 h0, {says}, share" in drawn(heat_strip(ErrorMap("o", "fp32", case, chunk, (row,))))


def test_what_is_no_rounding_has_no_waterfall() -> None:
    shares = {"output": 1.0}
    bug, honest = (
        Attribution(name, "fp32", "gla/B1.T1.H1.K4.V6/fp32", shares, left, "said")
        for name, left in (("dq", 1.0), ("o", 0.3))
    )
    alone = drawn(attribution_bars([bug]))
    assert "not from rounding in dq: it explains less than a hundredth" in alone
    assert "unexplained" not in alone
    both = drawn(attribution_bars([bug, honest]))
    assert both.count("unexplained  ") == 1
    assert "not from rounding in dq" in both
