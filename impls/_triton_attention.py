# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Softmax attention by tiles of keys with a running maximum, and the function that runs it forward and backward.

A tile of queries passes over tiles of keys. What it has summed so far is relative to the largest score so far, and is
rescaled when a larger one comes: m' = max(m, scores), l <- exp(m - m') l + sum exp(scores - m'), likewise the weighted values.
The backward needs exp(score - lse), lse = m + log l, again and so keeps lse alone; and the row term D = o . do, for which it
keeps o before its rounding, since do . v - D cancels.

Source: Dao et al. 2022 (arXiv 2205.14135), algorithm 1; Dao 2023 (arXiv 2307.08691), section 3.1.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from linverify.impls import _triton_attention_gradients as gradients
from linverify.impls._triton_attention_tiles import keys_of, seen, tile, tiles
from linverify.impls._triton_rows import block, load, product, store

WIDEST = 256
# A maximum before anything was seen: finite, since minus infinity minus itself is no number.
LOWEST = constexpr(-(2.0**100))


@triton.jit(do_not_specialize=["H", "G", "window"])
def attend(
    q, k, v, o, wide, lse, table, scale, window, H, G, K, V,
    CAUSAL: constexpr, WINDOWED: constexpr, BT: constexpr, BS: constexpr, BK: constexpr, BV: constexpr,
):  # fmt: skip
    """Write o, o in float32 and lse of one tile of queries of head h."""
    h = tl.program_id(1)
    start, at, T = tile(table, tl.program_id(0))
    i, s, d, e = at + tl.arange(0, BT), tl.arange(0, BS), tl.arange(0, BK), tl.arange(0, BV)
    row, key = start * H + h, start * G + h // (H // G)
    Q = load(q + row * K, i, d, T, H * K, K)
    high, total = tl.full([BT], LOWEST, tl.float32), tl.zeros([BT], tl.float32)
    out = tl.zeros([BT, BV], tl.float32)
    first, stop = keys_of(at, T, window, CAUSAL, WINDOWED, BT, BS)
    for begin in range(first, stop, BS):
        j = begin + s
        scores = scale * product(Q, tl.trans(load(k + key * K, j, d, T, G * K, K)))
        scores = tl.where(seen(i, j, T, window, CAUSAL, WINDOWED), scores, float("-inf"))
        new = tl.maximum(high, tl.max(scores, 1))
        weights, kept = tl.exp(scores - new[:, None]), tl.exp(high - new)
        total = kept * total + tl.sum(weights, 1)
        values = load(v + key * V, j, e, T, G * V, V)
        out = kept[:, None] * out + product(weights.to(values.dtype), values)
        high = new
    total = tl.where(i < T, total, 1.0)  # beyond the end no key was seen
    out = out / total[:, None]
    store(o + row * V, out, i, e, T, H * V, V)
    store(wide + row * V, out, i, e, T, H * V, V)
    tl.store(lse + row + i * H, high + tl.log(total), mask=i < T)


class Attention(torch.autograd.Function):
    """Shapes: q [B, T, H, K]; k [B, T, G, K]; v [B, T, G, V]; table [tiles, 3] of `tiles`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int, table: Tensor, side: int
    ) -> Tensor:
        """Return o [B, T, H, V]."""
        q, k, v = (x.contiguous() for x in (q, k, v))
        (H, K), (G, V) = q.shape[2:], v.shape[2:]
        o = q.new_empty(*q.shape[:3], V)
        wide, lse = torch.empty_like(o, dtype=torch.float32), q.new_empty(q.shape[:3], dtype=torch.float32)
        sizes = (window, H, G, K, V, causal, window > 0, side, side, block(K, WIDEST), block(V, WIDEST))
        attend[(len(table), H)](q, k, v, o, wide, lse, table, scale, *sizes, num_stages=1 + (q.dtype != torch.float32))
        ctx.save_for_backward(q, k, v, wide, lse, table)
        ctx.scale, ctx.sizes = scale, sizes
        return o

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        q, k, v, wide, lse, table = ctx.saved_tensors
        do = do.contiguous()
        D, dq, dk, dv = torch.empty_like(lse), torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        how = {"num_warps": 8 if max(q.shape[-1], v.shape[-1]) > 64 else 4, "num_stages": 1}
        gradients.of_queries[(len(table), q.shape[2])](
            q, k, v, do, lse, wide, D, dq, table, ctx.scale, *ctx.sizes, **how
        )
        gradients.of_keys[(len(table), k.shape[2])](q, k, v, do, lse, D, dk, dv, table, ctx.scale, *ctx.sizes, **how)
        return dq, dk, dv, None, None, None, None, None


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: list[int], *, causal: bool, window: int
) -> Tensor:
    """Return o [B, T, H, V] for sequences of these lengths in the list of B * T tokens; window 0 is none.

    Raises:
        ValueError: operands of several dtypes, or of one that there are no kernels for; K or V above 256.
    """
    found = [q.dtype, k.dtype, v.dtype]
    if len(set(found)) > 1 or found[0] not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"expected q, k and v all float32, float16 or bfloat16, got {', '.join(map(str, found))}")
    width = max(q.shape[-1], v.shape[-1])
    if width > WIDEST:
        raise ValueError(f"expected K and V of at most {WIDEST}, got K={q.shape[-1]} and V={v.shape[-1]}")
    # Four tiles of the widest rows have to fit into shared memory.
    side = 64 if block(width, WIDEST) * q.element_size() <= 512 else 32
    # Kernels are launched on the current device; autograd sees to it in the backward.
    with torch.cuda.device_of(q):
        o: Tensor = Attention.apply(q, k, v, scale, causal, window, tiles(tuple(lengths), side, q.device), side)
    return o
