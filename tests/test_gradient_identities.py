"""Every identity of gradients that an operator claims holds, in float64, on inputs without any special structure."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linverify import registry
from linverify.identities import IDENTITIES
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import second, solve
from tests.identity_harness import H, T, adjoints, canonical, close, name_of, per_group, pose, states, tokens

Check = Callable[[Operator], None]
CHECKS: dict[str, Check] = {}


def identity(name: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return register


@identity("G1")
def adjoint_recurrence(operator: Operator) -> None:
    p = pose(operator)
    c, scale, do = canonical(p, operator), p.scale or 1.0, p.cotangents["o"]
    now = torch.stack(states(p, operator)[1:], 1)
    up = torch.stack(adjoints(p, operator)[1:], 1) + scale * torch.einsum("bthk,bthv->bthkv", c.q, do)
    got = solve(p, operator)
    step = p.tensors["dt"][..., None] if operator.of_kind("step_size") else 1.0
    close(got[f"d{operator.value_name}"], step * torch.einsum("bthkv,bthk->bthv", up, c.k))
    close(
        got[f"d{name_of(operator, 'query')}"], per_group(scale * torch.einsum("bthkv,bthv->bthk", now, do), operator, 2)
    )
    close(got[f"d{name_of(operator, 'key')}"], per_group(torch.einsum("bthkv,bthv->bthk", up, c.v), operator, 2))


@identity("G2")
def direct_gate_gradient(operator: Operator) -> None:
    p = pose(operator)
    c, gate = canonical(p, operator), operator.of_kind("log_gate")[0]
    before = torch.stack(states(p, operator)[:-1], 1)
    up = torch.stack(adjoints(p, operator)[1:], 1)
    if c.read == "inclusive":
        up = up + (p.scale or 1.0) * torch.einsum("bthk,bthv->bthkv", c.q, p.cotangents["o"])
    direct = p.tensors[gate.name].reshape(2, T, H, -1).exp() * (before * up).sum(-1)
    close(solve(p, operator)[f"d{gate.name}"], direct if "K" in gate.axes else direct.sum(-1))


def cumulative(p: Problem, operator: Operator, last: Tensor, upstream: Tensor) -> Tensor:
    """G3 from the gradients of a run, its final state and that state's gradient."""
    got, c, gate = solve(p, operator), canonical(p, operator), operator.of_kind("log_gate")[0]
    left = (last * upstream).sum(-1)[:, None]

    def suffix(x: Tensor) -> Tensor:
        return x.flip(1).cumsum(1).flip(1)

    if operator.of_kind("strength"):
        own = (p.tensors["q"] * got["dq"]).sum(-1) - (p.tensors["v"] * got["dv"]).sum(-1)
        return suffix(own) + left.sum(-1)
    read, write = p.tensors["q"] * got["dq"], p.tensors["k"] * got["dk"]
    if c.read == "exclusive":
        bonus = (p.scale or 1.0) * c.q * c.bonus * c.k * (c.v * p.cotangents["o"]).sum(-1, keepdim=True)
        read, write = read - bonus, write - bonus
        total = suffix(read) - read - suffix(write) + left
    else:
        total = suffix(read - write) + left
    if operator.of_kind("low_rank_a"):
        removal = p.tensors["a"] * got["da"]
        total = total + suffix(removal) - removal - suffix(p.tensors["b"] * got["db"])
    found: Tensor = total if "K" in gate.axes else total.sum(-1)
    return found


@identity("G3")
def cumulative_gate_gradient(operator: Operator) -> None:
    p = pose(operator)
    got = solve(p, operator)
    total = cumulative(p, operator, got["state"], p.cotangents["state"])
    close(got[f"d{operator.of_kind('log_gate')[0].name}"], total)


@identity("G4")
def gate_gradient_of_a_stretch(operator: Operator) -> None:
    p, end = pose(operator), 4
    gate = f"d{operator.of_kind('log_gate')[0].name}"
    up = {"o": p.cotangents["o"][:, :end], "state": adjoints(p, operator)[end]}
    stretch = tokens(p, operator, slice(0, end), cotangents=up, wrt=p.wrt)
    total = cumulative(stretch, operator, states(p, operator)[end], up["state"])
    close(solve(p, operator)[gate][:, :end], total)


@identity("G5")
def sum_rule(operator: Operator) -> None:
    p = pose(operator)
    q, k, got = name_of(operator, "query"), name_of(operator, "key"), solve(p, operator)
    assert p.initial_state is not None
    balance = (p.tensors[q] * got[f"d{q}"] - p.tensors[k] * got[f"d{k}"]).sum(1)
    ends = (p.initial_state * got["dinitial_state"] - got["state"] * p.cotangents["state"]).sum(-1)
    close(balance, per_group(ends, operator, 1))


@identity("G6")
def first_gate(operator: Operator) -> None:
    p = pose(operator, state="absent")
    gradient = second(p, operator)[f"d{operator.of_kind('log_gate')[0].name}"]
    assert (gradient[:, 0] == 0).all()
    assert (gradient[:, 1:] != 0).any()


@identity("G7")
def euler(operator: Operator) -> None:
    p = pose(operator)
    got, q, v = solve(p, operator), name_of(operator, "query"), operator.value_name
    time = operator.o_axes.index("T")
    out = (got["o"] * p.cotangents["o"]).sum(-1)
    value = (p.tensors[v] * got[f"d{v}"]).sum(-1)
    close((p.tensors[q] * got[f"d{q}"]).sum(-1), per_group(out, operator, 2))
    into, out_of = value.sum(time), out.sum(time)
    if p.initial_state is not None:
        into = into + (p.initial_state * got["dinitial_state"]).sum((-1, -2))
        out_of = out_of + (got["state"] * p.cotangents["state"]).sum((-1, -2))
    close(into, out_of)
    if "M3" in operator.identities:
        k = name_of(operator, "key")
        close((p.tensors[k] * got[f"d{k}"]).sum(-1), per_group(value, operator, 2))


@identity("G10")
def time_reversal(operator: Operator) -> None:
    p = pose(operator, state="absent", cotangent="o")
    (q, k), v = (name_of(operator, kind) for kind in ("query", "key")), operator.value_name
    time = operator.o_axes.index("T")
    back = {q: p.tensors[k].flip(time), k: p.tensors[q].flip(time), v: p.cotangents["o"].flip(time)}
    for i in operator.of_kind("log_gate"):
        back[i.name] = (
            p.tensors[i.name].flip(1).roll(1, 1)
        )  # step t of the reversed run uses the gate of the token after
    forward = solve(p.with_(tensors=back, cotangents={}, wrt=()), operator)["o"]
    close(solve(p, operator)[f"d{v}"], forward.flip(time))


@identity("G11")
def delta_gauge(operator: Operator) -> None:
    p = pose(operator)
    got = solve(p, operator)
    both = sum((p.tensors[n] * got[f"d{n}"]).sum(-1) for n in ("k", "v"))
    assert isinstance(both, Tensor)
    close(both, 2 * p.tensors["beta"] * got["dbeta"])


@identity("G12")
def key_shift(operator: Operator) -> None:
    p, k = pose(operator), name_of(operator, "key")
    moved = p.with_tensors(**{k: p.tensors[k] + p.tensors[k][:, :1, :1]})
    close(solve(p, operator)["o"], solve(moved, operator)["o"])
    slope = solve(p, operator)[f"d{k}"]
    torch.testing.assert_close(slope.sum(1), torch.zeros_like(slope[:, 0]))


@identity("G13")
def linear_in_upstream(operator: Operator) -> None:
    p, other = pose(operator), pose(operator, seed=4)
    both = p.with_(cotangents={n: 2 * t - other.cotangents[n] for n, t in p.cotangents.items()})
    a, b, c = (solve(x, operator) for x in (p, p.with_(cotangents=other.cotangents), both))
    for n in (f"d{w}" for w in p.wrt):
        close(c[n], 2 * a[n] - b[n])


CLAIMS = [(i, n) for n, o in sorted(registry.operators().items()) for i in sorted(o.identities) if i.startswith("G")]


@pytest.mark.parametrize(("claim", "name"), CLAIMS)
def test_claimed_identities_hold(claim: str, name: str) -> None:
    CHECKS[claim](registry.operator(name))


def test_every_identity_is_stated_checked_and_claimed() -> None:
    assert set(CHECKS) == {i for i in IDENTITIES if i.startswith("G")} == {i for i, _ in CLAIMS}


NOT_CLAIMED = [
    ("G1", "rwkv6"),
    ("G2", "kda"),
    ("G3", "kda"),
    ("G5", "rwkv7"),
    ("G5", "delta_rule"),
    ("G12", "linformer"),
]


@pytest.mark.parametrize(("claim", "name"), NOT_CLAIMED)
def test_what_is_not_claimed_fails(claim: str, name: str) -> None:
    assert claim not in registry.operator(name).identities
    with pytest.raises((AssertionError, IndexError)):
        CHECKS[claim](registry.operator(name))
