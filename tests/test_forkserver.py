"""The fork server's spare time."""

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from linverify.forkserver import serve


def test_what_can_wait_is_done_once_while_a_child_works() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    server = os.fork()
    if server == 0:
        ours.close()
        os.close(read)
        try:
            serve(theirs, lambda *_: time.sleep(0.6), lambda: os.write(write, b"x"))
        finally:
            os._exit(1)
    theirs.close()
    os.close(write)
    assert not select.select([read], [], [], 0.5)[0], "nothing was asked: whoever comes first is not to wait"
    for _ in range(2):
        status, told = os.pipe()
        socket.send_fds(ours, [b"{}"], [told])
        os.close(told)
        with os.fdopen(status) as lines:
            assert [line.split('"')[1] for line in lines] == ["pid", "status"]
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == 0
    with os.fdopen(read) as done:
        assert done.read() == "x"


def test_what_is_imported_for_tensors_without_numbers_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import os, sys, torch\nfrom linverify.worker import _preload_compiler\n_preload_compiler()\n"
        "assert 'torch._dynamo' in sys.modules\ntorch.empty(2, device='meta') + 1\n"
        "assert 'TORCHINDUCTOR_CACHE_DIR' not in os.environ"
    )
    environment = {n: x for n, x in os.environ.items() if n != "TORCHINDUCTOR_CACHE_DIR"} | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
