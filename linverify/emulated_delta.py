"""A delta operator in chunks as kernels like it, for `linverify.emulated`: what is rounded beside the values, not the keys.

Keys and queries stay as they are stored. The write's strength, and a decay that all channels share, go with what was solved for
and, on the way back, with the upstream gradient:

    (I + A) Y = beta (v - e^G k^T S),   A_ij = beta_i k_i . k_j e^{G_i - G_j} for j < i,
    o = e^G (q S) + P Y,    S <- e^{G_C} S + k^T (e^{G_C - G} Y),

with P the decayed scores of q and k. A number that has hardly decayed is rounded to itself in 16 bits, so that of small gates
all are, and one lost decay is lost to a whole row of a state, or to a column (Yang et al., 2412.06464, section 3.3). Without a
state that enters, Y is what was stored.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linverify.fold import Rows
from linverify.reference.chunkwise import split


def solved(rows: Rows, scale: float, chunk: int, stored: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What is read [N, L, V], scaled, and the final states [N, K, V]; a decay of each channel goes with keys and queries.

    Args:
        rows: of a delta operator that reads the decayed state and sees what it writes.
        scale: factor on what is read.
        chunk: tokens of a chunk.
        stored: what becomes of what was solved for where it is kept, in the format of the operands.
    """
    assert rows.beta is not None
    q, k, v, beta = (split(x, chunk) for x in (rows.q, rows.k, rows.v, rows.beta))
    gates = split(torch.zeros_like(rows.beta) if rows.log_decay is None else rows.log_decay, chunk)
    until = gates.cumsum(2)
    total, since = until[:, :, -1:], until.exp()
    rest = (total - until).exp()
    apart = gates.shape[-1] > 1
    index = torch.arange(chunk, device=q.device)
    seen = index[:, None] >= index
    gap = (until[..., :, None, :] - until[..., None, :, :]).masked_fill(~seen[..., None], -torch.inf).exp()

    def scores(x: Tensor) -> Tensor:
        if apart:
            return torch.einsum("...id,...jd,...ijd->...ij", x, k, gap)
        return (x @ k.mT) * gap[..., 0]

    system = torch.eye(chunk, dtype=q.dtype, device=q.device) + beta * scores(k).masked_fill(~seen.tril(-1), 0.0)
    right = torch.cat([beta * v, beta * since * k], -1)
    found = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    found = stored(found)
    own, through = found[..., : v.shape[-1]], found[..., v.shape[-1] :]
    weights, state, read = scores(q), rows.state, []
    for c in range(q.shape[1]):
        written = own[:, c] - through[:, c] @ state
        old = (q[:, c] * since[:, c]) @ state if apart else since[:, c] * (q[:, c] @ state)
        read.append(old + weights[:, c] @ written)
        new = (k[:, c] * rest[:, c]).mT @ written if apart else k[:, c].mT @ (rest[:, c] * written)
        state = total[:, c].exp().mT * state + new
    o = torch.stack(read, 1).flatten(1, 2)[:, : rows.q.shape[1]]
    return scale * o, state
