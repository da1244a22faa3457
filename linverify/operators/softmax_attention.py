"""Softmax attention, causal or not, with or without a window, and its online tiling; query heads share keys in groups."""

import numpy as np

from linverify.arguments import heads_from_groups
from linverify.formulas import cat, heads_first, mask_like, maximum, softmax
from linverify.identities import SOFTMAX
from linverify.mechanism import Mechanism
from linverify.operator import Array, Form, Input, Inputs, Operator, Sizes

TILE = 16
LOWEST = -(2.0**100)
"""A running maximum before anything was seen: finite, since minus infinity minus itself is no number."""


def _heads(x: Inputs, sizes: Sizes) -> tuple[Array, Array, Array]:
    """q, k, v as [B, H, T, .]."""
    k, v = (heads_first(heads_from_groups(x[n], sizes)) for n in ("k", "v"))
    return heads_first(x["q"]), k, v


def hidden(T: int, *, causal: bool, window: int) -> np.ndarray:
    """Mask [T, T] of the keys j that query i must not see: j > i if causal; |i - j| >= window if there is one."""
    after = np.arange(T)[None, :] - np.arange(T)[:, None]
    found = after > 0 if causal else np.zeros((T, T), dtype=bool)
    return found | (abs(after) >= window) if window else found


def _cached(window: int) -> Form:
    def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Token by token, as in decoding: the state is all keys and values so far, or those in the window."""
        q, k, v = _heads(x, sizes)
        outs = []
        for t in range(sizes["T"]):
            seen = slice(max(0, t + 1 - window) if window else 0, t + 1)
            scores = (q[:, :, t : t + 1] * scale) @ k[:, :, seen].transpose(-1, -2)
            outs.append(softmax(scores) @ v[:, :, seen])
        return heads_first(cat(outs, 2))

    return recurrent


def _normalised(causal: bool, window: int) -> Form:
    def normalised(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Weights exp(s - L) with the log L of each row's sum, as backward passes form them anew and parts of rows are merged.

        L is rounded like the largest score, and all weights of a row with it: Dao 2023, arXiv:2307.08691, section 3.1.
        """
        q, k, v = _heads(x, sizes)
        mask = hidden(sizes["T"], causal=causal, window=window)
        scores = (q * scale) @ k.transpose(-1, -2)
        if mask.any():
            scores = scores.masked_fill(mask_like(mask, scores), -float("inf"))
        top = scores.detach().amax(-1, keepdim=True).clamp(min=LOWEST)
        total = top + (scores - top).exp().sum(-1, keepdim=True).log()
        return heads_first((scores - total).exp() @ v)

    return normalised


def operator(causal: bool = True, window: int = 0) -> Operator:
    """State the operator: with `causal`, a query sees keys up to its own; with a `window` W > 0, keys less than W away.

    Raises:
        ValueError: the window is negative.
    """
    if window < 0:
        raise ValueError(f"expected a window of at least 1, or 0 for none, got {window}")

    def scores(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        q, k, _ = _heads(x, sizes)
        return (q * scale) @ k.transpose(-1, -2)

    def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """The definition: softmax of all masked scores."""
        q, k, v = _heads(x, sizes)
        mask = hidden(sizes["T"], causal=causal, window=window)
        scores = (q * scale) @ k.transpose(-1, -2)
        return heads_first(softmax(scores, mask=mask_like(mask, scores) if mask.any() else None) @ v)

    def online(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Tiles of keys one after the other with a running maximum; tiles that no row sees are left out."""
        q, k, v = _heads(x, sizes)
        T, outs = sizes["T"], []
        mask = hidden(T, causal=causal, window=window)
        for start in range(0, T, TILE):
            rows = q[:, :, start : start + TILE] * scale
            top: Array = None
            total: Array = None
            read: Array = None
            for first in range(0, T, TILE):
                unseen = mask[start : start + TILE, first : first + TILE]
                if unseen.all():
                    continue
                keys, values = k[:, :, first : first + TILE], v[:, :, first : first + TILE]
                scores = rows @ keys.transpose(-1, -2)
                if unseen.any():
                    scores = scores.masked_fill(mask_like(unseen, scores), -float("inf"))
                high = scores.detach().amax(-1, keepdim=True).clamp(min=LOWEST)
                new = high if top is None else maximum(top, high)
                weights = (scores - new).exp()
                kept: Array = None if top is None else (top - new).exp()
                total = weights.sum(-1, keepdim=True) + (0 if kept is None else kept * total)
                read = weights @ values if kept is None else weights @ values + kept * read
                top = new
            outs.append(read / total)
        return heads_first(cat(outs, 2))

    order = {"M4"} if causal else set() if window else {"M8"}
    step = {"recurrent": _cached(window)} if causal else {}
    return Operator(
        name="softmax_attention",
        aliases=("attention", "sdpa", "flash_attention"),
        summary="Softmax attention, causal unless told otherwise; H query heads share G heads of keys and values.",
        equations="o_i = sum_j softmax_j(scale * q_i . k_j) v_j,  head h uses keys and values h // (H / G)\n"
        "over j <= i (causal=false: all j), and |i - j| < window where window > 0",
        source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1; online tiling: Dao et al. 2022, arXiv:2205.14135, "
        "algorithm 1; window: Beltagy et al. 2020, arXiv:2004.05150, section 3.1",
        inputs=(
            Input("q", ("B", "T", "H", "K"), "query", aliases=("query", "queries", "Q")),
            Input("k", ("B", "T", "G", "K"), "key", aliases=("key", "keys")),
            Input("v", ("B", "T", "G", "V"), "value", aliases=("value", "values", "V")),
        ),
        forms={"naive": naive, **step, "chunkwise": online},
        ways={"logsumexp": _normalised(causal, window)},
        mechanism=Mechanism(
            weight="exponential", scores=scores, hidden=lambda T: hidden(T, causal=causal, window=window), signed=True
        ),
        identities=SOFTMAX | order,
        grouped=True,
        state_axes=(),
        rebuild=operator,
        pins={"causal": causal, "is_causal": causal} | ({"window": window, "window_size": window} if window else {}),
        hazards=(
            "exp overflows without the row maximum; a row that is masked throughout subtracts infinities.",
            "The first tile that a window lets in may be masked for some of its rows: their maximum is minus infinity.",
            "A window that is off by one, or that counts from the tile's first row, is right for most tokens.",
            "Weights rounded to 16 bits before they multiply the values lose half the digits of a float32 result.",
            "A sum of weights in bfloat16 stalls after 256 equal terms.",
            "The row term D = o . do taken from a rounded o loses digits where o cancels.",
        ),
    )


OPERATOR = operator()
