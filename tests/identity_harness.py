"""For the tests of identities: a problem without any special structure, parts of it, and its states and their adjoints."""

import torch
from torch import Tensor

from linverify import draw
from linverify.case import Case
from linverify.operator import Canonical, Kind, Operator
from linverify.problem import Problem
from linverify.reference import solve
from tests.kinds import suited

B, T, H, K, V = 2, 7, 4, 5, 3


def close(first: Tensor, second: Tensor) -> None:
    assert first.shape == second.shape
    assert float(first.abs().max()) > 0
    torch.testing.assert_close(first, second)


def case(operator: Operator, **changes: object) -> Case:
    gate = "production" if operator.gated else "none"
    plain = Case(operator.name, B, T, H, K, V, G=2 if operator.grouped else 0, dtype="fp64", gate=gate, seed=3)
    whole = plain.with_(state="normal", final_state=True, cotangent="both", scale="other").with_(**changes)
    return suited(whole, operator)


def pose(operator: Operator, **changes: object) -> Problem:
    return draw.problem(case(operator, **changes), operator)


def results(operator: Operator) -> tuple[str, ...]:
    """What a run gives beside gradients."""
    return ("o", "state") if operator.state_axes else ("o",)


def name_of(operator: Operator, kind: Kind) -> str:
    return operator.of_kind(kind)[0].name


def timed(operator: Operator) -> list[str]:
    return [i.name for i in operator.inputs if "T" in i.axes]


def tokens(p: Problem, operator: Operator, index: slice | list[int], **changes: object) -> Problem:
    """The problem on some tokens only, without upstream gradients unless given."""
    part = {n: t[:, index] if n in timed(operator) else t for n, t in p.tensors.items()}
    return p.with_(tensors=part).with_(**{"cotangents": {}, "wrt": (), **changes})


def canonical(p: Problem, operator: Operator) -> Canonical:
    return operator.recurrence(p.tensors, {"B": B, "T": T, "H": H, "K": K, "V": V, "G": 2 if operator.grouped else H})


def per_group(x: Tensor, operator: Operator, axis: int) -> Tensor:
    """Sum the heads that share keys and queries."""
    if not operator.grouped:
        return x
    return x.reshape(*x.shape[:axis], 2, H // 2, *x.shape[axis + 1 :]).sum(axis + 1)


def states(p: Problem, operator: Operator) -> list[Tensor]:
    """S_0 ... S_T."""
    first = torch.zeros(B, H, K, V, dtype=torch.float64) if p.initial_state is None else p.initial_state
    return [first, *(solve(tokens(p, operator, slice(0, t)), operator)["state"] for t in range(1, T + 1))]


def adjoints(p: Problem, operator: Operator) -> list[Tensor]:
    """The gradient of the loss by S_t from all that comes after the read of token t, for t = 0 ... T."""
    found = []
    for t, state in enumerate(states(p, operator)[:-1]):
        up = {"o": p.cotangents["o"][:, t:], "state": p.cotangents["state"]}
        rest = tokens(p, operator, slice(t, T), initial_state=state, cotangents=up, wrt=("initial_state",))
        found.append(solve(rest, operator)["dinitial_state"])
    return [*found, p.cotangents["state"]]
