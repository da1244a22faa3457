"""ReLU linear attention of EfficientViT: not causal, rectified queries and keys, divided by the sum of the weights."""

import numpy as np

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, heads_first, ones_like
from linverify.identities import ALL_TOKENS
from linverify.mechanism import Mechanism, by_factor
from linverify.operator import Array, Inputs, Operator, Sizes


def operator(eps: float = 1e-15) -> Operator:
    """State the operator with the eps that is added to the normaliser."""

    def operands(x: Inputs, scale: Array) -> tuple[Array, Array, Array]:
        v = cat([x["v"], ones_like(x["v"][..., :1])])
        return heads_first(x["q"].relu() * scale), heads_first(x["k"].relu()), heads_first(v)

    def scores(x: Inputs, _: Sizes, scale: Array) -> Array:
        return heads_first(x["q"].relu() * scale) @ heads_first(x["k"].relu()).transpose(-1, -2)

    def divided(o: Array) -> Array:
        o = heads_first(o)
        return o[..., :-1] / (o[..., -1:] + eps)

    def naive(x: Inputs, _: Sizes, scale: Array) -> Array:
        """The definition: weights of all pairs, then the values."""
        q, k, v = operands(x, scale)
        return divided((q @ k.transpose(-1, -2)) @ v)

    def chunkwise(x: Inputs, _: Sizes, scale: Array) -> Array:
        """The other order: keys with values over all tokens, then the queries."""
        q, k, v = operands(x, scale)
        return divided(q @ (k.transpose(-1, -2) @ v))

    return Operator(
        name="relu_linear_attention",
        aliases=("efficientvit_attention", "lite_mla", "litemla"),
        summary="Linear attention over all tokens with rectified queries and keys, divided by the sum of its weights.",
        equations="w_ij = scale * relu(q_i) . relu(k_j)\n"
        "o_i = sum_j w_ij v_j / (sum_j w_ij + eps),  over all tokens j\n"
        "in either order: (relu(q) relu(k)^T) v, or relu(q) (relu(k)^T v)",
        source="Cai et al. 2022, arXiv:2205.14756, section 3.1, eq. 1 and 2; eps: LiteMLA of "
        "github.com/mit-han-lab/efficientvit; without its convolutions",
        inputs=(QUERY, KEY, VALUE),
        forms={"naive": naive, "chunkwise": chunkwise},
        mechanism=Mechanism(
            divisor="sum", eps=eps, scores=scores, hidden=lambda T: np.zeros((T, T), dtype=bool), shrink=by_factor
        ),
        # a row without weight is zero whatever the values (no M16)
        identities=ALL_TOKENS,
        default_scale=1.0,
        state_axes=(),
        rebuild=operator,
        hazards=(
            "A query without a positive channel has weight zero: 0 / eps forward, and gradients times 1e15 backward.",
            "eps = 1e-15 is zero in fp16, and a sum in bfloat16 does not see it either: the division has to be float32.",
            "The two orders are separate code, chosen by the number of tokens; the quadratic one divides before the values.",
            "Sums over all tokens in 16 bits lose small terms, in large images first.",
        ),
    )


OPERATOR = operator()
