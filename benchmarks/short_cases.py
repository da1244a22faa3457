"""A few judged calls to one function of somebody else's, in this process: what a check asks first, without its search."""

import contextlib
import importlib
import io
import runpy
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from crew import Finding
from direct import DEVICE, rms_ratio
from trial_targets import LIBRARIES, Target

from linverify import describe, draw, registry, target
from linverify.binding import Binding, bind
from linverify.case import Case
from linverify.describe import first_line
from linverify.errors import LinverifyError
from linverify.invoke import run_program
from linverify.judge import Answer, Judge, Unjudgeable
from linverify.operator import Operator
from linverify.options import operator_option, settings_option
from linverify.parameters import with_parameters
from linverify.problem import Call, Problem, Program, Result
from linverify.properties.changed_borders import moved
from linverify.recipe import precision_class
from linverify.reproducer import assignment_of


def named(name: str) -> Target:
    """A target of the table by its name."""
    return next(t for library in LIBRARIES.values() for n, t in library.targets.items() if n == name)


@cache
def bound(name: str) -> tuple[Any, Operator, Binding]:
    """Import and bind a target, once."""
    wanted = named(name)
    spec = target.parse(wanted.function)
    functions, description = describe.load(spec.kind, spec.location, spec.function)
    (function,), (info,) = functions.values(), description.functions
    operator_name, values = operator_option(wanted.operator)
    operator = with_parameters(registry.operator(str(operator_name)), values)
    given = [value for flag, value in zip(wanted.options, wanted.options[1:], strict=False) if flag == "--set"]
    return function, operator, bind(operator, info, settings=settings_option(given))


def cases(operator: Operator, binding: Binding, dtype: str, K: int, V: int) -> Iterator[tuple[str, Case]]:
    """What is asked, each with a word for it; they share their widths, and so what is compiled."""
    stateful = {"initial_state", "final_state"} <= binding.capabilities
    state = {"state": "normal", "final_state": True, "cotangent": "both"} if stateful else {"cotangent": "o"}
    gate = {"gate": "mild"} if operator.gated else {}
    # given, not left out: functions differ in their default, which is no fault of either
    scale = {"scale": "one"} if "scale" in binding.capabilities else {}
    base = Case(operator.name, B=2, T=70, H=2, K=K, V=V, dtype=dtype, seed=1, **{**state, **gate, **scale})  # type: ignore[arg-type]
    yield "dense", base
    yield "longer", base.with_(B=1, T=263, seed=2)
    if operator.gated:
        yield "strong gates", base.with_(gate="strong", seed=3)
    if stateful:
        yield "the state's gradient alone", base.with_(cotangent="state", seed=4)
    if "packed" in binding.capabilities:
        packed = base.with_(B=1, T=263, lengths=(70, 1, 130, 62), seed=5)
        yield "packed", packed
        yield "borders changed", packed.with_(cotangent="none", seed=6)


def trial(name: str, dtype: str, K: int = 64, V: int = 32, device: str = DEVICE) -> Iterator[Finding]:
    """Ask all cases, judge each result; yield what is known after each of them.

    A violation is a result beyond its budget or a broken contract; a backward pass that is refused is said, not counted.
    """
    wanted = named(name)
    if wanted.builds:
        file, _, function_name = wanted.function.rpartition("/")[2].partition(".py::")
        importlib.import_module(f"libraries.{file}").build(function_name)
    function, operator, binding = bound(name)
    judge, assignment = Judge(operator, device), assignment_of(binding, operator)
    precision = precision_class(dtype, device, {})
    seen = _Seen()
    for word, case in cases(operator, binding, dtype, K, V):
        try:
            problem = draw.problem(case, operator)
        except LinverifyError as error:
            seen.note(word, str(error))
            continue
        asked = [problem, problem.with_(lengths=moved(problem.lengths))] if word == "borders changed" else [problem]
        try:
            results, refusal = _asked(function, assignment, asked, device)
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            seen.note(word, f"refused: {_told(error)}")
            yield seen.finding()
            continue
        if refusal:
            seen.note(word, f"backward refused: {refusal}")
        seen.judge(word, case, results[-1], judge, judge.answer(asked[-1]), precision)
        yield seen.finding()
    if not seen.shares and not seen.beyond:
        yield seen.finding()


@dataclass
class _Seen:
    """What is known of a function so far: shares of the budget, what is wrong, and notes with the cases they hold for."""

    shares: list[tuple[float, str]] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def wrong(self, word: str, message: str) -> None:
        self.beyond.append(f"{word}: {message}")

    def note(self, word: str, message: str) -> None:
        words = self.notes.setdefault(message, [])
        if word not in words:
            words.append(word)

    def judge(self, word: str, case: Case, result: Result, judge: Judge, answer: Answer, precision: str) -> None:
        """Broken contracts of a result, and the share of its budget that each of its tensors uses up."""
        if not result.offers_gradients:
            self.note(word, "no gradients offered")
        for breach in result.breaches:
            if breach.kind == "not_contiguous":  # no promise of these operators, and only reported by a check
                self.note(word, breach.kind)
            else:
                self.wrong(word, f"{breach.kind}: {breach.message}")
        for name, value in result.named().items():
            try:
                share = judge.score(answer, name, value.to(judge.device), precision).share
            except Unjudgeable as error:
                self.note(word, f"{name} not judged: {error}")
                continue
            self.shares.append((share, f"{name}, {word}"))
            if not share <= 1:
                ratio = rms_ratio(answer.reference[name], value)
                self.wrong(word, f"{name} share {share:.3g}, RMS error {ratio:.2g} [{case.id}]")

    def finding(self) -> Finding:
        said = "; ".join([*self.beyond, *(f"{', '.join(words)}: {m}" for m, words in self.notes.items())])
        if not self.shares:
            return Finding("violation" if self.beyond else "refused", said)
        most = f"{len(self.shares)} results, largest share {max(self.shares)[0]:.2f} ({max(self.shares)[1]})"
        return Finding("violation" if self.beyond else "pass", f"{most}; {said}" if said else most)


def _asked(function: Any, assignment: Any, problems: list[Problem], device: str) -> tuple[tuple[Result, ...], str]:
    """Make the calls; where they are refused with a backward pass, without one, and with what was said."""
    place = torch.device(device)
    try:
        return run_program(function, assignment, Program(tuple(Call(p) for p in problems), in_place=True), place), ""
    except Exception as error:
        if not problems[0].cotangents or "CUDA error" in str(error):
            raise
        refusal = _told(error)
    forward = [p.with_(cotangents={}, wrt=()) for p in problems]
    return run_program(function, assignment, Program(tuple(Call(p) for p in forward), in_place=True), place), refusal


def _told(error: Exception) -> str:
    """Its first line; of one without words the line of code that raised it."""
    words = first_line(error)[:200] or traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {words}"


def script(path: str, adapter: str = "") -> Finding:
    """Run a reproducer; what it prints is what is found.

    Args:
        path: of the script.
        adapter: of benchmarks/libraries whose ``build`` makes the library importable; "" for none.
    """
    if adapter:
        importlib.import_module(f"libraries.{adapter}").build()
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        runpy.run_path(path, run_name="__main__")
    return Finding("printed", "\n" + text.getvalue())
