"""State passing: a sequence run in pieces, the state handed on, is the sequence run at once.

Law M5 of the recurrence: f(x_1..T, S_0) = f(x_1..t, S_0) followed by f(x_t+1..T, S_t). Each piece is judged with the
state that the piece before it really returned, so nothing has to be allowed for errors that are carried; the pieces
together are then the whole. Gradients run the same way backwards: what a piece returns for its initial state is the
upstream gradient of the state before it.
"""

from itertools import pairwise

import torch

from linverify.problem import Problem
from linverify.properties._problems import forward_only, length_of, span
from linverify.properties._results import choose, solved
from linverify.property import Property, Space, Trial


def pieces(trial: Trial) -> list[tuple[int, int]]:
    """Stretches of tokens, mostly two or three; the last one is often a single token, as in decoding."""
    length, block = length_of(trial.problem, trial.operator, "T"), trial.operator.resumes_every
    cuts = {choose(trial, "cut", 1, length)}
    if choose(trial, "decode", 0, 2):
        cuts.add(length - 1)
    marks = [0, *sorted({cut - cut % block for cut in cuts} - {0}), length]
    return list(pairwise(marks))


def forwards(trial: Trial) -> list[Problem]:
    """Run the pieces in order and return them with the states they started from.

    Each is judged, unless a backward pass will judge it again with its gradients.
    """
    state, found = trial.problem.initial_state, []
    for start, stop in pieces(trial):
        problem = span(trial.problem, trial.operator, start, stop).with_(initial_state=state, final_state=True)
        part = solved(trial, forward_only(problem))
        if not problem.cotangents:
            trial.agree(part[1], part[0])
        found.append(problem)
        state = part[1].state
    return found


def backwards(trial: Trial, parts: list[Problem]) -> None:
    """Run the pieces in reverse order, each with the state gradient that the next one returned, and judge each."""
    upstream: torch.Tensor | None = trial.problem.cotangents.get("state")
    inputs = tuple(name for name in trial.problem.wrt if name != "initial_state")
    for part in reversed(parts):
        cotangents = {name: x for name, x in part.cotangents.items() if name != "state"}
        if upstream is not None:
            cotangents["state"] = upstream
        wrt = inputs if part.initial_state is None else (*inputs, "initial_state")
        problem = part.with_(cotangents=cotangents, wrt=wrt)
        _, result = solved(trial, problem)
        trial.agree(result, problem)
        upstream = result.grads.get("initial_state")


def check(trial: Trial) -> None:
    """Judge the whole sequence and its pieces."""
    trial.agree(trial.solve())
    parts = forwards(trial)
    if trial.problem.cotangents:
        backwards(trial, parts)


PROPERTY = Property(
    name="state_passing",
    law="Running a sequence in pieces, each from the state the last one returned, gives the same output, final state "
    "and gradients.",
    check=check,
    applies=lambda operator: "M5" in operator.identities,
    needs=frozenset({"initial_state", "final_state"}),
    space=Space(min_T=2, final_state=True, cotangents=("none", "both")),
    weight=1.5,
    why="Prefill and decoding go different ways through a kernel: a state written transposed, decayed once too often or"
    " dropped for short pieces makes generation drift from what was trained.",
    against="how states enter and leave",
)
