"""Causal softmax attention, and its online tiling; query heads share keys and values in groups."""

from linverify.arguments import heads_from_groups
from linverify.formulas import cat, heads_first, later, maximum, softmax
from linverify.operator import Array, Input, Inputs, Operator, Sizes

TILE = 16


def _heads(x: Inputs, sizes: Sizes) -> tuple[Array, Array, Array]:
    """q, k, v as [B, H, T, .]."""
    k, v = (heads_first(heads_from_groups(x[n], sizes)) for n in ("k", "v"))
    return heads_first(x["q"]), k, v


def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """The definition: softmax of all masked scores."""
    q, k, v = _heads(x, sizes)
    T = sizes["T"]
    scores = (q * scale) @ k.transpose(-1, -2)
    return heads_first(softmax(scores, mask=later(T, T, scores)) @ v)


def online(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """Tiles of keys one after the other with a running maximum, as FlashAttention goes (Dao et al. 2022, algorithm 1)."""
    q, k, v = _heads(x, sizes)
    T, outs = sizes["T"], []
    for start in range(0, T, TILE):
        rows = q[:, :, start : start + TILE] * scale
        top: Array = None
        total: Array = None
        read: Array = None
        for first in range(0, min(start + TILE, T), TILE):
            keys, values = k[:, :, first : first + TILE], v[:, :, first : first + TILE]
            scores = rows @ keys.transpose(-1, -2)
            if first == start:
                scores = scores.masked_fill(later(scores.shape[-2], scores.shape[-1], scores), -float("inf"))
            high = scores.detach().amax(-1, keepdim=True)
            new = high if top is None else maximum(top, high)
            weights = (scores - new).exp()
            kept: Array = None if top is None else (top - new).exp()
            total = weights.sum(-1, keepdim=True) + (0 if kept is None else kept * total)
            read = weights @ values if kept is None else weights @ values + kept * read
            top = new
        outs.append(read / total)
    return heads_first(cat(outs, 2))


OPERATOR = Operator(
    name="softmax_attention",
    aliases=("attention", "sdpa", "flash_attention"),
    summary="Causal softmax attention; H query heads share G heads of keys and values.",
    equations="o_i = sum_{j <= i} softmax_j(scale * q_i . k_j) v_j,  head h uses keys and values h // (H / G)",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1; online tiling: Dao et al. 2022, arXiv:2205.14135, algorithm 1",
    inputs=(
        Input("q", ("B", "T", "H", "K"), "query", aliases=("query", "queries", "Q")),
        Input("k", ("B", "T", "G", "K"), "key", aliases=("key", "keys")),
        Input("v", ("B", "T", "G", "V"), "value", aliases=("value", "values", "V")),
    ),
    forms={"naive": naive, "chunkwise": online},
    identities=frozenset({"M1", "M4", "M7", "M15", "M16", "M19", "G13"}),
    grouped=True,
    state_axes=(),
    hazards=(
        "exp overflows without the row maximum; a row that is masked throughout subtracts infinities.",
        "Weights rounded to 16 bits before they multiply the values lose half the digits of a float32 result.",
        "A sum of weights in bfloat16 stalls after 256 equal terms.",
        "The row term D = o . do taken from a rounded o loses digits where o cancels.",
    ),
)
