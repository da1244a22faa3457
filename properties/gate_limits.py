"""Gate limits: a gate of 0 forgets nothing, a gate of -256 forgets everything.

exp(0) = 1 and exp(-256) = 0 are exact in float32, so both limits hold in every form (law M12). After the reset the
sequence goes on as if it began there: for an inclusive read from that token on, for an exclusive read from the next.
"""

from collections.abc import Sequence

import torch

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._problems import length_of, span
from linverify.properties._results import choose, equal_within_budget, letters, solved
from linverify.properties._spaces import CALM, SHORT
from linverify.property import Property, Space, Tensors, Trial

RESET = -256.0


def with_reset(problem: Problem, operator: Operator, token: int) -> Problem:
    """Let every gate forget everything at one token."""
    tensors = {name: x.clone() for name, x in problem.tensors.items()}
    for gate in operator.of_kind("log_gate"):
        tensors[gate.name][:, token] = RESET
    for step in operator.of_kind("step_size"):
        rate = tensors[operator.of_kind("log_rate")[0].name]
        tensors[step.name][:, token] = RESET / (rate if rate.dim() == 1 else rate.amax(-1))
        # The step size weights the write too, which would then outweigh everything that follows.
        tensors[operator.value_name][:, token] = 0
    for reader in operator.of_kind("low_rank_a"):
        # A term that reads the state before its decay carries it past the reset.
        tensors[reader.name][:, token] = 0
    return problem.with_(tensors=tensors)


def without_decay(problem: Problem, operator: Operator) -> Problem:
    """All log gates 0."""
    return problem.with_tensors(
        **{i.name: torch.zeros_like(problem.tensors[i.name]) for i in operator.of_kind("log_gate")}
    )


def check(trial: Trial) -> None:
    """Judge the run without decay, and compare what follows a reset with a sequence that starts there."""
    problem, operator = trial.problem, trial.operator
    if operator.of_kind("log_gate"):
        ungated = without_decay(problem, operator)
        trial.agree(trial.solve(ungated), ungated)
    length, exclusive = length_of(problem, operator, "T"), len(operator.of_kind("bonus"))
    token = choose(trial, "token", 1, length - exclusive)
    reset = with_reset(problem, operator, token)
    after = span(reset, operator, token, length).with_(initial_state=None)
    parts = [solved(trial, reset), solved(trial, after)]

    def outputs(found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
        return found[0]["o"][:, token + exclusive :], found[1]["o"][:, exclusive:]

    equal_within_budget(
        trial, f"o after a reset at token {token} and from a fresh start", parts, outputs, letters(trial, "o")
    )
    if problem.final_state:
        equal_within_budget(
            trial,
            "the final state after a reset and from a fresh start",
            parts,
            lambda found: (found[0]["state"], found[1]["state"]),
            letters(trial, "state"),
        )


PROPERTY = Property(
    name="gate_limits",
    law="A gate of 0 keeps the whole past and a gate of -256 leaves none of it.",
    check=check,
    applies=lambda operator: operator.gated,
    space=Space(max_T=SHORT, min_T=3, regimes=CALM, gates=("mild", "production")),
    why="A reset inside a chunk overflows scores that were factored into exp(G) and exp(-G): NaN, or a leak of the past"
    " that was to be forgotten.",
    against="overflow or leaks at gates that forget everything",
)
