"""Nothing is left of a target that breaks down: no process, no descriptor, no shared memory; and nothing is lost."""

import time

import pytest

from linverify import bench
from linverify.plan import Plan
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import Status
from tests.scripts import BENCHMARKS, load

KERNELS = BENCHMARKS / "fault_kernels.py"


def judged(name: str, *laws: str):
    plan = Plan(f"{KERNELS}::{name}", "gla", properties=laws or ("agreement",), profile="quick", dtypes=("fp32",))
    (result,) = check(plan, Silence())
    return result


def others_gone(soak, before: int) -> bool:
    deadline = time.monotonic() + 10
    while soak.held().living > before and time.monotonic() < deadline:  # fork servers stay
        time.sleep(0.05)
    return soak.held().living <= before


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("starts_threads_without_end", "out_of_memory", "start new thread"),
        ("closes_every_file", "crash", "unable to answer"),
        ("kills_its_parent", "crash", "lost together with its server"),
        ("leaves_from_a_thread", "exit", "exit code 7"),
        ("becomes_a_program_that_ends", "exit", "exit code 0"),
        ("reads_beyond_a_file", "crash", "SIGBUS"),
    ],
)
def test_a_breakdown_is_a_verdict_on_its_smallest_case(name: str, kind: str, words: str, monkeypatch) -> None:
    # Little memory is used up sooner, and leaves time to shrink.
    monkeypatch.setenv("LINVERIFY_WORKER_BYTES", str(1 << 28))
    (law,) = judged(name).properties
    assert law.status is Status.VIOLATION
    assert law.failure is not None
    assert law.failure.evidence.kind == kind
    assert words in law.failure.diagnosis
    assert law.failure.sizes["T"] == 5
    assert judged("honest").verdict == "pass"


@pytest.mark.parametrize("name", ["leaves_its_group", "leaves_a_daemon_behind", "forks_without_end"])
def test_what_a_target_starts_ends_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = load("soak")
    monkeypatch.setattr(bench, "HANG_SECONDS", 3.0)
    judged("honest")  # starts the fork server, if none is there yet
    assert (before := soak.held().living) >= 1
    judged(name)
    assert others_gone(soak, before)


def test_a_hang_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "HANG_SECONDS", 3.0)
    (law,) = judged("sleeps").properties
    assert law.failure is not None
    assert (law.failure.evidence.kind, law.failure.sizes["T"]) == ("hang", 5)


def test_an_exception_that_cannot_be_shown_is_a_refusal() -> None:
    (refusal,) = judged("raises_what_cannot_be_shown").refusals
    assert refusal.kind == "Unspeakable"


def test_a_worker_killed_from_outside_is_named_as_that() -> None:
    faults = load("faults")
    plan = Plan(f"{KERNELS}::honest", "gla", properties=("agreement",), profile="quick", dtypes=("fp32",))
    (result,) = check(plan, faults.Killer("runner"))
    failure = result.properties[0].failure
    assert failure is not None
    assert failure.evidence.kind == "crash"
    assert "asked again it did not" in failure.diagnosis


def test_a_short_soak_loses_nothing() -> None:
    soak = load("soak")
    limit, soak.WARM = bench.HANG_SECONDS, 20
    try:
        verdicts, before, after, starts = soak.soak(80)
    finally:
        bench.HANG_SECONDS = limit
    assert sum(verdicts.values()) == 80
    assert len(verdicts) >= 4
    assert starts > 5
    assert after[1:] == before[1:]
    assert after.zombies == 0
    assert after.megabytes < before.megabytes + 20
