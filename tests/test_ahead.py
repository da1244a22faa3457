"""Processes that start before they are needed: taken when they are, shared by examiners, and killed when nobody takes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from linverify import ahead, processes
from linverify.compiled import Compiled
from linverify.runner import Runner
from linverify.target import parse

KERNELS = Path(__file__).with_name("session_kernels.py")
TARGET = f"{KERNELS}::good"


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=ahead.ours_first(os.environ)
    ).stdout


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    assert not ahead._servers
    assert not ahead._examiners


def test_foreseeing_imports_no_torch() -> None:
    assert run("import sys; from linverify import ahead; ahead.foresee(['list']); print('torch' in sys.modules)") == (
        "False\n"
    )


def test_what_a_check_needs_is_started_and_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_servers", {})
    ahead.foresee(["check", TARGET, "--device", "cpu"])
    (started,) = ahead._servers.values()
    with Runner(parse(TARGET), device="cpu") as runner:
        assert [f.name for f in runner.describe().functions] == ["good"]
    (server,) = processes._servers.values()
    assert isinstance(server, processes.Server)
    assert server._process is started.process
    server.close()


@pytest.mark.parametrize(
    "words",
    [
        ["check", "no_such_file.py"],
        ["check"],
        ["check", "--help"],
        ["list"],
        ["check", TARGET, "--engine", "ray"],
        [],
    ],
)
def test_nothing_is_started_for_what_says_too_little(words: list[str]) -> None:
    ahead.foresee(words)


def test_what_nobody_takes_ends_with_the_command() -> None:
    said = run(
        "import sys; from linverify import ahead\n"
        f"ahead.foresee(['check', {TARGET!r}, '--device', 'cpu', '-n', '2'])\n"
        "print(*(s.process.pid for s in (*ahead._servers.values(), *ahead._examiners)))"
    )
    pids = [int(word) for word in said.split()]
    assert len(pids) == 3
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_borrowed_server_that_ends_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_servers", {})
    wanted = ahead.environment("cpu", None, preload_triton=False)
    lender = processes.Server(wanted)
    processes.borrow(lender.control.dup(), ahead.name_of(wanted))
    borrowed = processes.shared_server(wanted)
    assert isinstance(borrowed, processes.Borrowed)
    with Runner(parse(TARGET), device="cpu") as runner:
        assert runner.describe().functions
    lender.close()
    own = processes.shared_server(wanted)
    assert isinstance(own, processes.Server)
    with Runner(parse(TARGET), device="cpu") as runner:
        assert runner.describe().functions
    own.close()


def test_a_whole_session_that_was_compiled_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    Compiled("a.py", "").finish("these cases")
    assert Compiled("a.py", "").done("these cases")
    assert not Compiled("a.py", "").done("other cases")
    assert not Compiled("b.py", "").done("these cases")
