"""Containment in time: NaN or infinity at a token does not reach earlier tokens of its sequence.

Reported only: chunkwise forms multiply masked entries of a chunk by zero, and zero times NaN is NaN.
"""

import torch

from linverify.problem import Result
from linverify.properties._problems import axes_of, length_of
from linverify.properties._results import choose, solved
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

_POISON = (float("nan"), float("inf"))


def check(trial: Trial) -> None:
    """Poison one token of each input in turn and judge the outputs before it."""
    problem, operator = trial.problem, trial.operator
    token = choose(trial, "token", 1, length_of(problem, operator, "T"))
    _, clean = solved(trial)
    time = axes_of(operator, "o").index("T")
    for name, x in problem.tensors.items():
        if "T" in axes_of(operator, name):
            bad = x.clone()
            bad.select(axes_of(operator, name).index("T"), token).fill_(_POISON[choose(trial, name, 0, len(_POISON))])
            _, result = solved(trial, problem.with_tensors(**{name: bad}))
            assert result.o is not None
            assert clean.o is not None  # both are complete
            # The past next to the poison, and the clean call's own rest: judged as one, since T may enter the mathematics.
            rest = clean.o.narrow(time, token, clean.o.shape[time] - token)
            trial.agree(Result(o=torch.cat((result.o.narrow(time, 0, token), rest), time)), results=("o",))


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
