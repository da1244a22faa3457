"""Several processes share a target's laws: the verdicts, the cases and the records are those of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from linverify import cli, registry, team
from linverify.bench import Bench, Memory
from linverify.case import parse_case
from linverify.errors import CannotCheckError
from linverify.fingerprint import fingerprint
from linverify.judge import Judge
from linverify.ledger import Ledger, merged
from linverify.notes import settled_note
from linverify.plan import Plan
from linverify.problem import Fault, Program, Result
from linverify.reports import json_file
from linverify.team import Team
from linverify.verdict import PropertyResult, Refusal, TargetResult
from tests.test_session import Heard

KERNELS = Path(__file__).with_name("session_kernels.py")
LAWS = ("agreement", "contract", "repeated_call")
# These search for no worse case, which the clock would end.
COUNTED = ("contract", "repeated_call", "causality_values", "head_independence")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("kernels.py").write_text(KERNELS.read_text())
    Path("broken.py").write_text("raise RuntimeError('not today')\n")
    return tmp_path


def words(*targets: str, workers: int, laws: tuple[str, ...] = LAWS) -> list[str]:
    asked = [w for law in laws for w in ("--property", law)]
    plain = ["--op", "gla", "--profile", "quick", "--dtype", "fp32", "--device", "cpu", "--json", f"{workers}.json"]
    return ["check", *targets, *plain, *asked, "-n", str(workers)]


def told(workers: int) -> list[tuple[object, ...]]:
    """What a record says that does not depend on the clock: a search that the clock ends is left out."""
    report = json_file.read(Path(f"{workers}.json"))
    return [
        (
            r.target,
            r.verdict,
            r.file,
            r.line,
            [(p.name, p.status, p.cases * (p.name in COUNTED), p.refused, drawn(p)) for p in r.properties],
            {(b.result, b.dtype) for b in r.budget},
            r.refusals,
        )
        for r in report.results
    ]


def drawn(found: PropertyResult) -> str:
    return found.failure.original_case_id if found.failure else ""


def test_two_processes_find_what_one_finds(kernels: Path) -> None:
    laws = (*LAWS, "causality_values", "head_independence")
    targets = ("kernels.py::ragged", "kernels.py::single")
    assert cli.main(words(*targets, workers=1, laws=laws)) == 1
    assert cli.main(words(*targets, workers=2, laws=laws)) == 1
    assert told(1) == told(2)
    (alone, _), (ragged, _) = (json_file.read(Path(f"{n}.json")).results for n in (1, 2))
    assert alone.synthesis is not None
    assert ragged.synthesis is not None
    assert len(alone.synthesis.against) >= 2, "what holds on the failing case, whoever was asked"
    assert ragged.synthesis.against == alone.synthesis.against
    failure = ragged.properties[0].failure
    assert failure is not None
    assert Path(failure.reproducer).is_file()
    assert ragged.seconds["total"] > 0


def test_every_decorated_function_of_a_file_is_asked(kernels: Path) -> None:
    heard = Heard()
    plan = Plan("kernels.py", properties=LAWS[:2], profile="quick", dtypes=("fp32",), reproducers=None, workers=2)
    with Team(2) as two:
        results = two.check(plan, heard)
    assert len(results) >= 2
    assert [r.target for r in results] == [r.target for r in heard.targets]
    assert all([p.name for p in r.properties] == list(LAWS[:2]) for r in results)
    assert heard.cases


@pytest.mark.parametrize("targets", [0, 1])
def test_who_is_not_asked_any_more_ends_while_the_record_is_made(kernels: Path, targets: int) -> None:
    left: list[int] = []

    class Counting(Heard):
        def target_finished(self, result: TargetResult) -> None:
            left.append(len(team._examiners))

    plan = Plan("kernels.py", properties=LAWS[:1], profile="quick", dtypes=("fp32",), reproducers=None, workers=2)
    with Team(2, targets=targets) as team:
        results = team.check(plan, Counting())
        gone = [m._process for m in team._leaving]  # type: ignore[attr-defined]
        assert len(team._examiners) == (0 if targets else 2)
    assert left == [*[2] * (len(results) - 1), 0 if targets else 2]
    assert all(p.returncode is not None for p in gone)
    assert len(gone) == 2 * targets


def test_a_target_that_cannot_be_checked_does_not_stop_the_next(
    kernels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words("broken.py::f", "kernels.py::good", workers=2, laws=LAWS[:1])) == 3
    first, second = json_file.read(Path("2.json")).results
    assert (first.verdict, second.verdict) == ("unchecked", "pass")
    assert "not today" in first.reason
    assert cli.main(words("kernels.py::nobody", workers=2, laws=LAWS[:1])) == 2
    assert "nobody" in capsys.readouterr().err


def test_a_process_of_the_session_that_ends_leaves_the_target_unchecked(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()

    def kill(name: str) -> None:
        two._examiners[1]._process.kill()

    monkeypatch.setattr(heard, "property_started", kill)
    plan = Plan("kernels.py::good", "gla", properties=LAWS, profile="quick", dtypes=("fp32",), reproducers=None)
    with Team(2) as two, pytest.raises(CannotCheckError, match=r"processes ended \(killed by signal 9"):
        two.check(plan, heard)


def test_an_error_of_ours_comes_with_its_traceback(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Team(1) as one:
        one._start(Plan("kernels.py::good", "gla"))
        one._greeted()
        with pytest.raises(RuntimeError, match=r"KeyError.*\n.*Traceback"):
            one._all("no such question")


@pytest.mark.parametrize("seconds", [0.0, 6.0])
def test_ctrl_c_leaves_a_whole_record_and_no_process(kernels: Path, seconds: float) -> None:
    program = "import sys; from linverify.cli import main; print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
    asked = words("kernels.py::good", workers=2)
    asked = [w for w in asked if w not in ("quick", *LAWS, "--property", "--profile")]
    run = subprocess.Popen(
        [sys.executable, "-c", program, *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "LINVERIFY_MARK": f"{kernels}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    begun = time.monotonic() + 60
    while len(marked(str(kernels))) < 2 and time.monotonic() < begun:  # its examiners: the check has begun
        time.sleep(0.05)
    time.sleep(seconds)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors.decode()
    assert b"Traceback" not in errors
    record = json.loads(Path("2.json").read_text())
    assert json_file.from_json(record).results[0].reason == "interrupted"
    deadline = time.monotonic() + 10
    while (left := marked(str(kernels))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def marked(value: str) -> list[int]:
    """Processes whose environment holds the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"LINVERIFY_MARK={value}".encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_a_wrong_number_of_processes_is_a_usage_error(
    kernels: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", "kernels.py::good", "--op", "gla", "-n", number]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_project_may_say_how_many(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pyproject.toml").write_text("[tool.linverify]\nworkers = 3\n")
    plans: list[Plan] = []

    def recorded(self: Team, plan: Plan, listener: object) -> list[TargetResult]:
        plans.append(plan)
        return []

    monkeypatch.setattr(team.Team, "check", recorded)
    cli.main(["check", "kernels.py::good", "--op", "gla", "--device", "cpu"])
    assert [p.workers for p in plans] == [3]


def test_what_several_have_seen_is_put_together() -> None:
    small, large = (parse_case(f"gla/B1.T{t}.H1.K4.V6/fp32") for t in (3, 40))
    first = Ledger(
        usage={("o", "fp32"): (3, 0.4, "fp32")},
        worst={("o", "fp32"): (0.4, small)},
        bounds=(1.0,),
        refusals={"E: no": Refusal("E", "no", large.id, 2)},
        cases=frozenset({"a", "b"}),
        seconds={"target": 1.0},
        settled={"screened": 3, "realised": 1},
    )
    second = Ledger(
        usage={("o", "fp32"): (2, 0.7, "fp32"), ("dq", "fp32"): (1, 0.1, "fp32")},
        worst={("o", "fp32"): (0.7, large)},
        bounds=(2.0,),
        single=True,
        refusals={"E: no": Refusal("E", "no", small.id, 1)},
        cases=frozenset({"b", "c"}),
        seconds={"target": 2.0, "judge": 1.0},
        settled={"screened": 2, "analytic": 4},
    )
    both = merged([first, second])
    assert both.usage == {("o", "fp32"): (5, 0.7, "fp32"), ("dq", "fp32"): (1, 0.1, "fp32")}
    assert both.worst == {("o", "fp32"): (0.7, large)}
    assert both.refusals == {"E: no": Refusal("E", "no", small.id, 3)}
    assert (both.bounds, both.single, both.cases) == ((1.0, 2.0), True, frozenset("abc"))
    assert both.seconds == {"target": 3.0, "judge": 1.0}
    assert both.settled == {"screened": 5, "realised": 1, "analytic": 4}
    assert settled_note(both.settled) == [
        "9 of 10 results were settled by formulas for rounding; simulated correct kernels judged the rest"
    ]
    assert settled_note({"screened": 0, "realised": 0}) == []
    assert merged([]) == Ledger()


def test_each_examiner_has_a_gpu_of_its_own_and_its_part_of_the_memory() -> None:
    asked: list[Plan] = []

    class Recording:
        connection: "Connection[Any, Any]"
        greeted = False

        def ask(self, name: str, *rest: object) -> None:
            if name == "plan":
                assert isinstance(rest[0], Plan)
                asked.append(rest[0])

        def receive(self) -> tuple[str, object]:
            before, self.greeted = self.greeted, True
            return "answer", None if before else fingerprint()

        def kill(self) -> None: ...

        def close(self) -> None: ...

    with Team(3, ("cuda:0", "cuda:1", "cuda:0"), start=Recording) as three:
        assert list(three.check(Plan("k.py::f", device="cuda:0", workers=3), Heard())) == []
    assert [(p.device, p.share) for p in asked] == [("cuda:0", 0.25), ("cuda:1", 1.0), ("cuda:0", 0.25)]
    asked.clear()
    with Team(2, start=Recording) as two:
        two.check(Plan("k.py::f", device="cpu", workers=2), Heard())
    assert [(p.device, p.share) for p in asked] == [("cpu", 1.0)] * 2


@pytest.mark.parametrize("room", [True, False])
def test_a_share_of_the_memory_that_does_not_do_is_no_verdict(room: bool) -> None:
    """A target that runs out beside others is asked again with all that is free, and only then out of memory."""
    shares: list[float] = []

    class Small:
        share = 0.25

        def run(self, _: Program, **__: float) -> tuple[Result, ...]:
            shares.append(self.share)
            if self.share < 1 or not room:
                raise Fault("out_of_memory", "no room")
            return (Result(None),)

        def restart(self) -> None:
            shares.append(-self.share)

    gla = registry.operator("gla")
    bench = Bench(Small(), gla, Judge(gla, "cpu"), "cuda:0", {}, Memory(1))  # type: ignore[arg-type]
    if room:
        assert len(bench.run(Program(()), at_least=1.0)) == 1
    else:
        with pytest.raises(Fault, match="other workers"):
            bench.run(Program(()), at_least=1.0)
    assert shares == [0.25, 1.0, -0.25]
