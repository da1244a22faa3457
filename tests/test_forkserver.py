"""The fork server's errands."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from linverify import draw
from linverify.amid import DEVICE
from linverify.binding import bind
from linverify.case import Case
from linverify.forkserver import serve
from linverify.problem import Call, Program
from linverify.registry import operator
from linverify.runner import Runner
from linverify.target import parse


def test_an_errand_is_done_by_the_server_itself_and_a_failed_one_ends_nothing() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    server = os.fork()
    if server == 0:
        ours.close()
        os.close(read)

        def errand() -> None:
            os.write(write, b"x")
            raise RuntimeError("not today")

        try:
            serve(theirs, lambda *_: os.write(write, b"c"), errand)
        finally:
            os._exit(1)
    theirs.close()
    os.close(write)
    for _ in range(2):
        ours.send(b"{}")
        status, told = os.pipe()
        socket.send_fds(ours, [b"{}"], [told])
        os.close(told)
        with os.fdopen(status) as lines:
            assert [line.split('"')[1] for line in lines] == ["pid", "status"]
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == 0
    with os.fdopen(read) as done:
        assert done.read() == "xcxc"


KERNEL = """
import sys

def f(q, k, v):
    return v * 0 + float("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("travels", [False, True])
def test_what_another_device_needs_is_imported_once_it_is_used(tmp_path: Path, travels: bool) -> None:
    path, op = tmp_path / "kernel.py", operator("linear_attention")
    path.write_text(KERNEL)
    posed = draw.problem(Case(op.name, 1, 2, 1, 3, 4, seed=1), op)
    with Runner(parse(f"{path}::f"), device="cpu", travels=travels) as runner:
        runner.bind(bind(op, runner.describe().functions[0]), op)

        def imported() -> bool:
            runner.restart()
            (result,) = runner.run(Program((Call(posed),)), time_limit=60.0)
            return bool((result.named()["o"] == 1).all())

        assert not imported(), "it is only begun when the first process works"
        if not travels:
            assert not imported()
            runner.run(Program((Call(posed, amid=DEVICE),)), time_limit=60.0)
        assert imported()


def test_what_is_imported_for_tensors_without_numbers_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import os, sys, torch\nfrom linverify.worker import _preload_compiler\n_preload_compiler()\n"
        "assert 'torch._dynamo' in sys.modules\ntorch.empty(2, device='meta') + 1\n"
        "assert 'TORCHINDUCTOR_CACHE_DIR' not in os.environ"
    )
    environment = {n: x for n, x in os.environ.items() if n != "TORCHINDUCTOR_CACHE_DIR"} | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
