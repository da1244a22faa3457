"""Compile ahead: several processes meet every compile signature of a session first and fill the compiler's cache on disk."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from linverify import bench, registry
from linverify.bench import Signature
from linverify.compiled import Compiled, unseen
from linverify.errors import CannotCheckError
from linverify.needs import Need, Needs, volume
from linverify.operator import Operator
from linverify.plan import Plan
from linverify.problem import Call, Fault, Program, Refused
from linverify.runner import Runner
from linverify.target import TargetSpec

_LANES = 14
_SECONDS = 300.0


def lanes(workers: int = 1) -> int:
    """How many processes may compile at once, where so many workers do."""
    return max(1, min(_LANES, len(os.sched_getaffinity(0)) // workers - 1))


def started(plan: Plan, spec: TargetSpec, autotune: str) -> Runner:
    """Return another process of a target, which has imported it."""
    runner = Runner(spec, device=plan.device, autotune=autotune, share=plan.share)
    runner.describe()
    return runner


def foreseen(plan: Plan, spec: TargetSpec) -> "Compilers | None":
    """Return processes that import the target while the session does, where all that it needs will have to be compiled.

    None where something was compiled for it before, or nothing is.
    """
    wanted = not plan.properties or any(registry.property_named(name).compiled_for for name in plan.properties)
    if not (wanted and plan.device.startswith("cuda") and spec.mentions_triton and unseen(plan.target)):
        return None
    found = Compilers(lambda: started(plan, spec, plan.pinning))
    found.begin()
    return found


def compile_ahead(
    asked: Iterable[Need],
    operator: Operator,
    known: Compiled,
    compilers: "Compilers",
    bind: Callable[[Runner], None],
    note: Callable[[str], None],
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Compile what tasks will need and is not compiled yet.

    Args:
        asked: what tasks will call, drawn as it is taken.
        operator: of the cases.
        known: what is compiled.
        compilers: perhaps started before; they are ended.
        bind: tells a runner what to call.
        note: is told how much there is to compile.
        ready: is told each task for which all is compiled; by several threads, one at a time.
    """
    with compilers:
        if known.cold:
            compilers.begin()  # they import the target while the cases are drawn
        needs = Needs(asked, operator, known, ready)
        if needs.calls:
            note(f"compiling {len(needs.calls)} signatures beforehand")
            compilers.compile(needs, known, bind)


class Compilers:
    """Processes that compile, as many as the machine has room for."""

    def __init__(self, start: Callable[[], Runner]) -> None:
        """Nothing is started yet.

        Args:
            start: returns a runner that has imported the target.
        """
        self._start = start
        self._pool = ThreadPoolExecutor(lanes())
        self._runners: list[Future[Runner]] = []

    def begin(self) -> None:
        """Start the processes, unless they are."""
        if not self._runners:
            self._runners = [self._pool.submit(self._start) for _ in range(lanes())]

    def compile(self, needs: Needs, known: Compiled, bind: Callable[[Runner], None]) -> None:
        """Run every call once.

        Signatures that differ in optional arguments alone share most kernels, so one process takes them in turn; whoever is
        done takes the next such group, what tasks wait for that come first, and then the largest. What a call does is no
        verdict here: the session asks it again. One that never ends is waited for once it is launched as long as any call, and
        then nothing more is compiled beforehand.
        """
        groups: dict[object, list[tuple[Signature, Call]]] = {}
        for made, call in sorted(needs.calls.items(), key=lambda item: (not needs.urgent(item[0]), volume(item[1]))):
            groups.setdefault(made[:3], []).append((made, call))
        left = deque(sorted(groups.values(), key=lambda group: (not needs.urgent(group[0][0]), -len(group))))

        def lane(starting: Future[Runner]) -> None:
            try:
                runner = starting.result()
                bind(runner)
                while left:
                    try:
                        group = left.popleft()
                    except IndexError:  # another lane was quicker
                        return
                    for made, call in group:
                        try:
                            runner.run(Program((call,)), time_limit=_SECONDS, patience=bench.HANG_SECONDS)
                            known.add(made)
                        except Refused:
                            pass
                        except Fault as fault:
                            if fault.kind == "hang":
                                left.clear()
                                return
                        needs.met(made)
            except CannotCheckError:
                return

        self.begin()
        with ThreadPoolExecutor(len(self._runners)) as pool:
            list(pool.map(lane, self._runners))

    def close(self) -> None:
        """End the processes; one that still starts ends as soon as it has. Idempotent."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for started in self._runners:
            started.add_done_callback(_ended)
        self._runners = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ended(started: Future[Runner]) -> None:
    if not started.cancelled() and started.exception() is None:
        started.result().close()
