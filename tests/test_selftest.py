"""The self-test: equivalent mutants are told from others, mistakes are caught, and what the check misses is said to survive."""

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from linverify.cli import main
from linverify.dtype import BF16, FP32
from linverify.plan import Plan
from linverify.problem import Breach, Result
from linverify.reports import selftest_json
from linverify.reports.console import plain
from linverify.reports.selftest import percent, print_selftest
from linverify.selftest import equivalence
from linverify.selftest.edit import Edit
from linverify.selftest.equivalence import Answered
from linverify.selftest.judging import judge
from linverify.selftest.originals import Originals
from linverify.selftest.run import Order, run
from linverify.selftest.score import MutantResult, Outcome, SelfTest, TargetScore, by_law
from linverify.selftest.subject import Subject, prepare, source_of

KERNEL = '''\
import os
import torch
import linverify


@linverify.kernel("linear_attention", form="recurrent", backend="torch")
def attention(q, k, v, scale=None):
    """Not normalised."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype, (q, k, v) = v.dtype, (x.float() for x in (q, k, v))
    if q.dim() == 3:
        q = q + 1
    state, out = 0.0, []
    for t in range(q.shape[1]):
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return (torch.stack(out, 1) * scale).to(dtype).contiguous()
'''


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "small_attention.py"
    path.write_text(KERNEL)
    return path


@pytest.fixture(scope="module")
def subject(target: Path) -> Subject:
    return prepare(Plan(str(target), profile="quick"))


@pytest.fixture(scope="module")
def originals(subject: Subject) -> Iterator[Originals]:
    found = Originals(subject)
    yield found
    found.close()


def edit(before: str, after: str) -> Edit:
    line = next(n for n, text in enumerate(KERNEL.splitlines(), 1) if before in text)
    column = KERNEL.splitlines()[line - 1].index(before)
    return Edit("planted", "planted", line, column, line, column + len(before), after)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("state + k", "state - k", "agreement"),
        ("* scale)", "* scale * 1.03)", "agreement"),
        ("* scale)", "* (scale + 0 * os._exit(3)))", "agreement"),
        ("x.float()", "x.bfloat16()", "agreement"),
    ],
)
def test_a_mistake_is_caught(subject: Subject, originals: Originals, before: str, after: str, kind: str) -> None:
    found = judge(subject, originals, edit(before, after))
    assert (found.outcome, found.law) == (Outcome.CAUGHT, kind), found
    assert KERNEL.splitlines()[found.line - 1] == found.diff.splitlines()[0][1:]
    assert found.case_id.startswith("linear_attention/")
    assert found.questions <= 12


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("q + 1", "q - 1"),  # never reached
        ("* scale)", "* (2 * scale / 2))"),
        (".contiguous()", ""),
        ("q[:, t, :, None, :] @ state", "(state.mT @ q[:, t, :, :, None]).mT"),  # sums in another order
    ],
)
def test_what_computes_the_same_is_equivalent(subject: Subject, originals: Originals, before: str, after: str) -> None:
    assert judge(subject, originals, edit(before, after)).outcome is Outcome.EQUIVALENT


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (".squeeze(-2)", ".squeeze(-2)[:, :, :, 0]", "IndexError"),
        ("import os", "import os.nothing", "importing small_attention.py raised"),
    ],
)
def test_what_refuses_is_neither_caught_nor_missed(
    subject: Subject, originals: Originals, before: str, after: str, said: str
) -> None:
    found = judge(subject, originals, edit(before, after))
    assert found.outcome is Outcome.REFUSED
    assert said in found.reason


def test_a_blind_check_is_seen_to_be_blind(subject: Subject) -> None:
    """Without the properties that look at values a wrong sign survives, and the report shows where."""
    kernel = subject.kernels[0]
    blind = dataclasses.replace(kernel, questions=tuple(q for q in kernel.questions if q.law.name == "contract"))
    originals = Originals(dataclasses.replace(subject, kernels=(blind,)))
    try:
        found = judge(subject, originals, edit("state + k", "state - k"))
    finally:
        originals.close()
    assert found.outcome is Outcome.SURVIVED
    assert "differs" in found.reason
    record = whole((found,))
    assert record.exit_code == 1
    console = plain()
    print_selftest(console, record)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.0 % caught: 0 of 1 mutant" in text
    assert f"kernel.py, line {found.line}" in text
    assert "-        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]" in text


def test_a_question_that_the_original_fails_convicts_no_mutant(subject: Subject, originals: Originals) -> None:
    original = next(iter(originals.by_name.values()))
    question = original.kernel.questions[0]
    assert not original.breaks(question)
    few = dataclasses.replace(original.kernel, questions=original.kernel.questions[:3])
    before, original.kernel = original.kernel, few
    original.excluded.update({q.text: True for q in few.questions})
    try:
        assert judge(subject, originals, edit("state + k", "state - k")).outcome is Outcome.SURVIVED
    finally:
        original.kernel = before
        original.excluded.clear()


def test_a_check_that_breaks_down_has_caught_nothing(
    subject: Subject, originals: Originals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("the relation does not hold between the references")

    monkeypatch.setattr("linverify.selftest.judging.ask", broken)
    found = judge(subject, originals, edit("state + k", "state - k"))
    assert found.outcome is Outcome.SURVIVED
    assert found.reason.startswith("the check broke down")


def test_each_property_has_its_say_where_that_is_asked(subject: Subject) -> None:
    kernel, laws = subject.kernels[0], ("agreement", "contract", "linearity")
    few = dataclasses.replace(kernel, questions=tuple(q for q in kernel.questions if q.law.name in laws))
    originals = Originals(dataclasses.replace(subject, kernels=(few,)))
    try:
        found = judge(subject, originals, edit("* scale)", "* scale + 0.5)"), each=True)
    finally:
        originals.close()
    assert found.law == "agreement"
    assert sorted(found.laws) == ["agreement", "linearity"]  # a constant added is not linear; dtype and shape are right
    (first, second) = by_law(whole((found,)).targets)
    assert (first.law, first.first, first.alone, first.all) == ("agreement", 1, 0, 1)
    assert (second.law, second.first, second.alone, second.all) == ("linearity", 0, 0, 1)
    console = plain()
    print_selftest(console, dataclasses.replace(whole((found,)), each=True))
    assert "in all" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_is_alike_alone_and_among_several_and_goes_on_where_it_ended(target: Path) -> None:
    order = Order(Plan(str(target), profile="quick"), mutants=4)
    heard: list[MutantResult] = []

    def told(_: TargetScore, result: MutantResult | None) -> None:
        heard.extend([] if result is None else [result])

    def outcomes(score: TargetScore) -> list[tuple[str, str, str, str]]:
        return [(m.name, m.outcome, m.law, m.case_id) for m in score.mutants]

    first = run(order, workers=1, expired=lambda: len(heard) >= 2, known={}, told=told)
    assert (len(first.mutants), first.unjudged) == (2, 2)
    assert whole(first.mutants, unjudged=2).exit_code == 3
    rest = run(order, workers=1, expired=lambda: False, known={first.source: first}, told=told)
    assert (len(heard), rest.unjudged) == (4, 0)
    assert rest.mutants[:1] == first.mutants[:1]
    several = run(order, workers=2, expired=lambda: False, known={}, told=told)
    assert outcomes(several) == outcomes(rest)
    # no time at all: nothing is drawn, and nothing that is known is lost
    count = len(heard)
    assert run(order, workers=1, expired=lambda: True, known={first.source: first}, told=told) == first
    none = run(order, workers=1, expired=lambda: True, known={}, told=told)
    assert (none.mutants, none.unjudged, len(heard)) == ((), 4, count)
    assert whole((), unjudged=4).exit_code == 3


def test_the_time_holds_for_several_processes(target: Path) -> None:
    heard: list[MutantResult] = []

    def told(_: TargetScore, result: MutantResult | None) -> None:
        heard.extend([] if result is None else [result])

    order = Order(Plan(str(target), profile="quick"), mutants=40)
    score = run(order, workers=2, expired=lambda: len(heard) >= 1, known={}, told=told)
    assert 1 <= len(score.mutants) <= 4  # those that were under way, and no more
    assert len(score.mutants) + score.unjudged == 40


def test_the_command_records_what_it_found_and_resumes(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "score.json"
    words = ["selftest", str(target), "--profile", "quick", "--mutants", "4", "--json", str(record)]
    code = main(words)
    found = selftest_json.read(record)
    assert code == found.exit_code
    assert len(found.targets[0].mutants) == 4
    assert "caught" in capsys.readouterr().out
    again = [*words[:-3], "5", "--json", str(tmp_path / "more.json"), "--resume", str(record)]
    assert main(again) == selftest_json.read(tmp_path / "more.json").exit_code
    more = selftest_json.read(tmp_path / "more.json").targets[0]
    assert len(more.mutants) == 5
    assert main([*words, "--resume", str(record), "--seed", "1"]) == 2
    assert "other options" in capsys.readouterr().err


def test_an_interrupted_run_leaves_a_whole_record(target: Path, tmp_path: Path) -> None:
    record = tmp_path / "score.json"
    threading.Timer(6.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    code = main(["selftest", str(target), "--profile", "quick", "--json", str(record)])
    assert code == 130
    assert json.loads(record.read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.py"], "no such file"),
        (["--op", "gla"], "expected a target"),
        (["{target}", "--resume", "{target}"], "not a record of a self-test"),
        (["{target}", "--json", "/nowhere/score.json"], "/nowhere"),
        (["torch._C:matmul", "--op", "gla"], "expected a module with a Python source file"),
    ],
)
def test_bad_requests_are_one_line(
    words: list[str], said: str, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selftest", *(w.format(target=target) for w in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_module_is_found_without_importing_it() -> None:
    assert source_of("linverify.impls.torch_naive").name == "torch_naive.py"
    assert source_of("xml.dom.minidom").name == "minidom.py"


def answered(**tensors: torch.Tensor) -> Answered:
    o = tensors.pop("o")
    return Answered(Result(o, grads=tensors))


def test_numbers_are_compared_by_half_their_digits() -> None:
    o = torch.tensor([1.0, 2.0**-30, 0.0], dtype=torch.float64)
    same = equivalence.in_exact_arithmetic
    assert same(answered(o=o), answered(o=o * (1 + 2.0**-40))) == ""
    assert same(answered(o=o), answered(o=o + 2.0**-52)) == ""  # of the largest element
    assert same(answered(o=o), answered(o=o * (1 + 2.0**-20))).startswith("o differs")
    assert same(answered(o=o), answered(o=o + torch.tensor([0.0, 2.0**-38, 0.0]))).startswith("o differs")
    assert same(answered(o=o, q=o), answered(o=o, q=o * torch.nan)).startswith("dq differs")
    assert same(answered(o=o * torch.nan), answered(o=o * torch.nan)) == ""


def test_what_is_no_number_is_seen() -> None:
    o = torch.ones(2)
    assert equivalence.visible(answered(o=o), answered(o=o)) == ""
    assert equivalence.visible(answered(o=o), answered(o=o.double())) == "a result has another shape or dtype"
    assert equivalence.visible(answered(o=o), Answered(None, "crash")) == "crash; without o"
    changed = Answered(Result(o, breaches=(Breach("mutated_input", "q"), Breach("not_contiguous", "o"))))
    assert equivalence.visible(answered(o=o), changed) == "mutated_input"


def test_accuracy_is_lost_in_half_of_the_cases_or_not_at_all() -> None:
    exact = {"o": torch.linspace(1, 2, 64, dtype=torch.float64)}
    single = answered(o=exact["o"].float())
    half = answered(o=exact["o"].bfloat16().float())
    growth = equivalence.coarsened(single, half, exact, FP32)
    assert growth is not None
    assert growth > 1000
    assert equivalence.coarsened(single, single, exact, FP32) is None
    usual = equivalence.coarsened(single, half, exact, BF16)  # what operands of the case's own dtype cost
    assert usual is not None
    assert usual <= 1.0
    near = equivalence.coarsened(single, answered(o=exact["o"].float() * (1 + 2**-23)), exact, FP32)
    assert near is not None
    assert near <= 1.0
    assert equivalence.coarser([growth] * 3)
    assert not equivalence.coarser([growth] * 2)
    assert not equivalence.coarser([growth, near, near])
    infinite = answered(o=torch.full((64,), torch.inf))
    assert equivalence.overflows(single, infinite) == "o is not finite"


def test_a_share_that_is_not_all_never_reads_as_all() -> None:
    assert (percent(1.0), percent(0.99999), percent(0.5)) == ("100 %", "99.9 %", "50.0 %")


def whole(mutants: tuple[MutantResult, ...], unjudged: int = 0) -> SelfTest:
    score = TargetScore("kernel.py", ("linear_attention",), "kernel.py", "0", mutants, unjudged)
    return SelfTest("0", {}, "", 0, "quick", (score,))
