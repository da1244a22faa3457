"""Every relation between outputs that an operator claims holds, in float64, on inputs without any special structure."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linverify import registry
from linverify.arguments import heads_from_groups
from linverify.identities import IDENTITIES
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._problems import linear_part
from linverify.reference import second, solve
from linverify.regime import exact_regime
from tests.identity_harness import T, canonical, close, name_of, per_group, pose, results, timed, tokens

Check = Callable[[Operator], None]
CHECKS: dict[str, Check] = {}


def identity(name: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return register


@identity("M1")
def linear_in_values(operator: Operator) -> None:
    v = operator.value_name
    p, other = (linear_part(pose(operator, seed=s), operator) for s in (3, 4))
    b_side, both = p.with_tensors(**{v: other.tensors[v]}), p
    if p.initial_state is not None and other.initial_state is not None:
        b_side = b_side.with_(initial_state=other.initial_state)
        both = p.with_(initial_state=2 * p.initial_state - 3 * other.initial_state)
    both = both.with_tensors(**{v: 2 * p.tensors[v] - 3 * other.tensors[v]})
    a, b, c = (solve(x, operator) for x in (p, b_side, both))
    for n in results(operator) if operator.linear_state else ("o",):
        close(c[n], 2 * a[n] - 3 * b[n])


@identity("M2")
def degree_one_in_queries(operator: Operator) -> None:
    q, p = name_of(operator, "query"), pose(operator)
    a, b = solve(p, operator), solve(p.with_tensors(**{q: 3 * p.tensors[q]}), operator)
    for n in results(operator):
        close(b[n], (3 if n == "o" else 1) * a[n])


@identity("M3")
def degree_one_in_keys(operator: Operator) -> None:
    k, p = name_of(operator, "key"), pose(operator, state="absent")
    a, b = solve(p, operator), solve(p.with_tensors(**{k: 3 * p.tensors[k]}), operator)
    for n in results(operator):
        close(b[n], 3 * a[n])


@identity("M4")
def causal(operator: Operator) -> None:
    p, other = pose(operator), pose(operator, seed=4)
    time = {i.name: i.axes.index("T") for i in operator.inputs if "T" in i.axes}
    mixed = {
        n: torch.cat([p.tensors[n].narrow(t, 0, 4), other.tensors[n].narrow(t, 4, T - 4)], t) for n, t in time.items()
    }
    t = operator.o_axes.index("T")
    a, b = (solve(x, operator)["o"].split([4, T - 4], t) for x in (p, p.with_tensors(**mixed)))
    close(a[0], b[0])
    assert not torch.allclose(a[1], b[1])


@identity("M5")
def state_passing(operator: Operator) -> None:
    p = pose(operator)
    whole, first = solve(p, operator), solve(tokens(p, operator, slice(0, 3)), operator)
    second = solve(tokens(p, operator, slice(3, T), initial_state=first["state"]), operator)
    close(whole["o"], torch.cat([first["o"], second["o"]], 1))
    close(whole["state"], second["state"])


@identity("M6")
def chunks_do_not_matter(operator: Operator) -> None:
    p = pose(operator, T=37)
    chunked, stepped = solve(p, operator), second(p, operator)
    for n in chunked:
        close(chunked[n], stepped[n])


@identity("M7")
def rows_and_heads_permute(operator: Operator) -> None:
    p = pose(operator)
    heads, groups = ([3, 2, 1, 0], [1, 0] if operator.grouped else [3, 2, 1, 0])
    order = {"B": [1, 0], "N": [1, 0], "H": heads, "G": groups}

    def permuted(x: Tensor, axes: tuple[str, ...]) -> Tensor:
        for axis, letter in enumerate(axes):
            x = x.index_select(axis, torch.tensor(order[letter])) if letter in order else x
        return x

    moved = p.with_tensors(**{i.name: permuted(p.tensors[i.name], i.axes) for i in operator.inputs})
    if p.initial_state is not None:
        moved = moved.with_(initial_state=permuted(p.initial_state, operator.state_axes))
    a, b = solve(p, operator), solve(moved.with_(cotangents={}, wrt=()), operator)
    close(permuted(a["o"], operator.o_axes), b["o"])
    if operator.state_axes:
        close(permuted(a["state"], operator.state_axes), b["state"])


@identity("M8")
def tokens_permute(operator: Operator) -> None:
    p, order = pose(operator), [3, 1, 6, 0, 2, 5, 4]
    places = {i.name: i.axes.index("T") for i in operator.inputs if "T" in i.axes}
    moved = {n: p.tensors[n].index_select(axis, torch.tensor(order)) for n, axis in places.items()}
    o = solve(p.with_(cotangents={}, wrt=()).with_tensors(**moved), operator)["o"]
    close(solve(p, operator)["o"].index_select(operator.o_axes.index("T"), torch.tensor(order)), o)


@identity("M9")
def order_of_tokens(operator: Operator) -> None:
    p = pose(operator)
    shuffled = tokens(p, operator, [3, 1, 6, 0, 2, 5, 4])
    close(solve(p, operator)["state"], solve(shuffled, operator)["state"])


def with_empty_token(p: Problem, operator: Operator, at: int) -> dict[str, Tensor]:
    """Insert a token that writes nothing and does not decay."""
    twice = [*range(at), at, *range(at, T)]
    found = {n: t[:, twice].clone() if n in timed(operator) else t for n, t in p.tensors.items()}
    for i in operator.of_kind("log_gate", "step_size", "strength", "low_rank_b"):
        found[i.name][:, at] = 0
    if not operator.of_kind("step_size", "strength"):
        written = operator.of_kind("key") or operator.of_kind("value")
        found[written[0].name][:, at] = 0
    return found


@identity("M10")
def empty_token(operator: Operator) -> None:
    p = pose(operator)
    longer = p.with_(tensors=with_empty_token(p, operator, 3), cotangents={}, wrt=())
    a, b = solve(p, operator), solve(longer, operator)
    close(a["o"], b["o"][:, [0, 1, 2, 4, 5, 6, 7]])
    if operator.state_axes:
        close(a["state"], b["state"])


@identity("M11")
def gates_add_up(operator: Operator) -> None:
    p = pose(operator)
    found = with_empty_token(p, operator, 3)
    for i in operator.of_kind("log_gate"):
        found[i.name][:, 3] = 0.25 * p.tensors[i.name][:, 3]
        found[i.name][:, 4] = 0.75 * p.tensors[i.name][:, 3]
    for i in operator.of_kind("step_size"):  # the step weights the value too: keep their product
        found[i.name][:, 3] = 0.25 * p.tensors[i.name][:, 3]
        found[i.name][:, 4] = 0.75 * p.tensors[i.name][:, 3]
        v = operator.value_name
        found[v][:, 3], found[v][:, 4] = 0, p.tensors[v][:, 3] / 0.75
    a, b = solve(p, operator), solve(p.with_(tensors=found, cotangents={}, wrt=()), operator)
    close(a["o"], b["o"][:, [0, 1, 2, 4, 5, 6, 7]])
    close(a["state"], b["state"])


@identity("M12")
def reset(operator: Operator) -> None:
    p, at = pose(operator), 3
    found = {n: t.clone() for n, t in p.tensors.items()}
    for i in operator.of_kind("log_gate"):
        found[i.name][:, at] = -1000.0  # its exponential is zero in float64
    for i in operator.of_kind("step_size"):
        rate = found["A"] if found["A"].dim() == 1 else found["A"].amax(-1)
        found[i.name][:, at] = -1000.0 / rate
    erased = p.with_(tensors=found, cotangents={}, wrt=())
    whole = solve(erased, operator)
    fresh = solve(tokens(erased, operator, slice(at, T), initial_state=None), operator)
    skip = 1 if operator.of_kind("bonus") else 0
    close(whole["o"][:, at + skip :], fresh["o"][:, skip:])
    close(whole["state"], fresh["state"])


def gauge(operator: Operator) -> Tensor:
    """A matrix of key coordinates from the largest group that the identity names."""
    general = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    channel = any("K" in i.axes for i in operator.of_kind("log_gate", "log_rate"))
    if operator.of_kind("strength"):
        signs = torch.diag(torch.tensor([1.0, -1, 1, -1, -1], dtype=torch.float64))
        return signs if channel else torch.linalg.qr(general).Q
    return torch.diag(general.diagonal().exp()) if channel else general


@identity("M13")
def change_of_coordinates(operator: Operator) -> None:
    p, M = pose(operator), gauge(operator)
    back = torch.linalg.inv(M)  # q^T M^-1 for rows q
    found = {i.name: p.tensors[i.name] @ back for i in operator.of_kind("query", "low_rank_a")}
    found |= {i.name: p.tensors[i.name] @ M.T for i in operator.of_kind("key", "low_rank_b")}
    turned = p.with_tensors(**found).with_(cotangents={}, wrt=())
    if p.initial_state is not None:
        turned = turned.with_(initial_state=M @ p.initial_state)
    a, b = solve(p, operator), solve(turned, operator)
    for n in results(operator):
        close(a[n] if n == "o" else M @ a[n], b[n])


@identity("M14")
def key_scale(operator: Operator) -> None:
    p = pose(operator)
    c = torch.linspace(-1.5, 2.0, T, dtype=torch.float64)[None, :, None]
    beta = p.tensors["beta"]
    c = c.reshape(1, T, *[1] * (beta.dim() - 2))
    found = {n: p.tensors[n] * c[..., None] for n in ("k", "v")} | {"beta": beta / c.square()}
    a, b = solve(p, operator), solve(p.with_tensors(**found), operator)
    close(a["o"], b["o"])
    close(a["state"], b["state"])


@identity("M15")
def value_rotation(operator: Operator) -> None:
    v, p = operator.value_name, pose(operator)
    R = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    turned = p.with_tensors(**{v: p.tensors[v] @ R}).with_(cotangents={}, wrt=())
    if p.initial_state is not None:
        turned = turned.with_(initial_state=p.initial_state @ R)
    a, b = solve(p, operator), solve(turned, operator)
    close(a["o"] @ R, b["o"])
    if operator.state_axes:
        close(a["state"] @ R, b["state"])


@identity("M16")
def equal_values(operator: Operator) -> None:
    if operator.rebuild is not None and "eps" in operator.parameters:
        operator = operator.rebuild(eps=0.0)
    scale = "default" if operator.default_scale == 1 else "other"
    v, p = operator.value_name, pose(operator, scale=scale, state="absent")
    same = p.tensors[v][:, :1].expand_as(p.tensors[v]).clone()
    shared = "G" in operator.input(v).axes
    expected = heads_from_groups(same, {"H": same.shape[2] * 2, "G": same.shape[2]}) if shared else same
    close(solve(p.with_tensors(**{v: same}), operator)["o"], expected)


@identity("X1")
def whole_numbers(operator: Operator) -> None:
    p = pose(operator, regime=exact_regime(operator), gate="exact" if operator.gated else "none", scale="one")
    found = solve(p, operator)
    assert float(found["o"].abs().max()) > 0
    assert all(torch.equal(found[n].float(), found[n].float().round()) for n in results(operator))


@identity("M18")
def both_directions(operator: Operator) -> None:
    p = pose(operator, state="absent")
    c = canonical(p, operator)
    ahead = solve(p, operator)["o"]
    behind = solve(tokens(p, operator, list(range(T))[::-1]), operator)["o"].flip(1)
    own = (p.scale or 1.0) * (c.q * c.k).sum(-1, keepdim=True) * c.v
    close(ahead + behind - own, (p.scale or 1.0) * torch.einsum("bthk,bshk,bshv->bthv", c.q, c.k, c.v))


@identity("M19")
def packed(operator: Operator) -> None:
    p = pose(operator, B=1, lengths=(3, 0, 4))
    before, after = (None, None) if p.initial_state is None else (p.initial_state[:1], p.initial_state[2:])
    whole = solve(p, operator)
    first = solve(tokens(p, operator, slice(0, 3), lengths=(), initial_state=before), operator)
    last = solve(tokens(p, operator, slice(3, T), lengths=(), initial_state=after), operator)
    close(whole["o"], torch.cat([first["o"], last["o"]], 1))
    if p.initial_state is not None:
        close(whole["state"], torch.cat([first["state"], p.initial_state[1:2], last["state"]]))


@identity("M21")
def shared_heads(operator: Operator) -> None:
    p = pose(operator)
    names = [name_of(operator, "query"), name_of(operator, "key")]
    repeated = p.with_tensors(**{n: heads_from_groups(p.tensors[n], {"H": 4, "G": 2}) for n in names})
    a, b = solve(p, operator), solve(repeated, operator)
    close(a["o"], b["o"])
    for n in names:
        close(a[f"d{n}"], per_group(b[f"d{n}"], operator, 2))


CLAIMS = [(i, n) for n, o in sorted(registry.operators().items()) for i in sorted(o.identities) if i[0] in "MX"]


@pytest.mark.parametrize(("claim", "name"), CLAIMS)
def test_claimed_identities_hold(claim: str, name: str) -> None:
    CHECKS[claim](registry.operator(name))


def test_every_identity_is_stated_checked_and_claimed() -> None:
    assert set(CHECKS) == {i for i in IDENTITIES if i[0] in "MX"} == {i for i, _ in CLAIMS}


NOT_CLAIMED = [
    ("M3", "delta_rule"),
    ("M7", "retention"),
    ("M8", "linear_attention"),
    ("M8", "softmax_attention"),
    ("M9", "retention"),
    ("M9", "delta_rule"),
    ("M11", "rwkv6"),
    ("M11", "rwkv7"),
    ("M12", "rwkv7"),
]


@pytest.mark.parametrize(("claim", "name"), NOT_CLAIMED)
def test_what_is_not_claimed_fails(claim: str, name: str) -> None:
    assert claim not in registry.operator(name).identities
    with pytest.raises((AssertionError, IndexError)):
        CHECKS[claim](registry.operator(name))
