"""A few judged calls to one function of somebody else's, in this process: what a check asks first, without its search."""

import contextlib
import importlib
import io
import runpy
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from crew import Finding
from direct import DEVICE
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
    base = Case(operator.name, B=2, T=70, H=2, K=K, V=V, dtype=dtype, seed=1, **{**state, **gate})  # type: ignore[arg-type]
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


def trial(name: str, dtype: str, K: int = 64, V: int = 32, device: str = DEVICE) -> Finding:
    """Ask all cases, judge each result; a violation where one is beyond its budget or breaks the contract."""
    wanted = named(name)
    if wanted.builds:
        file, _, function_name = wanted.function.rpartition("/")[2].partition(".py::")
        importlib.import_module(f"libraries.{file}").build(function_name)
    function, operator, binding = bound(name)
    judge, assignment = Judge(operator, device), assignment_of(binding, operator)
    precision = precision_class(dtype, device, {})
    beyond: list[str] = []
    notes: list[str] = []
    shares: list[tuple[float, str]] = []
    for word, case in cases(operator, binding, dtype, K, V):
        try:
            problem = draw.problem(case, operator)
        except LinverifyError as error:
            notes.append(f"{word}: {error}")
            continue
        asked = [problem, problem.with_(lengths=moved(problem.lengths))] if word == "borders changed" else [problem]
        try:
            result = _asked(function, assignment, asked, device)[-1]
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            notes.append(f"{word} refused: {type(error).__name__}: {first_line(error)[:120]}")
            continue
        for breach in result.breaches:
            # no promise of these operators, and only reported by a check
            (notes if breach.kind == "not_contiguous" else beyond).append(f"{word}: {breach.kind}: {breach.message}")
        for result_name, share in _shares(judge, judge.answer(asked[-1]), result, precision).items():
            shares.append((share, f"{result_name}, {word}"))
            if not share <= 1:
                beyond.append(f"{word}: {result_name} share {share:.3g} [{case.id}]")
    said = "; ".join([*beyond, *notes])
    if not shares:
        return Finding("refused", said)
    most = f"{len(shares)} results, largest share {max(shares)[0]:.2f} ({max(shares)[1]})"
    return Finding("violation" if beyond else "pass", f"{most}; {said}" if said else most)


def _shares(judge: Judge, answer: Answer, result: Result, precision: str) -> dict[str, float]:
    """Share of the budget of each result that can be judged."""
    found = {}
    for name, value in result.named().items():
        with contextlib.suppress(Unjudgeable):
            found[name] = judge.score(answer, name, value.to(judge.device), precision).share
    return found


def _asked(function: Any, assignment: Any, problems: list[Problem], device: str) -> tuple[Result, ...]:
    """Make the calls; where the backward pass is refused, the forward pass alone."""
    place = torch.device(device)
    try:
        return run_program(function, assignment, Program(tuple(Call(p) for p in problems), in_place=True), place)
    except Exception as error:
        if not problems[0].cotangents or "CUDA error" in str(error):
            raise
        forward = [p.with_(cotangents={}, wrt=()) for p in problems]
        return run_program(function, assignment, Program(tuple(Call(p) for p in forward), in_place=True), place)


def script(path: str) -> Finding:
    """Run a reproducer; what it prints is what is found."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        runpy.run_path(path, run_name="__main__")
    return Finding("printed", "\n" + text.getvalue())
