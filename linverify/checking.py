"""Check targets one after the other and keep what was judged, whatever happens on the way.

A target that cannot be checked does not stop the others. Ctrl-C does, and so does a request that cannot be understood; what was
judged until then is kept and can be reported and recorded.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from linverify.errors import CannotCheckError, LinverifyError
from linverify.plan import Listener, Plan
from linverify.verdict import Configuration, PropertyResult, Status, TargetResult

Ask = Callable[[Plan, Listener], Sequence[TargetResult]]


@dataclass(slots=True)
class Keeper:
    """A listener that keeps the results as they come and passes everything on.

    Attributes:
        onward: who else listens.
        finished: targets that are through.
        partial: properties of the target in hand.
        swept: autotuning configurations of the target in hand.
    """

    onward: Listener
    finished: list[TargetResult] = field(default_factory=list)
    partial: list[PropertyResult] = field(default_factory=list)
    swept: list[Configuration] = field(default_factory=list)
    _target: tuple[str, str] = ("", "")
    _cases: set[str] = field(default_factory=set)
    _began: float = 0.0

    def target_started(self, target: str, operator: str, properties: Sequence[str]) -> None:
        """Begin with another target."""
        self._target, self._began = (target, operator), time.monotonic()
        self.partial.clear()
        self.swept.clear()
        self._cases.clear()
        self.onward.target_started(target, operator, properties)

    def property_started(self, name: str) -> None:
        """Pass on."""
        self.onward.property_started(name)

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:
        """Count distinct cases."""
        self._cases.add(case_id)
        self.onward.case_judged(name, case_id, share)

    def property_finished(self, result: PropertyResult) -> None:
        """Keep the property."""
        self.partial.append(result)
        self.onward.property_finished(result)

    def target_finished(self, result: TargetResult) -> None:
        """Keep the target."""
        self.finished.append(result)
        self.partial.clear()
        self._target = ("", "")
        self.onward.target_finished(result)

    def configuration_settled(self, found: Configuration) -> None:
        """Keep the configuration."""
        self.swept.append(found)
        self.onward.configuration_settled(found)

    def note(self, text: str) -> None:
        """Pass on."""
        self.onward.note(text)

    def cut_short(self, target: str, operator: str, reason: str) -> TargetResult:
        """Return the record of the target in hand, as far as it got; a violation found so far stays one."""
        named = self._target if self._target[0] else (target, operator)
        broken = any(p.required and p.status is Status.VIOLATION for p in self.partial)
        seconds = {"total": time.monotonic() - self._began} if self._target[0] else {}
        result = TargetResult(
            *named,
            form="",
            backend="",
            verdict="violation" if broken else "unchecked",
            reason=reason,
            properties=tuple(self.partial),
            notes=(reason,) if broken else (),
            cases=len(self._cases),
            seconds=seconds,
            configurations=tuple(self.swept),
        )
        self.partial.clear()
        self._target = ("", "")
        return result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        results: of all targets, in order, those cut short included.
        interrupted: True after Ctrl-C.
        error: the request that could not be understood; None where there was none.
    """

    results: tuple[TargetResult, ...]
    interrupted: bool = False
    error: LinverifyError | None = None


def check_all(plans: Sequence[Plan], ask: Ask, listener: Listener, finished: Callable[[TargetResult], None]) -> Outcome:
    """Ask about every plan; never raises for what a target does.

    Args:
        plans: one a target text.
        ask: ``session.check``, or something of its shape.
        listener: hears of the progress.
        finished: is handed each target's result as soon as its plan is through.
    """
    results: list[TargetResult] = []

    def keep(found: Sequence[TargetResult]) -> None:
        for result in found:
            results.append(result)
            finished(result)

    for plan in plans:
        keeper = Keeper(listener)
        operator = plan.operator or ""
        try:
            keep(ask(plan, keeper))
        except KeyboardInterrupt:
            keep([*keeper.finished, keeper.cut_short(plan.target, operator, "interrupted")])
            return Outcome(tuple(results), interrupted=True)
        except CannotCheckError as error:
            keep([*keeper.finished, keeper.cut_short(plan.target, operator, str(error))])
        except LinverifyError as error:
            keep(keeper.finished)
            return Outcome(tuple(results), error=error)
        except Exception as error:
            keep([*keeper.finished, keeper.cut_short(plan.target, operator, bug_report(error))])
    return Outcome(tuple(results))


def bug_report(error: BaseException) -> str:
    """Write the traceback of an error that is ours to a file, and return the sentence that says so; memory is nobody's bug."""
    what = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    if "OutOfMemoryError" in what:
        return f"the GPU had no memory left to judge in: {what}; try fewer processes (-n), or an emptier GPU"
    text = "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="linverify-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
        where = f"the traceback is in {Path(name)}"
    except OSError:
        where = "its traceback could not be written"
    return f"this is a bug of linverify, not of the target: {what}; {where}"
