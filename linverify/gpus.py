"""Which GPU a worker gets, of pytest or of ``linverify check -n``, with how much of it, and how many a machine carries.

Chosen from what ``nvidia-smi`` says, not by torch: asking torch would open a context on every GPU in the process that only
hands out work. Every worker is a judge and a kernel's process, each with a context and a caching allocator.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Two contexts of about 0.5 GiB, the references that a session remembers (1.5 GB, linverify.shared), and as much again for the
# case in hand and its realisations.
GPU_MIB_A_WORKER = 4096
# Measured on a CPU, profile "standard", torch 2.13: 0.64 GiB for the judge's process, 0.33 and 0.26 for the kernel's two; the
# references that a session remembers may add to it on a GPU machine's longer sequences.
HOST_MIB_A_WORKER = 2048
_QUERY = ("--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as this process counts them, with its free memory in MiB; None where nobody says."""

    index: int
    free: int | None


def visible(rows: str, chosen: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA shows, in its order.

    Args:
        rows: lines "index, uuid, free MiB", as nvidia-smi writes them.
        chosen: CUDA_VISIBLE_DEVICES; None for all. As CUDA does, it ends at the first entry that names no GPU.
    """
    found = [[word.strip() for word in line.split(",")] for line in rows.splitlines() if line.count(",") == 2]
    free = [(index, uuid, int(mib) if mib.isdigit() else None) for index, uuid, mib in found]
    if chosen is None:
        return tuple(Gpu(position, mib) for position, (_, _, mib) in enumerate(free))
    wanted: list[int | None] = []
    for word in (w.strip() for w in chosen.split(",")):
        if word.startswith("MIG-"):
            wanted.append(None)  # a slice of a GPU, of which this query says nothing
            continue
        matches = [mib for index, uuid, mib in free if word == index or (word and uuid.startswith(word))]
        if len(matches) != 1:
            break
        wanted.append(matches[0])
    return tuple(Gpu(position, mib) for position, mib in enumerate(wanted))


def found(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """Return the GPUs of this machine; () where nvidia-smi is missing or says nothing."""
    command = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if command is None:
        return ()
    try:
        done = subprocess.run([command, *_QUERY], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible(done.stdout, environment.get("CUDA_VISIBLE_DEVICES")) if done.returncode == 0 else ()


def counted() -> int:
    """Return how many GPUs torch sees; for a process that uses one of them anyway."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def places(gpus: Sequence[Gpu]) -> tuple[int, ...]:
    """Return a GPU for every worker that fits, in turns, so that few workers spread over many GPUs.

    Every GPU has room for one: what does not fit is the kernel's verdict, not a reason to leave a GPU alone.
    """
    room = {g.index: 1 if g.free is None else max(1, g.free // GPU_MIB_A_WORKER) for g in gpus}
    return tuple(i for turn in range(max(room.values(), default=0)) for i, count in room.items() if count > turn)


def device_of(worker: int, turns: Sequence[int]) -> str | None:
    """Return the device of a worker by its number; None where there is no GPU."""
    return f"cuda:{turns[worker % len(turns)]}" if turns else None


def spread(device: str, workers: int, asked: str | None) -> tuple[str, ...]:
    """Return the device of every worker of a check: all GPUs in turns, unless one of them was asked for by its number.

    Args:
        device: of the check, as understood.
        workers: how many.
        asked: what the user wrote; None for nothing.
    """
    if not device.startswith("cuda") or ":" in (asked or ""):
        return (device,) * workers
    turns = places(found()) or tuple(range(counted()))
    return tuple(device_of(n, turns) or device for n in range(workers))


def share(devices: Sequence[str | None], own: str | None) -> float:
    """Return which part of its GPU's memory a worker's kernels may take: half of its part; the judge has the other half.

    Args:
        devices: of all workers.
        own: of this one. A worker alone on its GPU takes what it needs, and so does one on a CPU.
    """
    beside = list(devices).count(own)
    return 1.0 if own is None or not own.startswith("cuda") or beside < 2 else 0.5 / beside


def workers(processors: int, host_mib: int | None, turns: Sequence[int]) -> int:
    """Return how many workers the machine carries: at least one, at most one a processor.

    Args:
        processors: that this process may use.
        host_mib: memory that is free; None where nobody says.
        turns: of `places`; () where the kernels run on the CPU.
    """
    limits = [processors]
    if host_mib is not None:
        limits.append(host_mib // HOST_MIB_A_WORKER)
    if turns:
        limits.append(len(turns))
    return max(1, min(limits))


def free_host_mib(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the free memory in MiB, a container's limit included; None where the system does not say."""
    known: list[int] = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        known.append(int(lines["MemAvailable"].split()[0]) // 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit, used = ((cgroup / f"memory.{word}").read_text(encoding="ascii").strip() for word in ("max", "current"))
        known.append((int(limit) - int(used)) // 2**20)  # "max" is no number: no limit
    except (OSError, ValueError):
        pass
    return max(0, min(known)) if known else None
