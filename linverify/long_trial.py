"""A trial of a long sequence: ask the target the whole, and judge what it gives segment by segment."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from linverify.budget import CERTIFICATE
from linverify.diagnosis import diagnose
from linverify.location import evidence, locate
from linverify.problem import Call, Fault, Program, Refused, Result
from linverify.segments import part, timed
from linverify.streamed import Peak, Stream

if TYPE_CHECKING:
    from linverify.trial import CaseTrial, Violation

# What a sequence of a million tokens may take, its way to the target and back included; the kernels themselves take seconds.
SECONDS = 900.0
_LIMITS = {"out_of_memory": "memory for so many tokens", "hang": f"an answer within {SECONDS:.0f} s"}


def asked(trial: "CaseTrial") -> Result:
    """Ask the target; that it has no memory or time for such a sequence is a limitation, not a wrong value.

    Raises:
        Refused: it has no room, takes too long, or says no.
        Fault: it crashes or exits.
    """
    try:
        return trial.bench.run(Program((Call(trial.problem),)), at_least=SECONDS)[0]
    except Fault as fault:
        if fault.kind in _LIMITS:
            raise Refused(fault.kind, f"found no {_LIMITS[fault.kind]}") from fault
        raise


def judged(trial: "CaseTrial", result: Result) -> "tuple[dict[str, Peak], tuple[Violation, bool] | None]":
    """Judge all results; the worst one's violation where one is not right, and whether it decides (or is marginal)."""
    bench, case = trial.bench, trial.case
    named = result.named()
    wanted = {"o", *(("state",) if trial.problem.final_state else ()), *(f"d{n}" for n in trial.problem.wrt)}
    found = {n: t for n, t in named.items() if n in wanted}
    stream = Stream(bench.judge, trial.problem, found, bench.precision(case), bench.recipe(case))
    peaks = stream.judged()
    wrong = {n: p for n, p in peaks.items() if p.score.outcome != "pass"}
    if not wrong:
        return peaks, None
    name = max(wrong, key=lambda n: wrong[n].score.share)
    return peaks, _violation(trial, stream, name, wrong, peaks, found)


def _violation(
    trial: "CaseTrial",
    stream: Stream,
    name: str,
    wrong: Mapping[str, Peak],
    peaks: Mapping[str, Peak],
    found: Mapping[str, Tensor],
) -> "tuple[Violation, bool]":
    from linverify.trial import Violation

    peak, judge, operator = wrong[name], trial.bench.judge, trial.operator
    score, axes = peak.score, judge.axes(name)
    got = part(operator, name, found[name], peak.start, peak.stop).to(judge.device)
    where = locate(score, axes, trial.case.H, peak.start, trial.case.T)
    precision = trial.bench.precision(trial.case)
    said = diagnose(score, name, trial.case, operator, where, got, timed=timed(operator, name), precision=precision)
    bound = stream.certified(name, peak)
    trial.bench.bounds.append(bound)
    if bound > CERTIFICATE:
        said += f"; the float64 reference itself is off by {bound:.1g} of the budget's scale there"
    right = tuple(n for n in peaks if n not in wrong)
    violation = Violation(evidence(score, name, axes, got, peak.start), where, said, tuple(wrong), right)
    return violation, score.outcome == "reject" and bound <= CERTIFICATE
