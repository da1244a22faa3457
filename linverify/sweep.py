"""The sweep: every configuration of every autotuned kernel that a problem launches, each forced, run and judged.

In one run every kernel takes its own next configuration, so there are as many runs as the longest list has entries. Where a
run is not right, each kernel whose configuration was new in it is forced alone, the others pinned, which names the one at
fault; nothing is compiled for that again. Several processes run at once and compile for each other.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from queue import SimpleQueue

from linverify.problem import Call, Fault, Launched, Problem, Program, Refused, Result
from linverify.runner import Runner
from linverify.verdict import Configuration, Status

_LOOK_AGAIN = 1.0  # seconds between two looks at the clock

Answer = Result | Refused | Fault
# Whether a result is right, and one sentence on it where it is not.
Judged = tuple[Status, str]
Judge = Callable[[Answer], Judged]


@dataclass(eq=False)
class Lanes:
    """Processes that run the target at once.

    Attributes:
        start: starts one; it has imported the target and is bound.
        count: how many there may be.
        seconds: that one program may take, compiling included.
    """

    start: Callable[[], Runner]
    count: int
    seconds: float
    _idle: SimpleQueue[Runner | Exception] = field(default_factory=SimpleQueue)
    _started: list[Runner] = field(default_factory=list)
    _pool: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Start all of them, while others work; idempotent."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count)
            for _ in range(self.count):
                self._pool.submit(self._begin)

    def _begin(self) -> None:
        try:
            runner = self.start()
            self._started.append(runner)
            self._idle.put(runner)
        except Exception as error:  # told to whoever wants to run something
            self._idle.put(error)

    def ask(self, problem: Problem, place: int, only: Sequence[str] = ()) -> "Future[Answer]":
        """Run a problem with every kernel (or these) at this place of its list; refusals and faults are answers, too."""
        self.open()
        assert self._pool is not None
        return self._pool.submit(self._run, Program((Call(problem),), place=place, only=tuple(only)))

    def _run(self, program: Program) -> Answer:
        runner = self._idle.get()
        if isinstance(runner, Exception):
            self._idle.put(runner)
            raise runner
        try:
            return runner.run(program, time_limit=self.seconds)[0]
        except (Refused, Fault) as error:
            return error
        finally:
            self._idle.put(runner)

    def close(self) -> None:
        """End all processes, in the middle of something or not; what still waits is not run."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for runner in self._started:
                runner.interrupt()
            self._pool.shutdown()
        for runner in self._started:
            runner.close()


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A kernel's configuration that a run forces for the first time."""

    kernel: str
    place: int
    configuration: str


def swept(
    lanes: Lanes,
    problem: Problem,
    case_id: str,
    first: Result,
    judge: Judge,
    known: Mapping[tuple[str, str, str], Configuration],
    stopped: Callable[[], bool],
) -> Generator[Configuration, None, bool]:
    """Force, run and judge every configuration; yield each as soon as it is settled, return whether all of them were.

    Args:
        lanes: processes.
        problem: what is run.
        case_id: its case.
        first: its result with every kernel pinned to its first configuration that fits.
        judge: says whether an answer is right; called in this thread.
        known: what an earlier run has settled, by case, kernel and configuration: not run again.
        stopped: whether time is up; then the rest is left.
    """
    kernels = first.launched
    longest = max((len(k.configurations) for k in kernels), default=0)
    waiting: dict[Future[Answer], tuple[int, list[_Suspect]]] = {}
    pinned: Future[Answer] = Future()
    pinned.set_result(first)
    for place in range(longest):
        suspects = [s for s in _suspects(kernels, place) if (case_id, s.kernel, s.configuration) not in known]
        if suspects:
            waiting[lanes.ask(problem, place) if place else pinned] = place, suspects
    sound = judge(first)[0] in (Status.PASS, Status.MARGINAL)
    left = set(waiting)
    while left and not stopped():
        done = next(iter(wait(left, timeout=_LOOK_AGAIN, return_when=FIRST_COMPLETED).done), None)
        if done is None:
            continue
        left.remove(done)
        place, suspects = waiting[done]
        if sound or not place:
            yield from _settled(lanes, problem, case_id, judge, done.result(), place, suspects)
        else:
            yield from _beside(case_id, judge, done.result(), suspects)
    for future in left:
        future.cancel()
    return not left


def _suspects(kernels: Sequence[Launched], place: int) -> Iterator[_Suspect]:
    for k in kernels:
        if place < len(k.configurations):
            yield _Suspect(k.kernel, place, k.configurations[place])


def _settled(
    lanes: Lanes,
    problem: Problem,
    case_id: str,
    judge: Judge,
    answer: Answer,
    place: int,
    suspects: Sequence[_Suspect],
) -> Iterator[Configuration]:
    """Say of each suspect what it is worth."""
    status, said = judge(answer)
    if status is Status.PASS or len(suspects) == 1 or not place:  # the pinned run is the one to compare with
        for s in suspects:
            yield _unfit(case_id, s, answer) or Configuration(s.kernel, s.configuration, status, case_id, said)
        return
    alone = {lanes.ask(problem, place, (s.kernel,)): s for s in suspects}
    found = []
    for done in as_completed(alone):
        s, one = alone[done], done.result()
        own, why = judge(one)
        found.append(_unfit(case_id, s, one) or Configuration(s.kernel, s.configuration, own, case_id, why))
    if all(c.status is Status.PASS for c in found):
        together = f"right alone; at place {place} of all lists together: {said}"
        found = [Configuration(c.kernel, c.configuration, Status.MARGINAL, case_id, together) for c in found]
    yield from found


def _beside(case_id: str, judge: Judge, answer: Answer, suspects: Sequence[_Suspect]) -> Iterator[Configuration]:
    """What can be said where the pinned run itself is wrong: a run that is right clears its configurations."""
    status, said = judge(answer)
    status = status if status is Status.PASS else Status.MARGINAL
    note = f"the run with every kernel pinned is wrong itself; in this one: {said}" if said else ""
    for s in suspects:
        yield _unfit(case_id, s, answer) or Configuration(s.kernel, s.configuration, status, case_id, note)


def _unfit(case_id: str, suspect: _Suspect, answer: Answer) -> Configuration | None:
    """The record of a configuration for which the device has no room, as the run reported; None where it ran."""
    for k in answer.launched if isinstance(answer, Result) else ():
        if k.kernel == suspect.kernel and suspect.place in k.unfit:
            return Configuration(k.kernel, suspect.configuration, Status.REFUSED, case_id, "does not fit this device")
    return None


def told(found: Sequence[Configuration]) -> str:
    """One sentence on a sweep."""
    if not found:
        return "the target launches no autotuned kernel"
    kernels = {c.kernel for c in found}
    counts = {s: len({(c.kernel, c.configuration) for c in found if c.status is s}) for s in Status}
    parts = [
        f"{counts[s]} {word}"
        for s, word in (
            (Status.PASS, "right"),
            (Status.VIOLATION, "wrong"),
            (Status.MARGINAL, "in doubt"),
            (Status.REFUSED, "refused or without room"),
        )
        if counts[s]
    ]
    every = len({(c.kernel, c.configuration) for c in found})
    return f"{every} configurations of {len(kernels)} kernels: {', '.join(parts)}"
