"""A team: several examiners that share the laws of a target out among them, in processes of their own.

Each law is asked whole by one examiner, with the cases that the seed gives it, so the verdicts are those of a session that
asks them one after the other. What differs is what the clock decides: how long a search for a smaller or a worse case goes on.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol, Self

from linverify import ahead, errors, gpus, processes, registry
from linverify.errors import CannotCheckError, LinverifyError
from linverify.examination import OWN_PROCESS, Standing
from linverify.fingerprint import fingerprint
from linverify.insight import Insight, together
from linverify.plan import Listener, Plan
from linverify.property import Property
from linverify.target import parse
from linverify.verdict import PropertyResult, TargetResult

_PATIENCE = 5.0  # seconds between the end of a connection and the end of its process


class Member(Protocol):
    """One examiner of a team, wherever it runs."""

    connection: "Connection[Any, Any]"

    def ask(self, *question: object) -> None:
        """Put a question; the answer comes on the connection."""

    def receive(self) -> tuple[Any, ...]:
        """Return the next message; raise what it says went wrong."""

    def kill(self) -> None:
        """Have it end, soon."""

    def close(self) -> None:
        """End it; whatever it does is lost. Idempotent."""


def message_of(received: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a message of an examiner.

    Raises:
        LinverifyError: what the examiner raised.
        RuntimeError: an error of ours, with its traceback.
    """
    kind, *rest = received
    if kind == "failed":
        name, text = rest
        known = getattr(errors, name, None) if name else None
        if isinstance(known, type) and issubclass(known, LinverifyError):
            raise known(text)
        raise RuntimeError(text)
    return (kind, *rest)


class _Examiner:
    """One examiner, seen from the session."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start its process, unless that was foreseen; it greets when it is ready.

        Args:
            environment: of the fork server that it shares.
        """
        started = ahead.examiner(processes.begun(environment), ahead.name_of(environment))
        self._process, self._errors = started.process, started.errors
        self.connection: Connection[Any, Any] = Connection(started.channel.detach())

    def ask(self, *question: object) -> None:
        """Put a question; the answer comes on the connection.

        Raises:
            CannotCheckError: the process is gone.
        """
        try:
            self.connection.send(question)
        except (BrokenPipeError, ConnectionResetError):
            raise self._gone() from None

    def receive(self) -> tuple[Any, ...]:
        """Return the next message.

        Raises:
            CannotCheckError: the process is gone, or could not do what was asked.
            LinverifyError: what the examiner raised.
        """
        try:
            return message_of(self.connection.recv())
        except (EOFError, ConnectionResetError):
            raise self._gone() from None

    def kill(self) -> None:
        """Have the process end; it has nothing to put away."""
        self._process.kill()

    def close(self) -> None:
        """End the process; idempotent."""
        self.connection.close()
        self.kill()
        self._process.wait()
        self._errors.close()

    def _gone(self) -> CannotCheckError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_PATIENCE)
        code = self._process.returncode
        what = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f"; its last words: {said[-1]}" if said else ""
        return CannotCheckError(
            f"one of the session's processes ended ({what}); fewer of them (-n) need less memory{last}"
        )


class Team:
    """Checks targets with several examiners, each a process, or whatever an engine makes of it.

    with Team(4) as team:
        results = team.check(plan, listener)
    """

    def __init__(
        self,
        workers: int,
        devices: Sequence[str] = (),
        shares: Sequence[float] = (),
        start: Callable[[], Member] | None = None,
    ) -> None:
        """Nothing is started before it is needed.

        Args:
            workers: how many examiners.
            devices: one for each of them; () for the plan's own.
            shares: part of its GPU's memory that each one's target may take; () for equal parts.
            start: starts one; None for a process here.
        """
        self._workers, self._devices, self._shares, self._begin = workers, tuple(devices), tuple(shares), start
        self._examiners: list[Member] = []

    def check(self, plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        """Check a target: every decorated function of it, or the one named.

        Raises:
            UsageError: the plan cannot be understood.
            CannotCheckError: the target cannot be imported, the device is not there, or a process of the session ended.
        """
        try:
            begins = not self._examiners
            if begins:
                self._start(plan)
            for examiner, own in zip(self._examiners, self._plans(plan), strict=True):
                examiner.ask("plan", own, [p for p in sys.path if p])
            if begins:
                self._greeted()
            for examiner in self._examiners:
                examiner.receive()
            results = []
            while (begun := self._all("next")[0]) is not None:
                results.append(self._examined(plan, listener, *begun))
            return results
        except BaseException:
            self._end()  # some of them may be in the middle of something
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _plans(self, plan: Plan) -> list[Plan]:
        """The plan of each examiner: on its own GPU, with its part of the GPU's memory."""
        devices = self._devices or (plan.device,) * self._workers
        shares = self._shares or tuple(gpus.share(devices, d) for d in devices)
        return [replace(plan, device=d, share=s) for d, s in zip(devices, shares, strict=True)]

    def _start(self, plan: Plan) -> None:
        """Start the examiners and the fork server that they share; they import while this process goes on."""
        if self._begin is not None:
            self._examiners.extend(self._begin() for _ in range(self._workers))
            return
        triton = parse(plan.target).mentions_triton
        environment = ahead.environment(plan.device, None, preload_triton=triton)
        self._examiners.extend(_Examiner(environment) for _ in range(self._workers))
        processes.shared_server(environment)

    def _greeted(self) -> None:
        for examiner in self._examiners:
            _, theirs = examiner.receive()
            if theirs != fingerprint():
                raise CannotCheckError("a process of the session runs another linverify; install one only")

    def _end(self) -> None:
        for examiner in self._examiners:
            examiner.kill()  # a process that holds a GPU takes its time to end: all of them at once
        for examiner in self._examiners:
            examiner.close()
        self._examiners.clear()

    def _all(self, *question: object) -> list[Any]:
        """Ask every examiner, and wait for every answer."""
        for examiner in self._examiners:
            examiner.ask(*question)
        return [examiner.receive()[1] for examiner in self._examiners]

    def _examined(self, plan: Plan, listener: Listener, name: str, operator: str, laws: Sequence[str]) -> TargetResult:
        listener.target_started(name, operator, laws)
        first = self._examiners[0]
        for law in (law for law in laws if law in OWN_PROCESS):
            self._one(first, listener, "start", law)  # these processes import while others work
        if plan.device.startswith("cuda"):
            self._one(first, listener, "prepare")  # for all: what it compiles, the others find in the compiler's cache
        results = self._dealt(laws, listener)
        seen = self._looked(() if plan.fail_fast else plan.dtypes, listener)
        found = self._one(first, listener, "finish", [results[law] for law in laws], seen)
        assert isinstance(found, TargetResult)
        self._all("close")
        listener.target_finished(found)
        return found

    def _looked(self, dtypes: Sequence[str], listener: Listener) -> Insight:
        """Have the worst of what all have seen looked into, some dtypes by each; then each knows what all have seen."""
        ledgers = self._all("ledger")
        for place, examiner in enumerate(self._examiners):
            others = [ledger for i, ledger in enumerate(ledgers) if i != place]
            examiner.ask("look", others, dtypes[place :: len(self._examiners)])
        return together([self._answer(examiner, listener) for examiner in self._examiners])

    def _dealt(self, laws: Sequence[str], listener: Listener) -> dict[str, PropertyResult]:
        """Give each examiner a law, and the next one when it has answered.

        Laws that compare with another process are the first examiner's, who starts those processes at the beginning.
        """
        first = self._examiners[0]
        # What takes long begins early, after the basic laws: at the end nobody waits for it.
        left = sorted(laws, key=lambda law: _order(registry.property_named(law)))
        standing = Standing()
        busy: dict[Connection[Any, Any], tuple[Member, str]] = {}
        results: dict[str, PropertyResult] = {}

        def give(examiner: Member) -> None:
            law = next((law for law in left if examiner is first or law not in OWN_PROCESS), None)
            if law is not None:
                left.remove(law)
                listener.property_started(law)
                examiner.ask("ask", law, standing)
                busy[examiner.connection] = examiner, law

        for examiner in self._examiners:
            give(examiner)
        while busy:
            for ready in wait(list(busy)):
                examiner, law = busy[ready]  # type: ignore[index]  # wait returns what it was given
                message = examiner.receive()
                if not _told(message, listener):
                    result, found = message[1]
                    results[law], standing = result, standing.also(found)
                    listener.property_finished(result)
                    del busy[examiner.connection]
                    give(examiner)
        return results

    def _one(self, examiner: Member, listener: Listener, *question: object) -> object:
        examiner.ask(*question)
        return self._answer(examiner, listener)

    @staticmethod
    def _answer(examiner: Member, listener: Listener) -> Any:
        """What an examiner answers; news that come before go to the listener."""
        while _told(message := examiner.receive(), listener):
            pass
        return message[1]


def _order(law: Property) -> tuple[bool, float]:
    return not law.basic, -max(law.weight, 1.0)  # laws with few cases may take long all the same


def _told(message: tuple[Any, ...], listener: Listener) -> bool:
    """Pass news on to the listener; False for an answer."""
    hear: dict[str, Callable[..., None]] = {
        "judged": listener.case_judged,
        "settled": listener.configuration_settled,
        "note": listener.note,
    }
    if message[0] not in hear:
        return False
    hear[message[0]](*message[1:])
    return True
