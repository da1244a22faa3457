"""A team: several examiners that share the laws of a target out among them, in processes of their own.

Each law is asked whole by one examiner, with the cases that the seed gives it, so the verdicts are those of a session that
asks them one after the other. What differs is what the clock decides: how long a search for a smaller or a worse case goes on.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from linverify import ahead, errors, gpus, processes, registry
from linverify.agenda import place_of, shared_out, tasks
from linverify.company import OWN_PROCESS
from linverify.crossing import SECONDS, Crossed, crossing
from linverify.crossing import together as all_crossed
from linverify.dealing import PREPARE, Member, Spare, Task, deal, stays, told
from linverify.errors import CannotCheckError, LinverifyError
from linverify.fingerprint import fingerprint
from linverify.insight import Insight, together
from linverify.ledger import Ledger
from linverify.plan import Listener, Plan
from linverify.standing import Elsewhere, Standing
from linverify.target import parse
from linverify.verdict import PropertyResult, TargetResult

_PATIENCE = 5.0  # seconds between the end of a connection and the end of its process


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
        targets: int = 0,
    ) -> None:
        """Nothing is started before it is needed.

        Args:
            workers: how many examiners.
            devices: one for each of them; () for the plan's own.
            shares: part of its GPU's memory that each one's target may take; () for equal parts.
            start: starts one; None for a process here.
            targets: that it will be asked about, after which it ends; 0 for any number.
        """
        self._workers, self._devices, self._shares, self._begin = workers, tuple(devices), tuple(shares), start
        self._targets = targets
        self._examiners: list[Member] = []
        self._leaving: list[Member] = []

    def check(self, plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        """Check a target: every decorated function of it, or the one named.

        Raises:
            UsageError: the plan cannot be understood.
            CannotCheckError: the target cannot be imported, the device is not there, or a process of the session ended.
        """
        self._targets -= 1
        try:
            begins = not self._examiners
            if begins:
                self._start(plan)
            for examiner, own in zip(self._examiners, self._plans(plan), strict=True):
                examiner.ask("plan", own, [p for p in sys.path if p], examiner is self._examiners[0])
            if begins:
                self._greeted()
            for examiner in self._examiners:
                examiner.receive()
            results = []
            while self._examiners and (begun := self._all("next")[0]) is not None:
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

    def _dismiss(self, examiners: Sequence[Member]) -> None:
        """Have them end, and go on: a process that holds a GPU takes its time to end."""
        for examiner in examiners:
            examiner.kill()
        self._leaving += examiners
        self._examiners = [e for e in self._examiners if e not in self._leaving]

    def _end(self) -> None:
        self._dismiss(self._examiners)
        for examiner in self._leaving:
            examiner.close()
        self._leaving.clear()

    def _all(self, *question: object) -> list[Any]:
        """Ask every examiner, and wait for every answer."""
        for examiner in self._examiners:
            examiner.ask(*question)
        return [examiner.receive()[1] for examiner in self._examiners]

    def _examined(
        self, plan: Plan, listener: Listener, name: str, operator: str, laws: Sequence[str], last: bool
    ) -> TargetResult:
        listener.target_started(name, operator, laws)
        first = self._examiners[0]
        for law in laws:
            if (place := place_of(law, len(self._examiners))) is not None:
                self._one(self._examiners[place], listener, "start", law)  # these processes import while others work
        ends = last and not self._targets
        others: list[Ledger] = []

        def spare(examiner: Member) -> None:
            """Take what one that has nothing left to do has seen; its processes end while others work."""
            if examiner is not first:
                others.append(self._one(examiner, listener, "ledger"))
                self._dismiss([examiner] if ends else [])

        if plan.fail_fast:
            (results, _), elsewhere = self._dealt(plan, laws, listener, spare), None
        else:
            results, studied = self._dealt(plan, laws, listener)
            elsewhere = self._closed(results, studied, listener, spare)
        found = self._one(first, listener, "finish", results, others, elsewhere)
        assert isinstance(found, TargetResult)
        if ends:
            self._dismiss(self._examiners)
        else:
            self._all("close")
        listener.target_finished(found)
        return found

    def _dealt(
        self, plan: Plan, laws: Sequence[str], listener: Listener, spare: Spare = stays
    ) -> tuple[list[PropertyResult], list[Insight]]:
        """Have every law asked, and every dtype studied.

        A law that compares with another process is one examiner's, who starts that process at the beginning. On a GPU the
        first has everything compiled for all: the others find that in the compiler's cache, and begin with what is ready.
        """
        standing = Standing()
        results: dict[str, PropertyResult] = {}
        studied: dict[str, Insight] = {}

        def question(task: Task) -> tuple[object, ...]:
            if task is PREPARE:
                return (task.kind,)
            if task.kind != "ask":
                return task.kind, task.about
            listener.property_started(task.about)
            return task.kind, task.about, standing

        def answered(task: Task, answer: Any) -> None:
            nonlocal standing
            if task.kind == "ask":
                results[task.about], found = answer
                standing = standing.also(found)
                listener.property_finished(results[task.about])
            else:
                studied[task.about] = answer

        deal(self._examiners, tasks(plan, laws, len(self._examiners)), listener, question, answered, spare)
        return [results[law] for law in laws], [studied[d] for d in plan.dtypes if d in studied]

    def _closed(
        self, results: Sequence[PropertyResult], studied: Sequence[Insight], listener: Listener, spare: Spare
    ) -> Elsewhere:
        """Have the worst of what all have seen looked into, and the smallest case that fails put to laws that hold."""
        ledgers: list[Ledger] = self._all("ledger")
        single = any(ledger.single for ledger in ledgers)
        recipes = [match for insight in studied for match in insight.recipes]
        asked = crossing(results, [registry.property_named(p.name) for p in results if p.name not in OWN_PROCESS])
        closing = [
            Task("look", cases, place) for place, cases in enumerate(shared_out([x.worst for x in ledgers])) if cases
        ]
        closing += [Task("cross", law) for law in (asked.laws if asked else ())]
        looked: list[Insight] = []
        crossed: dict[str, Crossed] = {}
        end = perf_counter() + SECONDS

        def question(task: Task) -> tuple[object, ...]:
            if asked is None or task.kind == "look":
                return task.kind, task.about, recipes, single
            return task.kind, asked.failing, asked.case, task.about, max(0.0, end - perf_counter())

        def answered(task: Task, answer: Any) -> None:
            if task.kind == "look":
                looked.append(answer)
            else:
                crossed[task.about] = answer

        deal(self._examiners, closing, listener, question, answered, spare)
        said = [crossed[law] for law in (asked.laws if asked else ())]
        return Elsewhere(together([*studied, *looked]), all_crossed(said))

    def _one(self, examiner: Member, listener: Listener, *question: object) -> Any:
        examiner.ask(*question)
        return self._answer(examiner, listener)

    @staticmethod
    def _answer(examiner: Member, listener: Listener) -> Any:
        """What an examiner answers; news that come before go to the listener."""
        while told(message := examiner.receive(), listener):
            pass
        return message[1]
