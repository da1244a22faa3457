"""The float64 reference step by step, with its adjoint recurrence written by hand.

It shares no line with the chunkwise reference: neither the chunk algebra nor automatic differentiation of the recurrence.
With dX_t the total adjoint of X_t, a term b (a^T Y) gives db = dX (Y^T a), da = Y (dX^T b), dY += a (b^T dX); the write gives
dk = dX v, dv = dX^T k; the decay gives dg = e^g o rowsum(X_{t-1} o dX^).
"""

import torch
from torch import Tensor

from linverify.fold import Rows
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference.question import answer, pose


def _terms(rows: Rows) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The write key, a, b and the decay of each step, a delta operator written out."""
    k, a, b = rows.k, rows.a, rows.b
    if rows.beta is not None:
        k, a, b = rows.beta * rows.k, rows.k, -rows.beta * rows.k
    return k, a, b, None if rows.log_decay is None else rows.log_decay.exp()


def forward(rows: Rows, scale: float) -> tuple[Tensor, list[Tensor]]:
    """O [N, L, V] and the states X_0 ... X_L."""
    k, a, b, decay = _terms(rows)
    states, outs = [rows.state], []
    for t in range(rows.q.shape[1]):
        old = states[-1]
        kept = old if decay is None else decay[:, t, :, None] * old
        new = kept + k[:, t, :, None] * rows.v[:, t, None, :]
        if a is not None and b is not None:
            seen = old if rows.undecayed else kept
            new = new + b[:, t, :, None] * (a[:, t, :, None] * seen).sum(1, keepdim=True)
        read = old if rows.exclusive else new
        o = (rows.q[:, t, :, None] * read).sum(1)
        if rows.bonus is not None:
            o = o + (rows.q[:, t] * rows.bonus * rows.k[:, t]).sum(1, keepdim=True) * rows.v[:, t]
        states.append(new)
        outs.append(scale * o)
    return torch.stack(outs, 1), states


def _adjoint(
    rows: Rows, scale: float, states: list[Tensor], do: Tensor | None, dstate: Tensor | None
) -> dict[str, Tensor]:
    """Gradients of the step's own terms: q, k (the write key), v, a, b, decay (of log_decay), bonus, state."""
    k, a, b, decay = _terms(rows)
    out = {
        n: torch.zeros_like(x) for n, x in (("q", rows.q), ("k", k), ("v", rows.v), ("a", a), ("b", b)) if x is not None
    }
    if decay is not None:
        out["decay"] = torch.zeros_like(decay)
    if rows.bonus is not None:
        out["bonus"], out["bonus_k"] = torch.zeros_like(rows.bonus), torch.zeros_like(rows.k)
    dx = torch.zeros_like(rows.state) if dstate is None else dstate.clone()
    for t in range(rows.q.shape[1] - 1, -1, -1):
        old, new = states[t], states[t + 1]
        up = None if do is None else scale * do[:, t]
        if up is not None and not rows.exclusive:
            out["q"][:, t] = (new * up[:, None]).sum(2)
            dx = dx + rows.q[:, t, :, None] * up[:, None]
        out["k"][:, t] = (dx * rows.v[:, t, None]).sum(2)
        out["v"][:, t] = (dx * k[:, t, :, None]).sum(1)
        kept = old if decay is None else decay[:, t, :, None] * old
        dkept, dold = dx, torch.zeros_like(dx)
        if a is not None and b is not None:
            seen = old if rows.undecayed else kept
            r, dr = (a[:, t, :, None] * seen).sum(1), (b[:, t, :, None] * dx).sum(1)
            out["b"][:, t] = (dx * r[:, None]).sum(2)
            out["a"][:, t] = (seen * dr[:, None]).sum(2)
            dseen = a[:, t, :, None] * dr[:, None]
            dkept, dold = (dkept, dseen) if rows.undecayed else (dkept + dseen, dold)
        if decay is not None:
            direct = (kept * dkept).sum(2)
            out["decay"][:, t] = direct if decay.shape[-1] > 1 else direct.sum(1, keepdim=True)
            dkept = decay[:, t, :, None] * dkept
        dx = dkept + dold
        if up is not None and rows.exclusive:
            out["q"][:, t] = (old * up[:, None]).sum(2)
            dx = dx + rows.q[:, t, :, None] * up[:, None]
            if rows.bonus is not None:
                vdo = (rows.v[:, t] * up).sum(1, keepdim=True)
                out["q"][:, t] += rows.bonus * rows.k[:, t] * vdo
                out["bonus_k"][:, t] = rows.bonus * rows.q[:, t] * vdo
                out["bonus"] += rows.q[:, t] * rows.k[:, t] * vdo
                out["v"][:, t] += (rows.q[:, t] * rows.bonus * rows.k[:, t]).sum(1, keepdim=True) * up
    out["state"] = dx
    return out


def _onto_rows(rows: Rows, d: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (row tensor, its gradient), the delta operator's product rule applied by hand."""
    dk = d["k"]
    pairs = [(rows.q, d["q"]), (rows.v, d["v"]), (rows.state, d["state"])]
    if rows.beta is not None:
        into = d["k"] - d["b"]  # both the write key and -b are beta * k
        dk = rows.beta * into + d["a"]
        pairs.append((rows.beta, (into * rows.k).sum(-1, keepdim=True)))
    elif rows.a is not None and rows.b is not None:
        pairs += [(rows.a, d["a"]), (rows.b, d["b"])]
    if rows.bonus is not None:
        dk = dk + d["bonus_k"]
        pairs.append((rows.bonus, d["bonus"]))
    if rows.log_decay is not None:
        pairs.append((rows.log_decay, d["decay"]))
    return [*pairs, (rows.k, dk)]


def stepwise(problem: Problem, operator: Operator, *, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Compute o, state and d<input> of a problem in float64, one token after the other.

    Shapes: o [B, T, H, V]; state [N, H, K, V]; gradients as their inputs.
    """
    question = pose(problem, operator, device)
    rows = question.rows
    with torch.no_grad():
        found, states = forward(rows, question.scale)
    found.requires_grad_(operator.readout is not None and bool(problem.cotangents))
    o = question.read(found)

    def grads(leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
        do, through = question.do, []
        if do is not None and operator.readout is not None:
            through = [(o, do)]  # what the read-out itself takes from the inputs
            (do,) = torch.autograd.grad(o, found, do, retain_graph=True)
        with torch.no_grad():
            pairs = _onto_rows(rows, _adjoint(rows, question.scale, states, do, question.dstate))
        connected = [(x, g) for x, g in [*pairs, *through] if x.requires_grad]
        # the statement's own map from inputs to terms is differentiated automatically: it is products and gathers
        return torch.autograd.grad([x for x, _ in connected], leaves, [g for _, g in connected], allow_unused=True)

    return answer(question, o, states[-1], grads)
