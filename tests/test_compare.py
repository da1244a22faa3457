"""``linverify compare``: who is nearer, where, and whether the difference is rounding or a bug."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from linverify import cli
from linverify.comparison import Comparison, Measurement, Row, Side, decided, overall, regions, rows
from linverify.reports.comparison import print_comparison

KERNELS = Path(__file__).with_name("session_kernels.py")
MORE = f"""
import sys
sys.path.insert(0, {str(KERNELS.parent)!r})
import torch
from session_kernels import good

def bf16_state(q, k, v, g, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    S = torch.zeros(*q.shape[::2], q.shape[3], v.shape[3])
    out = []
    for t in range(q.shape[1]):
        S = S * g[:, t, :, :, None].exp() + k[:, t, :, :, None].float() * v[:, t, :, None].float()
        S = S.to(v.dtype).float()
        out.append((scale * q[:, t, :, :, None].float() * S).sum(-2))
    return torch.stack(out, 1).to(v.dtype)

def rounded_again(q, k, v, g, scale=None):
    o = good(q, k, v, g, scale)[0]
    return o * (1 - 2**-24 * (torch.sin(1000 * o.detach()) > 0))  # half a place more than o's own rounding

def late(q, k, v, g, scale=None):
    o = good(q, k, v, g, scale)[0]
    return torch.cat([o[:, :64], 1.5 * o[:, 64:]], 1)
"""


def asked(
    capsys: pytest.CaptureFixture[str], first: str, second: str, *options: str, op: str = "gla"
) -> tuple[int, str]:
    code = cli.main(["compare", first, second, "--op", op, "--device", "cpu", "--profile", "quick", *options])
    streams = capsys.readouterr()
    return code, " ".join((streams.out + streams.err).split())


@pytest.fixture
def more(tmp_path: Path) -> str:
    path = tmp_path / "more.py"
    path.write_text(MORE)
    return str(path)


def test_the_same_kernel_twice_differs_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = asked(capsys, f"{KERNELS}::good", f"{KERNELS}::good", "--dtype", "fp32")
    assert code == 0
    assert "what separates them is rounding. Their errors are the same in every case." in text
    assert "where they differ most" not in text


def test_a_bug_is_told_from_rounding_and_its_region_is_named(capsys: pytest.CaptureFixture[str], more: str) -> None:
    code, text = asked(capsys, f"{KERNELS}::good", f"{more}::late", "--dtype", "fp32")
    assert code == 1
    assert "B leaves the budget, A does not: the difference is a bug in B, not rounding." in text
    table = text.partition("where they differ most")[2]
    assert "T=65-256" in table
    assert "T=17-64" not in table
    assert "only one of the two takes final state, initial state: not asked" in text
    assert f"linverify check {more}::late --op gla" in text
    swapped = asked(capsys, f"{more}::late", f"{KERNELS}::good", "--dtype", "fp32")
    assert swapped[0] == 1
    assert "A leaves the budget, B does not: the difference is a bug in A, not rounding." in swapped[1]


def test_rounding_that_costs_accuracy_is_seen_without_being_a_bug(
    capsys: pytest.CaptureFixture[str], more: str
) -> None:
    code, text = asked(capsys, f"{more}::rounded_again", f"{KERNELS}::good", "--dtype", "fp32", "--profile", "standard")
    assert code == 0
    assert "Both stay within the budget: what separates them is rounding. B is more accurate on the whole" in text


def test_where_both_are_wrong_nothing_is_said_of_which_is_nearer(capsys: pytest.CaptureFixture[str], more: str) -> None:
    code, text = asked(capsys, f"{more}::late", f"{KERNELS}::ragged", "--dtype", "fp32")
    assert code == 1
    assert "Both leave the budget" in text
    assert "more accurate" not in text


def test_a_crash_is_a_bug_and_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = asked(capsys, f"{KERNELS}::good", f"{KERNELS}::segfault", "--dtype", "fp32")
    assert code == 1
    assert "bug in B" in text
    assert "crashed" in text


@pytest.mark.parametrize(
    ("second", "code", "message"),
    [
        (
            "refuses",
            3,
            "B could not be checked: no case was answered by both: ValueError: no kernel for this head size",
        ),
        ("needs_more", 2, "page_table"),
        ("nowhere", 2, "nowhere"),
    ],
)
def test_what_cannot_be_compared_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], second: str, code: int, message: str
) -> None:
    found, text = asked(capsys, f"{KERNELS}::good", f"{KERNELS}::{second}", "--dtype", "fp32")
    assert found == code
    assert message in text


def test_refused_cases_are_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = asked(capsys, f"{KERNELS}::good", f"{KERNELS}::refuses_long", "--dtype", "fp32")
    assert code == 0
    assert "left out: AssertionError: at most 16 tokens" in text
    assert "refused" in text


def test_two_operators_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["linverify.impls.torch_recurrent:gla", "linverify.impls.torch_recurrent:kda", "--device", "cpu"]
    assert cli.main(["compare", *arguments]) == 2
    assert "two kernels of one operator can be compared" in capsys.readouterr().err
    assert cli.main(["compare", "linverify.impls.torch_recurrent", arguments[0], "--device", "cpu"]) == 2
    assert "name one" in capsys.readouterr().err


def measured(
    first: float, second: float, case: int = 0, *, result: str = "o", regime: str = "unit", share: float = 0.5
) -> Measurement:
    return Measurement(
        f"case{case}", (("regime", regime), ("T", "1-16")), result, "fp32", (first, second), (share, 0.25)
    )


@pytest.mark.parametrize(
    ("errors", "ratio"),
    [((1.0, 2.0), 0.5), ((0.0, 0.0), 1.0), ((0.0, 1.0), 0.0), ((1.0, 0.0), math.inf), ((math.inf, math.inf), 1.0)],
)
def test_a_ratio_has_a_value_for_zero_and_infinity(errors: tuple[float, float], ratio: float) -> None:
    assert measured(*errors).ratio == ratio


def test_a_row_takes_the_middle_case_and_counts_who_is_nearer() -> None:
    (row,) = rows([measured(1, 2, 0), measured(1, 4, 1), measured(3, 1, 2), measured(1, 1, 3, share=0.75)])
    assert (row.names, row.cases, row.nearer, row.worst) == (("o", "fp32"), 4, (2, 1), (0.75, 0.25))
    assert row.ratio == pytest.approx(math.sqrt(0.5))
    assert row.case_id == "case1"
    (odd,) = rows([measured(0, 1, 0), measured(1, 0, 1)])
    assert odd.ratio in (0.0, math.inf)


def test_regions_are_what_tells_cases_apart_the_most_different_first() -> None:
    found = regions(
        [
            *(measured(1, 1.5, i, regime="unit") for i in range(2)),
            *(measured(8, 1, i, regime="range") for i in range(2, 4)),
            measured(100, 1, 4, regime="alone"),
        ]
    )
    assert [r.names for r in found] == [("regime", "range"), ("regime", "unit")]


def test_one_target_is_more_accurate_only_beyond_chance() -> None:
    def row(a: int, b: int) -> Row:
        return Row(("o", "fp32"), a + b, 0.5, (a, b), (0.5, 0.5), "case")

    assert row(5, 0).chance == pytest.approx(2 / 32)
    assert row(6, 0).chance == pytest.approx(2 / 64)
    assert row(3, 3).chance == 1.0
    assert decided([row(5, 0)]) == ()
    assert decided([row(6, 0)]) == (row(6, 0),)
    assert decided([row(6, 0), row(3, 3)]) == (), "two rows: each must show twice as much"
    assert decided([row(0, 9), row(3, 3)]) == (row(0, 9),)
    assert row(0, 9).leader == 1


def test_the_report_at_80_columns() -> None:
    found = [measured(1, 2, i, regime="range" if i % 2 else "unit") for i in range(8)]
    record = Comparison(
        "gla",
        (Side("a.py::f", "pass", worst=0.5), Side("b.py::f", "violation", "", 25.0, 2, 1, "gla/B1", "dk is zero")),
        8,
        overall(found),
        rows(found),
        regions(found),
        ("something",),
    )
    stream = io.StringIO()
    print_comparison(Console(file=stream, width=80, no_color=True, force_terminal=False), record)
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == REPORT.splitlines()
    assert record.exit_code == 1


REPORT = """\
gla: 8 cases answered by both

A  PASS  a.py::f
   worst share 0.50

B  VIOLATION  b.py::f
   worst share 25.0, 2 cases beyond the budget, 1 case refused
   gla/B1
   dk is zero
   next: linverify check b.py::f --op gla

B leaves the budget, A does not: the difference is a bug in B, not rounding.

result   dtype   cases   error A/B   A nearer   B   share of A      B
─────────────────────────────────────────────────────────────────────
o        fp32        8         0.5          8   0         0.50   0.25

where they differ most   cases   error A/B   A nearer   B   share of A      B
─────────────────────────────────────────────────────────────────────────────
regime=unit                  4         0.5          4   0         0.50   0.25
regime=range                 4         0.5          4   0         0.50   0.25
farthest apart  case0

note: something
"""
