"""The float64 reference in chunks: the fast path. Gradients by automatic differentiation.

Within a chunk with inclusive log-decay sums G, readers at R (G, or G - g where they read the undecayed state) and writers at G
meet through exp(R_i - G_j) <= 1, formed pairwise so that no exponent is ever positive. With P the scores of q and k, and U
solving (I - A_ab) U = A_ak V + (a e^R) S for the low-rank term (Yang et al., 2406.06484, section 3, generalised to a, b):

    O = (q e^R) S + P V + P_b U,    S <- e^{G_C} S + (k e^{G_C-G})^T V + (b e^{G_C-G})^T U.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from linverify.fold import Rows
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import batched
from linverify.reference.question import Question, answer, pose

CHUNK = 16


def split(x: Tensor, chunk: int) -> Tensor:
    """[N, L, D] to [N, n, C, D], filled up with zeros (null tokens)."""
    n = -(-x.shape[1] // chunk)
    return torch.nn.functional.pad(x, (0, 0, 0, n * chunk - x.shape[1])).reshape(x.shape[0], n, chunk, x.shape[2])


def _pairs(x: Tensor, y: Tensor, reader: Tensor | None, writer: Tensor | None, mask: Tensor) -> Tensor:
    """Scores sum_d x_id y_jd exp(R_id - G_jd) where the mask holds, else 0: [N, n, C, C]."""
    if reader is None or writer is None:
        return (x @ y.transpose(-1, -2)).masked_fill(~mask, 0.0)
    gap = reader[..., :, None, :] - writer[..., None, :, :]
    decay = gap.masked_fill(~mask[..., None], -torch.inf).exp()  # masked before exp: no 0 * inf
    if decay.shape[-1] == 1:
        return (x @ y.transpose(-1, -2)) * decay[..., 0]
    return torch.einsum("...id,...jd,...ijd->...ij", x, y, decay)


def scan(rows: Rows, scale: float, chunk: int | None = None, *, loop: bool | None = None) -> tuple[Tensor, Tensor]:
    """What is read [N, L, V], scaled, and the final states [N, K, V]; arguments as those of `solved`."""
    return solved(rows, scale, chunk, loop=loop)[:2]


def solved(
    rows: Rows,
    scale: float,
    chunk: int | None = None,
    *,
    loop: bool | None = None,
    carry: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same, and what the low-rank term's a read from the states [N, L, V]; None where there is no such term.

    Args:
        rows: the recurrence.
        scale: factor on what is read.
        chunk: tokens of a chunk; by default what suits the device.
        loop: whether states go from chunk to chunk, or through blocks of them (`batched`); by default on a CPU.
        carry: what becomes of a state at the end of a chunk, in a loop, where a kernel's errors are emulated.
    """
    if not (rows.q.device.type == "cpu" if loop is None else loop):
        return batched.solved(rows, scale, chunk or batched.CHUNK)
    chunk = chunk or CHUNK
    q, k, v = (split(x, chunk) for x in (rows.q, rows.k, rows.v))
    a, b = rows.a, rows.b
    if rows.beta is not None:  # a delta operator: its low-rank term from its write
        a, b = rows.k, -rows.beta * rows.k
        k = split(rows.beta * rows.k, chunk)
    index = torch.arange(chunk, device=q.device)
    inclusive, strict = index[:, None] >= index[None, :], index[:, None] > index[None, :]
    total = until = before = None
    if rows.log_decay is not None:
        g = split(rows.log_decay, chunk)
        until = g.cumsum(2)
        before, total = until - g, until[:, :, -1:]
    read_at = before if rows.exclusive else until
    read_mask = strict if rows.exclusive else inclusive
    q_in = q if read_at is None else q * read_at.exp()
    rest = None if until is None or total is None else (total - until).exp()
    k_out = k if rest is None else k * rest
    p = _pairs(q, k, read_at, until, read_mask)
    low = None
    if a is not None and b is not None:
        a, b = split(a, chunk), split(b, chunk)
        low_at = before if rows.undecayed else until
        seen = _pairs(a, k, low_at, until, strict)
        own = rows.beta is not None  # what is read back is what was written, with the other sign
        inverse = torch.eye(chunk, dtype=q.dtype, device=q.device) - (
            -seen if own else _pairs(a, b, low_at, until, strict)
        )
        a_in = a if low_at is None else a * low_at.exp()
        found = torch.linalg.solve_triangular(inverse, torch.cat([seen @ v, a_in], -1), upper=False, unitriangular=True)
        b_out = -k_out if own else b if rest is None else b * rest
        low = _LowRank(found[..., : v.shape[-1]], found[..., v.shape[-1] :], b_out.transpose(-1, -2))
        p_b = -p if own else _pairs(q, b, read_at, until, read_mask)
    step = None if total is None else total.exp().transpose(-1, -2)
    writes = k_out.transpose(-1, -2) @ v
    states, state = _looped(step, writes, low, rows.state, carry)
    o = p @ v + q_in @ states
    u = None if low is None else low.u + low.w @ states
    if u is not None:
        o = o + p_b @ u
        u = u.reshape(o.shape[0], -1, o.shape[-1])[:, : rows.q.shape[1]]
    o = o.reshape(o.shape[0], -1, o.shape[-1])[:, : rows.q.shape[1]]
    if rows.bonus is not None:
        o = o + (rows.q * rows.bonus[:, None] * rows.k).sum(-1, keepdim=True) * rows.v
    return scale * o, state, u


@dataclass(frozen=True, slots=True, eq=False)
class _LowRank:
    """What a low-rank term makes of the state S that enters a chunk: writers (u + w S) is added to it.

    Attributes:
        u: [N, n, C, V].
        w: [N, n, C, K].
        writers: [N, n, K, C].
    """

    u: Tensor
    w: Tensor
    writers: Tensor


def _looped(
    step: Tensor | None,
    writes: Tensor,
    low: _LowRank | None,
    state: Tensor,
    carry: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """States that enter chunks [N, n, K, V], and the last that leaves, from chunk to chunk."""
    # taken apart at once: the gradient of one chunk cut out of many is as large as all of them
    added = writes.unbind(1)
    steps = None if step is None else step.unbind(1)
    parts = None if low is None else tuple(zip(low.u.unbind(1), low.w.unbind(1), low.writers.unbind(1), strict=True))
    states = []
    for c, write in enumerate(added):
        states.append(state)
        kept = state if steps is None else state * steps[c]
        if parts is not None:
            u, w, writers = parts[c]
            kept = kept + writers @ (u + w @ state)
        state = kept + write
        state = state if carry is None else carry(state)
    return torch.stack(states, 1), state


def chunkwise(
    problem: Problem,
    operator: Operator,
    *,
    device: torch.device | str = "cpu",
    chunk: int | None = None,
    loop: bool | None = None,
) -> dict[str, Tensor]:
    """Compute o, state and d<input> of a problem in float64; `chunk` and `loop` as those of `solved`.

    Shapes: o [B, T, H, V]; state [N, H, K, V]; gradients as their inputs.
    """
    return answered(pose(problem, operator, device), chunk=chunk, loop=loop)[1]


def answered(
    question: Question, *, chunk: int | None = None, loop: bool | None = None
) -> tuple[Question, dict[str, Tensor]]:
    """The same of a posed problem; and the question with what its low-rank term read, its terms still tied to its leaves."""
    with torch.set_grad_enabled(bool(question.problem.cotangents)):
        rows, state, seen = solved(question.rows, question.scale, chunk, loop=loop)
        o = question.read(rows)

        def grads(leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
            read = o if question.operator.readout is not None else rows
            asked = [(read, question.do), (state, question.dstate)]
            given = [(y, dy) for y, dy in asked if dy is not None and y.requires_grad]
            if not given:
                return tuple(None for _ in leaves)
            ends, upstream = [y for y, _ in given], [dy for _, dy in given]
            return torch.autograd.grad(ends, leaves, upstream, allow_unused=True, retain_graph=True)

        found = answer(question, o, state, grads)
    return replace(question, seen=None if seen is None else seen.detach()), found
