"""The bench: what all trials of one target share. Asks the target through its worker, remembers answers and results.

Everything is remembered by case id, so that properties (and forms of one operator) that ask the same question pay once.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, TypeVar

from linverify import sweep
from linverify.bystander import Bystander
from linverify.caches import Caches
from linverify.case import Case
from linverify.declared import Declaration
from linverify.emulated import emulates
from linverify.examples import SharedExamples
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Call, Fault, Problem, Program, Refused, Result
from linverify.recipe import Recipe, precision_class
from linverify.runner import Runner
from linverify.sanitizer import Finding
from linverify.score import Answer, Score
from linverify.verdict import Configuration

_Value = TypeVar("_Value")
# (shapes, class of T, T is a multiple of 16, optional arguments)
Signature = tuple[Hashable, int, bool, Hashable]

HANG_SECONDS = 60.0
HANG_FACTOR = 20.0
HURRY = 10.0
# The first call of a compile signature may spend minutes in a GPU compiler or an autotuner.
COMPILE_SECONDS = 300.0


class Memory(Generic[_Value]):
    """The most recent values, up to `limit` by `weigh` (1 a value by default).

    A value may grow while it is in use, until the next one is asked for or put in: it is weighed again then.
    """

    def __init__(self, limit: float, weigh: Callable[[_Value], float] = lambda _: 1.0) -> None:
        self._limit = limit
        self._weigh = weigh
        self._held: OrderedDict[Hashable, _Value] = OrderedDict()
        self._weights: dict[Hashable, float] = {}
        self._used: Hashable = None
        self._total = 0.0

    def get(self, key: Hashable) -> _Value | None:
        """Return a value and mark it as recent."""
        self._use(key)
        return self._held.get(key)

    def put(self, key: Hashable, value: _Value) -> _Value:
        """Keep a value; the oldest goes when there are too many."""
        self._held[key] = value
        self._use(key)
        self._reweigh(key)
        while self._total > self._limit and len(self._held) > 1:
            oldest, _ = self._held.popitem(last=False)
            self._total -= self._weights.pop(oldest)
        return value

    def _use(self, key: Hashable) -> None:
        if self._used in self._held:
            self._reweigh(self._used)
        if key in self._held:
            self._held.move_to_end(key)
            self._used = key

    def _reweigh(self, key: Hashable) -> None:
        weight = self._weigh(self._held[key])
        self._total += weight - self._weights.get(key, 0.0)
        self._weights[key] = weight


@dataclass(eq=False)
class Bench:
    """One target under check.

    Attributes:
        runner: talks to the worker.
        operator: what the target is held to.
        judge: scores results; may be shared by targets of one operator.
        device: as given on the command line.
        claims: promises of the target.
        declaration: what it declares of its arithmetic, or None.
        answers: references by case id; may be shared by targets of one operator.
        bounds: of the references that were held to the next rung of the ladder, in units of the budget's scale.
        single: the target was seen to compute float64 cases in float32.
        hurried: a hang is being shrunk; less patience will do until the smallest case is confirmed.
        bystander: the target in a plain process; None where nothing asks for it.
        caches: the target in plain processes that compile anew; None where nothing asks for it.
        lanes: processes for the sweep of autotuning configurations; None where that was not asked for.
        configurations: that the sweep has settled.
        settled: told of each of them.
        stopped: whether the session's time is up.
        examples: cases that failed, as all workers of the session keep them; None where nobody else does.
        sanitizer: runs a problem under a tool; None where it was not asked for.
        twin: runner of a built-in form to compare with, perhaps still starting; None where nothing asks for it.
    """

    runner: Runner
    operator: Operator
    judge: Judge
    device: str
    claims: Mapping[str, str]
    answers: Memory[Answer]
    declaration: Declaration | None = None
    twin: Future[Runner] | None = None
    bystander: Bystander | None = None
    caches: Caches | None = None
    lanes: sweep.Lanes | None = None
    configurations: list[Configuration] = field(default_factory=list)
    settled: Callable[[Configuration], None] = lambda _: None
    stopped: Callable[[], bool] = lambda: False
    sanitizer: Callable[[Problem, str], tuple[Finding, ...]] | None = None
    examples: SharedExamples | None = None
    compiles: bool = False
    single: bool = False
    bounds: list[float] = field(default_factory=list)
    hurried: bool = False
    usage: dict[tuple[str, str], tuple[int, float, str]] = field(default_factory=dict)
    worst: dict[tuple[str, str], tuple[float, Case]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"target": 0.0})
    slowest: float = 0.0
    _results: Memory[Result | Refused] = field(default_factory=lambda: Memory(256))
    _derived: Memory[Answer] = field(default_factory=lambda: Memory(6))
    _signatures: set[Hashable] = field(default_factory=set)

    def precision(self, case: Case) -> str:
        """Precision class that judges a case."""
        found = precision_class(case.dtype, self.device, dict(self.claims))
        return "fp32" if found == "fp64" and self.single else found

    def recipe(self, case: Case) -> Recipe | None:
        """The declared recipe that judges a case, or None."""
        if emulates(self.operator):  # a model of whole operations, without rounding points by name
            return None
        return None if self.declaration is None else self.declaration.recipe(case.dtype, self.precision(case))

    def answer(self, problem: Problem, key: str | None) -> Answer:
        """The reference of a problem, remembered under the case id where it is the case's own."""
        if key is None:
            return self._derived.get(problem) or self._derived.put(problem, self.judge.answer(problem))
        return self.answers.get(key) or self.answers.put(key, self.judge.answer(problem))

    def certified(self, answer: Answer, result: str, score: Score) -> bool:
        """Hold a reference to the ladder before it convicts; True where it was replaced and all scores are void."""
        known = answer.certificate is not None
        replaced = self.judge.certify(answer, result, score)
        if not known and answer.certificate is not None:
            self.bounds.append(answer.certificate.bound)
        return replaced

    def solve(self, call: Call, key: Hashable | None) -> Result:
        """Ask the target one call; refusals are remembered like results.

        Raises:
            Refused: the target refuses.
            Fault: the target crashes, hangs, exits or runs out of memory.
        """
        known = None if key is None else self._results.get(key)
        if known is None:
            try:
                known = self.run(Program((call,)))[0]
            except Refused as refusal:
                known = refusal
            if key is not None:
                self._results.put(key, known)
        if isinstance(known, Refused):
            raise known
        return known

    def met(self, made: Signature) -> bool:
        """Whether the target was asked a call of this signature here."""
        return made in self._signatures

    def run(self, program: Program, *, at_least: float = 0.0) -> tuple[Result, ...]:
        """Ask the target several calls in one process; what takes `at_least` so many seconds is no hang before."""
        start = perf_counter()
        fresh = {signature(c, self.operator) for c in program.calls} - self._signatures
        patience = max(self._patience(), at_least)
        compiling = COMPILE_SECONDS if self.compiles and fresh else 0.0
        try:
            results = self._run(program, patience + compiling, patience if compiling else None)
            if not (self.compiles and fresh) and not at_least:
                self.slowest = max(self.slowest, (perf_counter() - start) / len(program.calls))
            self._signatures |= fresh
            return results
        except Fault as fault:
            if fault.kind == "hang":
                raise Fault(
                    "hang",
                    f"{fault.message} (the slowest call so far took {self.slowest:.2g} s)",
                    fault.log,
                ) from fault
            raise
        finally:
            self.seconds["target"] += perf_counter() - start

    def _run(self, program: Program, limit: float, patience: float | None) -> tuple[Result, ...]:
        """Ask the target; where its share of the GPU's memory did not do, once more with all that is free."""
        share = self.runner.share
        try:
            return self.runner.run(program, time_limit=limit, patience=patience)
        except Fault as fault:
            if fault.kind != "out_of_memory" or share == 1.0:
                raise
        self.runner.share = 1.0  # of the process that is started next; the one that ran out has ended
        try:
            return self.runner.run(program, time_limit=limit, patience=patience)
        except Fault as fault:
            raise Fault(
                fault.kind, f"{fault.message}; other workers use the same GPU (-n 1 asks alone)", fault.log
            ) from fault
        finally:
            self.runner.share = share
            self.runner.restart()

    def unwatched(self, problem: Problem) -> Result:
        """Ask the target in a plain process."""
        if self.bystander is None:
            raise RuntimeError("no plain process was started")
        limit = self._patience() + (COMPILE_SECONDS if self.compiles else 0.0)
        start = perf_counter()
        try:
            return self.bystander.ask(problem, time_limit=limit)
        finally:
            self.seconds["target"] += perf_counter() - start

    def recompiled(self, problems: Sequence[Problem]) -> list[Result]:
        """Ask the target in new processes, the first of which finds nothing compiled; a refusal leaves an empty result.

        Raises:
            Refused: the target refuses the last problem.
        """
        if self.caches is None:
            raise RuntimeError("no process with compile caches of its own was asked for")
        start = perf_counter()
        try:
            found = list(self.caches.ask(problems, time_limit=self._patience() + COMPILE_SECONDS))
        finally:
            self.seconds["target"] += perf_counter() - start
        if isinstance(found[-1], Refused):
            raise found[-1]
        return [Result(None) if isinstance(r, Refused) else r for r in found]

    def sweep(
        self, problem: Problem, case_id: str, first: Result, judged: Callable[[sweep.Answer], sweep.Judged]
    ) -> bool:
        """Force every configuration of every autotuned kernel that a problem launches; they come to `configurations`.

        Args:
            problem: of the case, or its forward pass alone.
            case_id: of the case.
            first: its result as it is pinned.
            judged: says whether an answer is right.

        Returns:
            Whether there was time for all of them.
        """
        if self.lanes is None:
            raise RuntimeError("other configurations were not asked for")
        start = perf_counter()
        known = {(c.case_id, c.kernel, c.configuration): c for c in self.configurations}
        sweeping = sweep.swept(self.lanes, problem, case_id, first, judged, known, self.stopped)
        try:
            while True:
                self.configurations.append(next(sweeping))
                self.settled(self.configurations[-1])
        except StopIteration as end:
            return bool(end.value)
        finally:
            self.seconds["sweep"] = self.seconds.get("sweep", 0.0) + perf_counter() - start

    def sanitized(self, problem: Problem, tool: str) -> tuple[str, ...]:
        """Run a problem under a sanitizer."""
        if self.sanitizer is None:
            raise RuntimeError("no sanitizer was asked for")
        start = perf_counter()
        try:
            return tuple(f.sentence for f in self.sanitizer(problem, tool))
        finally:
            self.seconds["target"] += perf_counter() - start

    def _patience(self) -> float:
        """Seconds after which a call hangs."""
        return max(HANG_SECONDS / (HURRY if self.hurried else 1.0), HANG_FACTOR * self.slowest)

    def close(self) -> None:
        """End the processes that were started for comparison."""
        if self.twin is not None:
            self.twin.result().close()
        if self.bystander is not None:
            self.bystander.close(patience=0.0)
        if self.lanes is not None:
            self.lanes.close()

    def other_form(self, problem: Problem) -> Result:
        """Ask the built-in twin."""
        if self.twin is None:
            raise RuntimeError("no other form of this operator was started")
        return self.twin.result().run(Program((Call(problem),)), time_limit=HANG_SECONDS + COMPILE_SECONDS)[0]

    def used(self, result: str, dtype: str, share: float, precision: str) -> None:
        """Remember the worst share of the budget by result and dtype."""
        cases, worst, _ = self.usage.get((result, dtype), (0, 0.0, ""))
        self.usage[result, dtype] = (cases + 1, max(worst, share), precision)

    def note_worst(self, case: Case, shares: Mapping[str, float]) -> None:
        """Remember, by result and dtype, the case whose own problem used most of its budget."""
        for result, share in shares.items():
            known = self.worst.get((result, case.dtype))
            if known is None or share > known[0]:
                self.worst[result, case.dtype] = (share, case)


def signature(call: Call, operator: Operator) -> Signature:
    """What makes a GPU compiler start over: shapes up to T's class, dtypes, which optional arguments are there."""
    p = call.problem
    axes = {i.name: i.axes for i in operator.inputs}
    tokens = next(t.shape[axes[n].index("T")] for n, t in p.tensors.items() if "T" in axes[n])
    shapes = tuple(
        (n, t.dtype, tuple(size for a, size in zip(axes[n], t.shape, strict=True) if a not in "BT"))
        for n, t in p.tensors.items()
    )
    asked = (p.initial_state is None, p.offsets if p.lengths else "", p.final_state, tuple(sorted(p.cotangents)))
    # a chunk is as long as a short sequence at most: fla's are min(64, max(16, next power of two of T))
    chunk = 1 if tokens == 1 else min(64, max(16, 1 << (tokens - 1).bit_length()))
    return (shapes, chunk, tokens % 16 == 0, asked)
