"""The worker survives whatever a target does, and says what it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from linverify import fingerprint, processes
from linverify.binding import bind
from linverify.errors import CannotCheckError, UsageError
from linverify.problem import Call, Fault, Program, Refused
from linverify.runner import Runner
from linverify.target import parse
from tests.worker_harness import KERNELS, OPERATOR, Everything, problem


@pytest.fixture(scope="module")
def target():
    everything = Everything()
    yield everything
    everything.close()


def test_exception_is_refused_and_the_process_survives(target):
    target.ask("counts_calls")
    runner = target.runner("raises")
    for _ in range(2):
        with pytest.raises(Refused, match=r"^ValueError: head size 16 only$"):
            target.ask("raises")
    assert runner.starts == 1
    with pytest.raises(Refused) as caught:
        target.ask("asserts")
    assert (caught.value.kind, caught.value.message) == ("AssertionError", "")
    assert target.ask("counts_calls")[0].o[0, 0, 0, 0] == 2


def test_who_stands_by_answers_the_first_call(target):
    runner = target.runner("counts_calls")
    runner.restart()
    before = runner.starts
    runner.stand_by()
    waiting = runner._worker
    assert runner.starts == before + 1
    assert target.ask("counts_calls")[0].o[0, 0, 0, 0] == 1
    assert runner.starts == before + 1
    assert runner._worker is waiting


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("segfault", "crash", "killed by SIGSEGV (segmentation fault)"),
        ("abort", "crash", "SIGABRT"),
        ("killed", "crash", "SIGKILL"),
        ("garbage", "crash", "broke into the worker's pipes"),
        ("sys_exit", "exit", "SystemExit with 3"),
        ("os_exit", "exit", "exit code 5"),
        ("interrupt", "exit", "KeyboardInterrupt"),
        ("memory_error", "out_of_memory", "MemoryError"),
    ],
)
def test_fault(target, name, kind, words):
    runner = target.runner(name)
    for attempt in (runner.starts + 1, runner.starts + 2):
        with pytest.raises(Fault) as caught:
            target.ask(name)
        assert caught.value.kind == kind
        assert words in caught.value.message
        assert runner.starts == attempt
    if name == "segfault":
        assert "about to crash" in caught.value.log
        assert "worker_kernels.py" in caught.value.log


def test_runaway_allocation_fails_in_the_worker_alone():
    # Filling half of a large machine takes a minute; a limit of 512 MB shows the same.
    with Runner(parse(f"{KERNELS}::runaway"), device="cpu", env={"LINVERIFY_WORKER_BYTES": str(1 << 29)}) as runner:
        runner.bind(bind(OPERATOR, runner.describe().functions[0]), OPERATOR)
        with pytest.raises(Fault) as caught:
            runner.run(Program((Call(problem()),)), time_limit=30)
    assert caught.value.kind == "out_of_memory"


@pytest.mark.parametrize("name", ["hang", "endless_log", "hang_without_pipes", "forks_and_hangs"])
def test_hang_is_ended(target, name):
    group = _group_of_next_worker(target.runner(name))
    started = time.monotonic()
    with pytest.raises(Fault) as caught:
        target.ask(name, time_limit=2.0)
    assert caught.value.kind == ("crash" if name == "hang_without_pipes" else "hang")
    assert time.monotonic() - started < 8
    _assert_gone(group)


def test_a_compiler_s_time_is_not_spent_on_waiting_for_the_gpu(target):
    program = Program((Call(problem()),))
    assert target.runner("launches").run(program, time_limit=60, patience=1.0)[0].o is not None
    runner = target.runner("launches_for_ever")
    for patience, least in ((1.0, 1), (None, 3)):
        started = time.monotonic()
        with pytest.raises(Fault, match="no answer after") as caught:
            runner.run(program, time_limit=60 if patience else 3, patience=patience)
        assert caught.value.kind == "hang"
        assert least <= time.monotonic() - started < 20


def test_a_process_that_no_signal_ends_is_waited_for_once(monkeypatch):
    """As one whose GPU kernel the driver cannot stop."""
    with Runner(parse(f"{KERNELS}::hang"), device="cpu") as runner:
        runner.bind(bind(OPERATOR, runner.describe().functions[0]), OPERATOR)
        with monkeypatch.context() as deaf:
            for name in ("kill", "killpg"):
                deaf.setattr(processes.os, name, lambda *_: None)
            deaf.setattr(processes, "_PATIENCE", 0.5)
            group, started = _group_of_next_worker(runner), time.monotonic()
            with pytest.raises(Fault, match="no answer after"):
                runner.run(Program((Call(problem()),)), time_limit=1.0)
            assert 6 <= time.monotonic() - started < 10  # one second, and ten times the patience
        os.killpg(group, signal.SIGKILL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_endless_kernel_hangs_from_its_launch_on():
    everything = Everything(device="cuda:0")
    runner, started = everything.runner("spins_on_the_gpu"), time.monotonic()
    try:
        with pytest.raises(Fault) as caught:
            runner.run(Program((Call(problem()),)), time_limit=600, patience=3.0)
        assert caught.value.kind == "hang"
        assert time.monotonic() - started < 60
    finally:
        everything.close()


def _group_of_next_worker(runner: Runner) -> int:
    worker = runner._ready()
    worker._wait_for_pid()
    return worker.pid


def _assert_gone(group: int) -> None:
    """A killed grandchild ends when the kernel next schedules it, which a busy machine may put off."""
    deadline = time.monotonic() + 10
    while (living := _living(group)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert living == []


def _living(group: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group, *_ = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


def test_prints_reach_the_log_alone(target, capfd):
    (result,) = target.ask("prints")
    assert torch.equal(result.o, target.ask("linear")[0].o)
    assert "printed by the kernel" in target.runner("prints")._worker.take_log()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_wrapped_function_shows_its_signature(target):
    (info,) = target.runner("decorated").describe().functions
    assert [p.name for p in info.parameters][:4] == ["q", "k", "v", "scale"]
    assert info.line > 0


def test_declared_functions_are_found():
    with Runner(parse(str(KERNELS)), device="cpu") as runner:
        description = runner.describe()
    assert [f.name for f in description.functions] == ["good", "decorated"]
    (claim,) = description.functions[0].claims
    assert (claim.operator, claim.form, claim.claims) == ("linear_attention", "naive", {"fp32": "ieee"})
    assert not description.uses_triton


@pytest.mark.parametrize(
    ("source", "function", "error", "words"),
    [
        ("import no_such_module", None, CannotCheckError, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('bad\\nworse')", None, CannotCheckError, "raised ValueError: bad"),
        ("import sys; sys.exit(0)", None, CannotCheckError, "raised SystemExit"),
        ("import os; os._exit(4)", None, CannotCheckError, "exit code 4"),
        ("import os; os.abort()", None, CannotCheckError, "SIGABRT"),
        ("def gla(q): pass", None, UsageError, "decorate one, or name one"),
        ("def gla(q): pass", "glu", UsageError, "did you mean 'gla'?"),
        ("gla = 3", "gla", UsageError, "expected a function"),
        ("class gla: pass", "gla", UsageError, "expected a function"),
    ],
)
def test_what_cannot_be_described(tmp_path, source, function, error, words):
    file = tmp_path / "kernels.py"
    file.write_text(source)
    with Runner(parse(f"{file}::{function}" if function else str(file)), device="cpu") as runner:
        for _ in range(2):
            with pytest.raises(error) as caught:
                runner.describe()
            assert words in str(caught.value)
            assert "\n" not in str(caught.value)


def test_unknown_module_is_a_usage_error():
    with (
        Runner(parse("no_such_package.ops:gla"), device="cpu") as runner,
        pytest.raises(UsageError, match="no module named"),
    ):
        runner.describe()


def test_unknown_autotune_mode_is_a_usage_error():
    with (
        Runner(parse(str(KERNELS)), device="cpu", autotune="all") as runner,
        pytest.raises(UsageError, match="--autotune all"),
    ):
        runner.describe()


def test_handshake_with_another_linverify(monkeypatch):
    monkeypatch.setattr(processes, "fingerprint", lambda: {"path": "/elsewhere", "version": "9", "hash": "0"})
    with (
        Runner(parse(str(KERNELS)), device="cpu", env={"LINVERIFY_TEST": "handshake"}) as runner,
        pytest.raises(CannotCheckError, match="runs another linverify: path"),
    ):
        runner.describe()


def test_the_handshake_covers_what_a_worker_runs():
    statements = {
        "errors",
        "fingerprint",
        "implementation",
        "mechanism",
        "operator",
    }  # of what is held to, or of this list
    program = "import sys, linverify.worker; print(*(m for m in sys.modules if m.startswith('linverify.')))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert {name.removeprefix("linverify.") for name in said.split()} - statements == set(fingerprint._SHARED)


def test_run_before_bind():
    with Runner(parse(str(KERNELS)), device="cpu") as runner, pytest.raises(UsageError, match="bind"):
        runner.run(Program((Call(problem()),)), time_limit=1)


def test_nothing_is_left_behind(target):
    def counts():
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def session():
        with Runner(parse(str(KERNELS) + "::segfault"), device="cpu") as runner:
            runner.bind(bind(OPERATOR, runner.describe().functions[0]), OPERATOR)
            for _ in range(2):
                with pytest.raises(Fault):
                    runner.run(Program((Call(problem()),)), time_limit=10)
        runner.close()

    session()
    before = counts()
    for _ in range(3):
        session()
    assert counts() == before


def test_children_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "session.py"
    script.write_text(
        f"""
import sys, time
sys.path.insert(0, {str(KERNELS.parent.parent)!r})
from tests.worker_harness import Everything
runner = Everything().runner("hang")
worker = runner._ready()
worker._wait_for_pid()
print(runner._host.pid or 0, worker.pid, flush=True)
time.sleep(3600)
"""
    )
    session = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    pids = [int(p) for p in session.stdout.readline().split()]
    assert Path(f"/proc/{pids[1]}").exists()
    session.kill()
    session.wait()
    session.stdout.close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{p}").exists() for p in pids if p) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [p for p in pids if p and Path(f"/proc/{p}").exists()] == []
