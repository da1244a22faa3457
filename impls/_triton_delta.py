# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The chunkwise delta rule of `_triton_delta_*.py`, forward and backward, as one function of canonical terms.

Source: Yang et al. 2024 (arXiv 2406.06484), section 3 (chunks); Yang et al. 2024 (arXiv 2412.06464), section 3.3 (scalar
gates); Kimi team 2025 (arXiv 2510.26692), section 3 (gates per channel).
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from linverify.impls import _triton_delta_carry as across
from linverify.impls import _triton_delta_channels as channels
from linverify.impls import _triton_delta_gates as gates
from linverify.impls import _triton_delta_scores as within
from linverify.impls import _triton_delta_solve as triangle
from linverify.impls._triton_chunks import CHUNK, SUB_CHUNK, Chunks, cut
from linverify.impls._triton_rows import block
from linverify.operator import Canonical

WIDEST = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# No product here may become a wgmma of Hopper's, which four warps and 64 rows would make it: with two warps, or fewer rows,
# it is made of mma instructions. Made of wgmma, the backward walk gave wrong gradients or an illegal access (H100 and H200,
# Triton 3.6.0) though its PTX is right: ptxas 12.8, which that Triton brings, takes the address of the later parts of an
# operand from a uniform register that nothing has written. (Those of CUDA 12.9 and 13.4 do not; compare flash-linear-
# attention's issue 984 and pull request 1262.) And where a tile is an operand and is read besides, Triton 3.6 gives it a
# single buffer, and loads the next one into that while a wgmma still reads it.
OVER_CHUNKS = {"num_warps": 2, "num_stages": 2}


def chunkwise(c: Canonical, scale: float, lengths: Sequence[int], initial: Tensor) -> tuple[Tensor, Tensor]:
    """Return o [B, T, H, V] in v's dtype and the final states [N, H, K, V] in float32.

    Raises:
        ValueError: operands of several dtypes, or of one that there are no kernels for; K above 256.
    """
    found = [c.q.dtype, c.k.dtype, c.v.dtype]
    if len(set(found)) > 1 or found[0] not in DTYPES:
        raise ValueError(f"expected q, k and v all float32, float16 or bfloat16, got {', '.join(map(str, found))}")
    if c.q.shape[-1] > WIDEST:
        raise ValueError(f"expected K of at most {WIDEST} (a state [K, 32] stays in registers), got {c.q.shape[-1]}")
    g = None if c.log_decay is None else c.log_decay.expand(*c.q.shape[:3], -1)
    chunks = cut(tuple(lengths), c.v.device)
    # Kernels are launched on the current device; autograd sees to it in the backward.
    with torch.cuda.device_of(c.v):
        o, state = Delta.apply(c.q, c.k, c.v, g, c.beta, initial, scale, chunks)
    return o, state


class Delta(torch.autograd.Function):
    """Shapes: q, k [B, T, H, K]; v [B, T, H, V]; g None or [B, T, H, 1 or K]; beta [B, T, H, 1]; initial [N, H, K, V]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, initial: Tensor, scale: float, chunks: Chunks
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return o and the final states."""
        q, k, v, beta, initial = (x.contiguous() for x in (q, k, v, beta, initial))
        g = None if g is None else g.contiguous()
        H, K, V = *q.shape[2:], v.shape[-1]
        gate = "none" if g is None else "scalar" if g.shape[-1] == 1 and K > 1 else "channel"
        wide, narrow = block(K, WIDEST), block(K, 64)
        G, reads, removes, writes, end = _decayed(q, k, g, gate, chunks)
        P, s = (q.new_empty(*q.shape[:3], CHUNK, dtype=t) for t in (q.dtype, torch.float32))
        if gate == "channel":
            grid = (chunks.count * (CHUNK // SUB_CHUNK), H)
            channels.channel_scores[grid](q, k, G, P, s, chunks.spans, H, K, CHUNK, SUB_CHUNK, wide)
        else:
            within.scores[(chunks.count, H)](q, k, G, P, s, chunks.spans, H, K, gate, CHUNK, narrow, **OVER_CHUNKS)
        inverse, W, U = torch.empty_like(s), torch.empty_like(k), torch.empty_like(v)
        triangle.invert[(chunks.count, H)](s, beta, inverse, chunks.spans, H, CHUNK, num_warps=2)
        triangle.solve[(chunks.count, H)](
            inverse, beta, G, removes, v, W, U, chunks.spans, H, K, V, gate, CHUNK, narrow, block(V, 64), **OVER_CHUNKS
        )
        written, o, final = torch.empty_like(v), torch.empty_like(v), torch.empty_like(initial)
        # A gate's gradient is a product of a state and of that state's gradient: rounded to 16 bits before, two digits of it
        # would be left at the end of a chunk. Products of matrices round them as they take them.
        states = q.new_empty(chunks.count, H, V, K, dtype=q.dtype if gate == "none" else torch.float32)
        BV = block(V, 32)
        across.carry[(chunks.sequences, H, triton.cdiv(V, BV))](
            W, U, writes, G, end, initial, written, states, final, chunks.starts, chunks.slots,
            H, K, V, gate, CHUNK, wide, BV, **_walk(wide, q.dtype),
        )  # fmt: skip
        BV = block(V, 64)
        across.read[(chunks.count, H, triton.cdiv(V, BV))](
            reads, G, P, written, states, o, chunks.spans, scale, H, K, V, gate, CHUNK, narrow, BV, **OVER_CHUNKS
        )
        ctx.save_for_backward(q, k, v, g, beta, G, reads, writes, end, P, s, inverse, W, written, states)
        ctx.scale, ctx.chunks, ctx.gate = scale, chunks, gate
        return o, final

    @staticmethod
    def backward(ctx: Any, do: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        q, k, v, g, beta, G, reads, writes, end, P, s, inverse, W, written, states = ctx.saved_tensors
        chunks, gate, scale = ctx.chunks, ctx.gate, ctx.scale
        do, dfinal = do.contiguous(), dfinal.contiguous()
        H, K, V = *q.shape[2:], v.shape[-1]
        wide, narrow, BV = block(K, WIDEST), block(K, 32), block(V, 32)
        dwritten, dstates, dinitial = torch.empty_like(v), torch.empty_like(states), torch.empty_like(dfinal)
        across.carry_back[(chunks.sequences, H, triton.cdiv(V, BV))](
            W, reads, writes, P, G, end, do, dfinal, dwritten, dstates, dinitial, chunks.starts, chunks.slots, scale,
            H, K, V, gate, CHUNK, wide, BV, **_walk(wide, q.dtype),
        )  # fmt: skip
        dright, dv = torch.empty_like(v), torch.empty_like(v)
        dP, ds = torch.empty_like(s), torch.empty_like(s)
        # Blocks of channels each leave their part of a sum over K; the last one here is the part without a state.
        blocks = triton.cdiv(K, narrow)
        dbeta = s.new_empty(blocks + 1, *beta.shape)
        triangle.solve_gradients[(chunks.count, H)](
            s, beta, inverse, v, written, do, dwritten, dright, dv, dbeta[blocks], dP, ds, chunks.spans, scale,
            H, V, CHUNK, BV, **OVER_CHUNKS,
        )  # fmt: skip
        parts = [torch.empty_like(q, dtype=torch.float32) for _ in range(3)]
        carried = s.new_empty(chunks.count, H, K)
        across.read_gradients[(chunks.count, H, blocks)](
            k, G, end, beta, do, written, dright, states, dstates, *parts, dbeta, carried, chunks.spans, scale,
            H, K, V, gate, CHUNK, narrow, block(V, 64), **OVER_CHUNKS,
        )  # fmt: skip
        dq, dk = torch.empty_like(q), torch.empty_like(k)
        if gate == "channel":
            flow = torch.empty_like(parts[0])
            grid = (chunks.count * (CHUNK // SUB_CHUNK), H, blocks)
            channels.channel_score_gradients[grid](
                q, k, G, dP, ds, *parts, dq, dk, flow, chunks.spans, H, K, CHUNK, SUB_CHUNK, narrow
            )
        else:
            flow = s.new_empty(blocks, *q.shape[:3])
            within.score_gradients[(chunks.count, H, blocks)](
                q, k, G, dP, ds, *parts, dq, dk, flow, chunks.spans, H, K, gate, CHUNK, narrow, **OVER_CHUNKS
            )
        dg = None if g is None else _gate_gradients(flow, carried, g, chunks, gate)
        return dq, dk, dv, dg, dbeta.sum(0).to(beta.dtype), dinitial, None, None


def _walk(wide: int, dtype: torch.dtype) -> dict[str, int]:
    """How a walk through the chunks runs: two of them in flight where the rows of both fit into shared memory."""
    return {"num_stages": 2, "num_warps": 4} if wide * dtype.itemsize <= 256 else {"num_stages": 1, "num_warps": 8}


def _decayed(
    q: Tensor, k: Tensor, g: Tensor | None, gate: str, chunks: Chunks
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gate sums, queries and keys decayed since a chunk began, keys decayed to its end, and the decay of each chunk.

    Without gates of channels queries and keys stay as they are, without gates there are no sums either (and none is read).
    """
    H, K = q.shape[2:]
    if g is None:
        return q, q, k, k, q
    G = torch.empty_like(g, dtype=torch.float32)
    end = G.new_empty(chunks.count, H, g.shape[-1])
    if gate == "scalar":
        gates.scalar_sums[(chunks.count, H)](g, G, end, chunks.spans, H, CHUNK)
        return G, q, k, k, end
    decayed = torch.empty_like(q), torch.empty_like(k), torch.empty_like(k)
    BK = block(K, 64)
    gates.channel_sums[(chunks.count, H, triton.cdiv(K, BK))](q, k, g, G, *decayed, end, chunks.spans, H, K, CHUNK, BK)
    return G, *decayed, end


def _gate_gradients(flow: Tensor, carried: Tensor, g: Tensor, chunks: Chunks, gate: str) -> Tensor:
    """The gradient of the log gates, from what a token's reads exceed its writes by and what a chunk's end carries on."""
    if gate == "scalar":
        flow, carried = flow.sum(0), carried.sum(-1)
    dg = torch.empty_like(g)
    width = g[0, 0].numel() if g.numel() else 0
    BW = block(width, 64)
    gates.gate_gradients[(chunks.count, triton.cdiv(width, BW))](flow, carried, dg, chunks.spans, width, CHUNK, BW)
    return dg
