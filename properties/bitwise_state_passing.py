"""Bitwise state passing: a sequence run in two pieces gives the bits of the sequence run at once."""

from collections.abc import Sequence

import torch

from linverify.properties._problems import length_of, span
from linverify.properties._results import choose, equal_bits, letters, solved
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Cut at a random token and compare the bits of o and of the final state."""
    problem, operator = trial.problem, trial.operator
    length = length_of(problem, operator, "T")
    cut = choose(trial, "cut", 1, length)
    first = solved(trial, span(problem, operator, 0, cut))
    second = solved(trial, span(problem, operator, cut, length).with_(initial_state=first[1].state))
    parts = [solved(trial), first, second]

    def outputs(found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
        return found[0]["o"], torch.cat((found[1]["o"], found[2]["o"]), 1)

    def states(found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
        return found[0]["state"], found[2]["state"]

    equal_bits(trial, f"o at once and cut at token {cut}", parts, outputs, letters(trial, "o"))
    equal_bits(trial, f"the final state at once and cut at token {cut}", parts, states, letters(trial, "state"))


PROPERTY = Property(
    name="bitwise_state_passing",
    law="Running a sequence in two pieces gives the same bits as running it at once.",
    check=check,
    required=False,
    applies=lambda operator: "M5" in operator.identities and operator.resumes_every == 1,
    needs=frozenset({"initial_state", "final_state"}),
    space=Space(max_T=SHORT, min_T=2, final_state=True, regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="Only kernels that promise it can replay decoding exactly as it was trained.",
)
