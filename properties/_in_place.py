"""Two calls of which the second finds its inputs written over the first one's, in the very same tensors."""

from linverify.problem import Call, Problem, Program
from linverify.property import Trial


def then(trial: Trial, changed: Problem, stale: str) -> None:
    """Ask the trial's problem, write another over it, ask again with the very same tensors, and judge both answers.

    Args:
        trial: of the case.
        changed: what is written; its tensors are shaped as the problem's.
        stale: what a wrong second answer after a right first one means.
    """
    results = trial.run(Program((Call(trial.problem), Call(changed)), in_place=True))
    trial.agree(results[0])
    trial.agree(results[1], changed, means=stale)
