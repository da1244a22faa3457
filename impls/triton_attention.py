"""Softmax attention in Triton, forward and backward: tiles of keys with a running maximum (FlashAttention).

Causal or not, with a window or without, query heads in groups that share keys, packed sequences. Operands of products have the
inputs' dtype (the weights are rounded to it, too); scores, weights' sums and everything else are float32.
"""

from itertools import pairwise

from torch import Tensor

from linverify.implementation import kernel
from linverify.impls._backend import absent


@kernel("softmax_attention", form="chunkwise", backend="triton", absent=absent("triton"))
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    causal: bool = True,
    window: int = 0,
) -> Tensor:
    """Return o [B, T, H, V] of queries [B, T, H, K], keys [B, T, G, K] and values [B, T, G, V].

    Args:
        q: queries; head h reads keys and values h // (H / G).
        k: keys.
        v: values.
        scale: of the scores; K**-0.5 by default.
        cu_seqlens: [N + 1] where packed sequences end, from 0 to T; then B is 1.
        causal: whether a query sees keys up to its own alone.
        window: keys that far away and farther are not seen; 0 for none.

    Raises:
        ValueError: shapes that do not fit each other, several dtypes, or K or V above 256.
    """
    from linverify.impls._triton_attention import attention  # Triton is imported on the first call.

    B, T, H, K = q.shape
    if k.shape[:2] != (B, T) or v.shape[:2] != (B, T) or k.shape[2] != v.shape[2] or k.shape[3] != K or H % k.shape[2]:
        raise ValueError(
            "expected q [B, T, H, K], k [B, T, G, K] and v [B, T, G, V] with H a multiple of G, "
            f"got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    if window < 0:
        raise ValueError(f"expected a window of at least 1, or 0 for none, got {window}")
    ends = [T * b for b in range(B + 1)] if cu_seqlens is None else cu_seqlens.tolist()
    lengths = [stop - start for start, stop in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != B * T or min(lengths, default=0) < 0 or (cu_seqlens is not None and B != 1):
        raise ValueError(f"expected cu_seqlens to rise from 0 to T={T} with B=1, got {ends} with B={B}")
    return attention(q, k, v, K**-0.5 if scale is None else scale, lengths, causal=causal, window=window)
