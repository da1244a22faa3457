"""Containment in time: NaN or infinity at a token does not reach earlier tokens of its sequence.

Reported only: chunkwise forms multiply masked entries of a chunk by zero, and zero times NaN is NaN.
"""

from linverify.properties._problems import axes_of, forward_only, length_of, of_result, span
from linverify.properties._results import choose, solved
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

_POISON = (float("nan"), float("inf"))


def check(trial: Trial) -> None:
    """Poison one token of each input in turn and judge the outputs before it."""
    problem, operator = trial.problem, trial.operator
    token = choose(trial, "token", 1, length_of(problem, operator, "T"))
    past = forward_only(span(problem, operator, 0, token)).with_(final_state=False)
    for name, x in problem.tensors.items():
        if "T" in axes_of(operator, name):
            bad = x.clone()
            bad[:, token] = _POISON[choose(trial, name, 0, len(_POISON))]
            _, result = solved(trial, problem.with_tensors(**{name: bad}))
            trial.agree(of_result(result, operator, {"T": range(token)}), past, results=("o",))


PROPERTY = Property(
    name="containment_time",
    law="NaN or infinity at a token never reaches the outputs of earlier tokens.",
    check=check,
    required=False,
    applies=lambda operator: "M4" in operator.identities,
    space=Space(max_T=SHORT, min_T=2, final_state=False, regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="It decides whether the first NaN in an output points at the token that caused it.",
)
