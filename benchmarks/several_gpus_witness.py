"""What a process knows of the GPUs that it holds: written down by the kernel at each call, by every other process on its own.

``several_gpus.py`` puts this file on the search path of what it runs as ``sitecustomize``, so that each Python process of a
check reports: the judges, the process that hands out work, and whoever opens a GPU that is not its own.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path

FOLDER = "LINVERIFY_WITNESS"
_SECONDS = 0.2
_KERNEL_S = "linverify.worker"


def ancestors() -> list[int]:
    """Process ids from the parent upwards."""
    found, pid = [], os.getpid()
    while pid > 1:
        with contextlib.suppress(OSError):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(pid)
            continue
        break
    return found


@functools.cache
def askers(_own: int) -> list[int]:
    """Process ids of those at the other end of this process's pipes: a kernel's parent serves several sessions' processes."""
    mine = set(_pipes("self"))
    others = [p.name for p in Path("/proc").glob("[0-9]*") if p.name != str(os.getpid())]
    return [int(pid) for pid in others if mine & set(_pipes(pid))]


def _pipes(pid: str) -> list[str]:
    found = []
    with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(fd.readlink()))
    return [name for name in found if name.startswith("pipe:")]


def held() -> dict[str, float]:
    """Every GPU of which this process holds a context, with the largest part of its memory that torch has had from it."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return {}
    return {
        f"cuda:{i}": torch.cuda.max_memory_reserved(i) / torch.cuda.get_device_properties(i).total_memory
        for i in range(torch.cuda.device_count())
        if torch._C._cuda_hasPrimaryContext(i)
    }


def write(role: str, **facts: object) -> None:
    """Put down what this process holds now, in place of what it put down before."""
    folder = os.environ.get(FOLDER)
    if folder:
        facts |= {
            "role": role,
            "pid": os.getpid(),
            "ancestors": [*(askers(os.getpid()) if role == "kernel" else []), *ancestors()],
            "held": held(),
            "words": sys.orig_argv[:8],
        }
        place = Path(folder, f"{os.getpid()}.json")
        place.with_suffix(".part").write_text(json.dumps(facts))
        place.with_suffix(".part").replace(place)


def _watch() -> None:
    while True:
        time.sleep(_SECONDS)
        with contextlib.suppress(Exception):  # torch in the middle of its import
            write("process")


if __name__ == "sitecustomize" and _KERNEL_S not in sys.orig_argv:  # a kernel's process is forked, and threads are not
    threading.Thread(target=_watch, daemon=True).start()
