"""Which worker gets which GPU, and how many workers fit: chosen without a GPU, from what nvidia-smi would say."""

import stat
from pathlib import Path

import pytest
import torch

from benchmarks import several_gpus
from linverify import gpus, worker
from linverify.gpus import GPU_MIB_A_WORKER, HOST_MIB_A_WORKER, Gpu

ROWS = "0, GPU-aa11, 80000\n1, GPU-bb22, 9000\n2, GPU-cc33, [N/A]\n"


@pytest.mark.parametrize(
    ("chosen", "free"),
    [
        (None, [80000, 9000, None]),
        ("1", [9000]),
        ("2,0", [None, 80000]),
        ("GPU-bb", [9000]),
        ("0,7,1", [80000]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("MIG-1234,1", [None, 9000]),
    ],
)
def test_gpus_are_counted_as_cuda_counts_them(chosen: str | None, free: list[int | None]) -> None:
    assert gpus.visible(ROWS, chosen) == tuple(Gpu(i, mib) for i, mib in enumerate(free))


def test_workers_take_turns_and_a_larger_gpu_carries_more() -> None:
    two = (Gpu(0, 3 * GPU_MIB_A_WORKER), Gpu(1, GPU_MIB_A_WORKER))
    assert gpus.places(two) == (0, 1, 0, 0)
    assert [gpus.device_of(n, gpus.places(two)) for n in range(6)] == [f"cuda:{i}" for i in (0, 1, 0, 0, 0, 1)]
    assert gpus.places((Gpu(0, 10), Gpu(1, None))) == (0, 1)
    assert gpus.places(()) == ()
    assert gpus.device_of(3, ()) is None


def test_a_check_spreads_its_workers_over_all_gpus_unless_one_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "found", lambda: (Gpu(0, 80000), Gpu(1, 80000)))
    for asked in (None, "cuda"):
        assert gpus.spread("cuda:0", 3, asked) == ("cuda:0", "cuda:1", "cuda:0")
    assert gpus.spread("cuda:1", 3, "cuda:1") == ("cuda:1",) * 3
    assert gpus.spread("cpu", 2, None) == ("cpu", "cpu")
    monkeypatch.setattr(gpus, "found", lambda: ())  # no nvidia-smi
    monkeypatch.setattr(gpus, "counted", lambda: 4)
    assert gpus.spread("cuda:0", 5, None) == ("cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0")


def test_workers_of_one_gpu_share_its_memory_with_their_judges() -> None:
    devices = ["cuda:0", "cuda:1", "cuda:0", "cuda:0"]
    assert [gpus.share(devices, d) for d in devices] == [1 / 6, 1.0, 1 / 6, 1 / 6]
    assert sum(2 * gpus.share(devices, d) for d in devices if d == "cuda:0") == 1.0
    assert gpus.share(["cpu", "cpu"], "cpu") == gpus.share([None, None], None) == 1.0


@pytest.mark.parametrize(
    ("asked", "free", "own", "words"),
    [
        (
            "5.00 GiB",
            0.1,
            2.0,
            "other processes hold 77.9 GiB of the GPU's memory: 5.0 GiB were asked for, 0.1 GiB free",
        ),
        ("512.00 MiB", 0.1, 2.0, "0.5 GiB were asked for"),
        ("90.00 GiB", 70.0, 2.0, ""),  # more than an empty GPU has
        ("5.00 GiB", 0.1, 75.0, ""),  # beside what it has already
        ("5.00 GiB", 60.0, 2.0, ""),  # there is room; a share of it was used up
    ],
)
def test_memory_is_the_target_s_affair_unless_others_hold_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, free: float, own: float, words: str
) -> None:
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * gib), 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: int(own * gib))
    said = f"CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 80.00 GiB"
    found = worker._taken(said, torch.device("cuda:0"))
    assert found.startswith(words) if words.startswith("other") else words in found
    assert bool(found) == bool(words)
    assert worker._taken(said, torch.device("cpu")) == ""


@pytest.mark.parametrize("count", [2, 3, 8])
def test_no_gpu_is_left_out_while_another_is_shared(count: int) -> None:
    turns = gpus.places([Gpu(i, 10**6) for i in range(count)])
    assert sorted(turns[:count]) == list(range(count))


@pytest.mark.parametrize(
    ("processors", "host", "turns", "expected"),
    [
        (16, None, (), 16),
        (16, 5 * HOST_MIB_A_WORKER + 1, (), 5),
        (16, 100 * HOST_MIB_A_WORKER, (0, 1, 0), 3),
        (2, None, (0,) * 9, 2),
        (4, 10, (), 1),
    ],
)
def test_the_scarcest_thing_bounds_the_workers(
    processors: int, host: int | None, turns: tuple[int, ...], expected: int
) -> None:
    assert gpus.workers(processors, host, turns) == expected


def test_free_memory_is_the_machine_s_or_the_container_s(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert gpus.free_host_mib(meminfo, cgroup) is None
    meminfo.write_text("MemTotal:       99999 kB\nMemAvailable:    8388608 kB\n")
    assert gpus.free_host_mib(meminfo, cgroup) == 8192
    cgroup.mkdir()
    (cgroup / "memory.current").write_text(f"{1 << 30}\n")
    (cgroup / "memory.max").write_text("max\n")
    assert gpus.free_host_mib(meminfo, cgroup) == 8192
    (cgroup / "memory.max").write_text(f"{4 << 30}\n")
    assert gpus.free_host_mib(meminfo, cgroup) == 3072


def command(folder: Path, script: str) -> dict[str, str]:
    """Put a stand-in for nvidia-smi on a search path."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": str(folder)}


def test_nvidia_smi_is_asked_and_its_failures_mean_no_gpu(tmp_path: Path) -> None:
    assert gpus.found({"PATH": str(tmp_path)}) == ()
    assert gpus.found(command(tmp_path, "echo '0, GPU-a, 5000'")) == (Gpu(0, 5000),)
    assert gpus.found({**command(tmp_path, "echo '0, GPU-a, 5000'"), "CUDA_VISIBLE_DEVICES": ""}) == ()
    assert gpus.found(command(tmp_path, "echo 'no driver'; exit 9")) == ()


def record(role: str, pid: int, on: str | None, **facts: object) -> dict[str, object]:
    held = {on: 0.01} if on else {}
    return {"role": role, "pid": pid, "ancestors": [1], "held": held, "words": ["python"], **facts}


def records(*devices: str, share: float = 0.25) -> list[dict[str, object]]:
    """What the processes of a command say where all is right: one that hands out work, and a judge and a kernel per worker."""
    found = [record("process", 2, None)]
    for n, device in enumerate(devices, 1):
        found.append(record("process", 10 * n, device, ancestors=[2, 1]))
        of_kernel = {"device": device, "share": share, "more": False}
        found.append(record("kernel", 10 * n + 2, device, ancestors=[10 * n + 1, 10 * n, 2, 1], **of_kernel))
    return found


FOUR = ("cuda:0", "cuda:1", "cuda:0", "cuda:1")


def test_the_trial_on_several_gpus_finds_nothing_wrong_where_nothing_is() -> None:
    assert list(several_gpus.faults(records(*FOUR), 2, 4)) == []
    assert list(several_gpus.faults(records("cuda:0", "cuda:1", share=1.0), 2, 2)) == []


@pytest.mark.parametrize(
    ("changed", "facts", "said"),
    [
        (0, {"held": {"cuda:0": 0.0}}, "process 2 holds cuda:0, its kernels are none"),
        (3, {"held": {"cuda:0": 0.0, "cuda:1": 0.1}}, "process 20 holds contexts of cuda:0, cuda:1"),
        (3, {"held": {"cuda:0": 0.0}}, "process 20 holds cuda:0, its kernels cuda:1"),
        (4, {"held": {"cuda:0": 0.0}}, "kernel 22 was called on cuda:1 and holds cuda:0"),
        (4, {"device": "cuda:0"}, "workers by GPU: [3, 1]; expected 4 spread evenly"),
        (4, {"ancestors": [1]}, "workers by GPU: [2, 1]; expected 4 spread evenly"),
        (4, {"share": 1.0}, "kernel 22 may take 1.000 of cuda:1, expected 0.250"),
        (4, {"more": True}, "kernel 22 took more than its share"),
        (4, {"held": {"cuda:1": 0.3}}, "kernel 22 had 0.300 of cuda:1, its share is 0.250"),
    ],
)
def test_the_trial_on_several_gpus_sees_what_is_planted(changed: int, facts: dict[str, object], said: str) -> None:
    told = records(*FOUR)
    told[changed] |= facts
    assert any(said in fault for fault in several_gpus.faults(told, 2, 4))
