"""A delta operator in chunks as kernels like it, for `linverify.emulated`: what is rounded beside the values, not the keys.

Keys and queries stay as they are stored. The write's strength, and a decay that all channels share, go with what was solved for
and, on the way back, with the upstream gradient:

    (I + A) Y = beta (v - e^G k^T S),   A_ij = beta_i k_i . k_j e^{G_i - G_j} for j < i,
    o = e^G (q S) + P Y,    S <- e^{G_C} S + k^T (e^{G_C - G} Y),

with P the decayed scores of q and k. A number that has hardly decayed is rounded to itself in 16 bits, so that of small gates
all are, and one lost decay is lost to a whole row of a state, or to a column (Yang et al., 2412.06464, section 3.3). Without a
state that enters, Y is what was stored.

Such kernels take the gradient of a log gate from the other gradients, what readers gain less what writers lose, summed over all
later tokens. Terms that cancel leave what their products lost, even where nothing is left, as of a first token without a state.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from linverify.fold import Rows
from linverify.gate_gradients import tail
from linverify.reference.chunkwise import split


def solved(
    rows: Rows, scale: float, chunk: int, stored: Callable[[Tensor], Tensor], keys: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """What is read [N, L, V], scaled, and the final states [N, K, V]; a decay of each channel goes with keys and queries.

    Args:
        rows: of a delta operator that reads the decayed state and sees what it writes.
        scale: factor on what is read.
        chunk: tokens of a chunk.
        stored: what becomes of what was solved for where it is kept, in the format of the operands.
        keys: the keys as the low-rank term reads with them, and as they are written inside the triangular system; like `rows.k`
            where they need no gradients of their own.
    """
    assert rows.beta is not None
    q, k, v, beta = (split(x, chunk) for x in (rows.q, rows.k, rows.v, rows.beta))
    reading, inner = (k, k) if keys is None else (split(x, chunk) for x in keys)
    gates = split(torch.zeros_like(rows.beta) if rows.log_decay is None else rows.log_decay, chunk)
    until = gates.cumsum(2)
    total, since = until[:, :, -1:], until.exp()
    rest = (total - until).exp()
    apart = gates.shape[-1] > 1
    index = torch.arange(chunk, device=q.device)
    seen = index[:, None] >= index
    gap = (until[..., :, None, :] - until[..., None, :, :]).masked_fill(~seen[..., None], -torch.inf).exp()

    def scores(x: Tensor, y: Tensor) -> Tensor:
        if apart:
            return torch.einsum("...id,...jd,...ijd->...ij", x, y, gap)
        return (x @ y.mT) * gap[..., 0]

    system = torch.eye(chunk, dtype=q.dtype, device=q.device)
    system = system + beta * scores(reading, inner).masked_fill(~seen.tril(-1), 0.0)
    right = torch.cat([beta * v, beta * since * reading], -1)
    found = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    found = stored(found)
    own, through = found[..., : v.shape[-1]], found[..., v.shape[-1] :]
    weights, state, read = scores(q, k), rows.state, []
    for c in range(q.shape[1]):
        written = own[:, c] - through[:, c] @ state
        old = (q[:, c] * since[:, c]) @ state if apart else since[:, c] * (q[:, c] @ state)
        read.append(old + weights[:, c] @ written)
        new = (k[:, c] * rest[:, c]).mT @ written if apart else k[:, c].mT @ (rest[:, c] * written)
        state = total[:, c].exp().mT * state + new
    o = torch.stack(read, 1).flatten(1, 2)[:, : rows.q.shape[1]]
    return scale * o, state


def solved_by_differences(
    rows: Rows, scale: float, chunk: int, stored: Callable[[Tensor], Tensor], upstream: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `solved`; backward, the gates' gradients are sums of q dq + k dk where it is read with - k dk where it is written.

    Args:
        rows: as of `solved`, with a decay.
        scale: factor on what is read.
        chunk: tokens of a chunk.
        stored: as of `solved`.
        upstream: gradient of the final states [N, K, V], or None.
    """
    ends: list[Tensor] = []
    cotangent = None if upstream is None else upstream.to(rows.q.dtype)

    def end() -> Tensor:
        return tail(ends[0], cotangent, rows.q)

    gates, q, k, reading, inner = _Differences.apply(rows.log_decay, rows.q, rows.k, rows.k, rows.k, end)  # type: ignore[no-untyped-call]  # torch's own
    read, state = solved(replace(rows, log_decay=gates, q=q, k=k), scale, chunk, stored, (reading, inner))
    ends.append(state)
    return read, state


class _Differences(torch.autograd.Function):
    """Log gates, queries and keys by role, of which the first's gradient is taken from the others'."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, q: Tensor, k: Tensor, reading: Tensor, inner: Tensor, end: Any) -> Any:
        ctx.save_for_backward(q, k, reading, inner)
        ctx.end, ctx.scalar = end, gates.shape[-1] == 1
        return tuple(x.view_as(x) for x in (gates, q, k, reading, inner))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, reading, inner = ctx.saved_tensors
        _, dq, dk, dreading, dinner = grads
        flow = q * dq - k * dk + (reading * dreading - inner * dinner)
        sums = flow.flip(1).cumsum(1).flip(1) + ctx.end()
        return sums.sum(-1, keepdim=True) if ctx.scalar else sums, dq, dk, dreading, dinner, None
