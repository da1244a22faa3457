"""A session: targets, properties and cases in, target results out.

The order: import the target in its worker, bind it, and for every property draw cases, ask, judge, shrink. A property is
left out only with its reason; a verdict of "pass" needs every required property to have been judged on at least one case.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from linverify import registry
from linverify.binding import FunctionInfo
from linverify.case import Case
from linverify.company import OWN_PROCESS
from linverify.draw import check as check_case
from linverify.errors import CannotCheckError, UsageError
from linverify.examination import INTERPRETED_DTYPES, Examination
from linverify.implementation import Claim
from linverify.plan import Listener, Plan
from linverify.runner import Runner
from linverify.shared import Shared
from linverify.standing import Standing
from linverify.target import TargetSpec, parse
from linverify.verdict import PropertyResult, TargetResult

__all__ = ["INTERPRETED_DTYPES", "Listener", "Plan", "Shared", "check", "replay"]


def check(plan: Plan, listener: Listener, shared: Shared | None = None) -> tuple[TargetResult, ...]:
    """Check a target: every decorated function of it, or the one named.

    Raises:
        UsageError: the plan cannot be understood.
        CannotCheckError: the target cannot be imported, or the device is not there.
    """
    return _results(plan, listener, shared or Shared(), None)


def replay(plan: Plan, case: Case, listener: Listener) -> tuple[TargetResult, ...]:
    """Ask one case again, under every property whose space it lies in (or those the plan names).

    Raises:
        UsageError: the case contradicts itself or its operator.
    """
    return _results(plan, listener, Shared(), case)


def _results(plan: Plan, listener: Listener, shared: Shared, only: Case | None) -> tuple[TargetResult, ...]:
    with one_thread(), open_runner(plan, parse(plan.target)) as runner:
        return tuple(_examined(e, listener, only) for e in examinations(plan, runner, listener, shared))


def examinations(plan: Plan, runner: Runner, listener: Listener, shared: Shared) -> Iterator[Examination]:
    """Yield an examination of every function that the plan asks about; the last one yielded is bound to the runner."""
    for function, claim in asked(plan, runner):
        yield Examination(plan, parse(plan.target), runner, function, claim, listener, shared)


def _examined(examination: Examination, listener: Listener, only: Case | None) -> TargetResult:
    if only is not None:
        check_case(only, examination.operator)
    listener.target_started(examination.name, examination.operator.name, [law.name for law in examination.laws])
    results: list[PropertyResult] = []
    standing = Standing()
    try:
        if only is None:
            for law in (law for law in examination.laws if law.name in OWN_PROCESS):
                examination.begin(law)  # these processes import while others work
            examination.prepare()
        for law in examination.laws:
            listener.property_started(law.name)
            result, standing = examination.ask(law, standing, only)
            results.append(result)
            listener.property_finished(result)
        found = examination.finish(results, only)
    finally:
        examination.close()
    listener.target_finished(found)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Judge on one thread: cases are small, and threads that wait for each other cost more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_runner(plan: Plan, spec: TargetSpec) -> Runner:
    """Return the runner of a target; nothing is started yet.

    Raises:
        CannotCheckError: the plan's device is not there.
    """
    if plan.device.startswith("cuda") and not torch.cuda.is_available():
        raise CannotCheckError(
            f"no device {plan.device!r}: torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    threads = max(1, len(os.sched_getaffinity(0)) // 2 // plan.workers)
    travels = not plan.properties or "call_sequences" in plan.properties
    return Runner(spec, device=plan.device, autotune=plan.pinning, threads=threads, share=plan.share, travels=travels)


def asked(plan: Plan, runner: Runner) -> list[tuple[FunctionInfo, Claim]]:
    """Return the functions to check, each with what it is held to.

    Raises:
        UsageError: the target declares nothing, and the plan names no operator.
        CannotCheckError: the target cannot be imported.
    """
    functions = runner.describe().functions
    if plan.operator is not None:
        own = [
            (f, next((c for c in f.claims if registry.operator(c.operator).name == plan.operator), None))
            for f in functions
        ]
        return [(f, c or Claim(plan.operator, backend="triton" if f.uses_triton else "")) for f, c in own]
    found = [(f, c) for f in functions for c in f.claims]
    if not found:
        raise UsageError(
            f"{plan.target} does not say which operator it computes; pass --op, or decorate it with @linverify.kernel"
        )
    return found
