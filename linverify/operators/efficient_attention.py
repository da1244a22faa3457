"""Efficient attention: a softmax over the features of each query, and one over the tokens for each key channel."""

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import heads_first, maximum, softmax
from linverify.identities import ALL_TOKENS
from linverify.operator import Array, Inputs, Operator, Sizes

TILE = 16


def quadratic(x: Inputs, _: Sizes, scale: Array) -> Array:
    """Weights of all pairs of tokens first: each row of them sums to one."""
    q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
    weights = softmax(q) @ softmax(k, 2).transpose(-1, -2)
    return heads_first(scale * (weights @ v))


def streamed(x: Inputs, _: Sizes, scale: Array) -> Array:
    """Keys meet values first, tile by tile: each key channel carries its own running maximum and total over the tokens."""
    q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
    top: Array = None
    total: Array = None
    context: Array = None
    for first in range(0, k.shape[2], TILE):
        keys, values = k[:, :, first : first + TILE], v[:, :, first : first + TILE]
        high = keys.detach().amax(2, keepdim=True)
        new = high if top is None else maximum(top, high)
        weights = (keys - new).exp()
        added = weights.transpose(-1, -2) @ values
        if top is None:
            total, context = weights.sum(2, keepdim=True), added
        else:
            kept = (top - new).exp()
            total = weights.sum(2, keepdim=True) + kept * total
            context = added + kept.transpose(-1, -2) * context
        top = new
    context = context / total.transpose(-1, -2)
    return heads_first(scale * (softmax(q) @ context))


OPERATOR = Operator(
    name="efficient_attention",
    aliases=("efficient_attn",),
    summary="Linear attention over all tokens with softmax feature maps: over features for a query, over tokens for a key.",
    equations="o_i = scale * rho_q(q_i)^T sum_j rho_k(k)_j v_j^T\n"
    "rho_q: softmax over the K features of a query;  rho_k: softmax over the T tokens, for each channel of k",
    source="Shen et al. 2018, arXiv:1812.01243, section 3 (softmax normalisation); the factor in front: 1 there, "
    "K**-0.5 in lucidrains/linear-attention-transformer",
    inputs=(QUERY, KEY, VALUE),
    forms={"naive": quadratic, "chunkwise": streamed},
    identities=ALL_TOKENS | {"G12"},
    default_scale=1.0,
    state_axes=(),
    hazards=(
        "The softmax of a key runs over the tokens: over the features it is another operator, of the same shapes.",
        "Each channel has its own maximum over the tokens; one maximum for all of them lets weak channels underflow.",
        "A running maximum over tiles must rescale what was summed before, totals and products alike.",
        "Padding enters a softmax over tokens unless it is minus infinity: zeros weigh exp(0).",
    ),
)
