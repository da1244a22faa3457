"""Earlier result untouched: what one call returned stays as it is while others run."""

from linverify.problem import Call, Program
from linverify.properties._problems import asked, mirrored
from linverify.properties._results import complete, equal, letters
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Call, call again with other values of the same shapes, and read the first results once more."""
    problem = trial.problem
    calls = (Call(problem), Call(mirrored(problem, trial.operator)))
    first, *_, reread = trial.run(Program(calls, reread=True))
    complete(trial, (problem, first))
    complete(trial, (problem, reread))
    for name in asked(problem):
        before, after = first.named()[name], reread.named()[name]
        if not equal(before, after):
            trial.identical(f"{name} of a call, before and after another call", before, after, letters(trial, name))


PROPERTY = Property(
    name="earlier_result_untouched",
    law="A result keeps its values when the function is called again.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="An output buffer kept for reuse between calls makes every layer of a model read the last layer's values.",
)
