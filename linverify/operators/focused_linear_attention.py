"""Focused linear attention (FLatten): not causal; a map that sharpens the direction of queries and keys, not their length."""

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, heads_first, ones_like, softplus
from linverify.identities import ALL_TOKENS
from linverify.operator import Array, Input, Inputs, Operator, Sizes


def operator(p: int = 3, eps: float = 1e-6) -> Operator:
    """State the operator with the focusing factor p and the eps that is added to rectified inputs and to the normaliser.

    Raises:
        ValueError: p is less than 1.
    """
    if p < 1:
        raise ValueError(f"expected a focusing factor p of at least 1, got {p}")

    def norm(x: Array) -> Array:
        """Length over all heads and channels, [B, T, 1, 1]."""
        return (x * x).sum(-1, keepdim=True).sum(2, keepdim=True).sqrt()

    def feature(x: Array, focus: Array) -> Array:
        x = (x.relu() + eps) / softplus(focus)
        sharp = x**p
        return sharp / norm(sharp) * norm(x)

    def operands(x: Inputs, scale: Array) -> tuple[Array, Array, Array]:
        v = cat([x["v"], ones_like(x["v"][..., :1])])
        q, k = (feature(x[n], x["focus"]) for n in ("q", "k"))
        return heads_first(q * scale), heads_first(k), heads_first(v)

    def divided(o: Array, sizes: Sizes) -> Array:
        o = heads_first(o) / sizes["T"]
        return o[..., :-1] / (o[..., -1:] + eps)

    def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """The definition: weights of all pairs, then the values."""
        q, k, v = operands(x, scale)
        return divided((q @ k.transpose(-1, -2)) @ v, sizes)

    def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """The other order: keys with values over all tokens, then the queries."""
        q, k, v = operands(x, scale)
        return divided(q @ (k.transpose(-1, -2) @ v), sizes)

    return Operator(
        name="focused_linear_attention",
        aliases=("focused_attention", "flatten", "fla_transformer"),
        summary="Linear attention over all tokens with focused queries and keys, divided by the mean of its weights.",
        equations="x' = (relu(x) + eps) / softplus(focus),  phi(x) = |x'| x'^p / |x'^p|,  lengths over all heads and channels\n"
        "o_i = mean_j w_ij v_j / (mean_j w_ij + eps),  w_ij = scale * phi(q_i) . phi(k_j) by head, over all tokens j",
        source="Han et al. 2023, arXiv:2308.00442, eq. 5 to 8; softplus scale, eps and the mean: flatten_pvt.py of "
        "github.com/LeapLabTHU/FLatten-Transformer; without its positional encoding of k and its convolution of v",
        inputs=(
            QUERY,
            KEY,
            VALUE,
            Input("focus", ("H", "K"), "parameter", "before softplus", aliases=("scale_parameter", "focus_scale")),
        ),
        forms={"naive": naive, "chunkwise": chunkwise},
        # lengths are taken over all heads (no M7); a row of next to no weight is eps' own (no M16)
        identities=ALL_TOKENS - {"M7"},
        default_scale=1.0,
        state_axes=(),
        coupled_heads=True,
        rebuild=operator,
        hazards=(
            "Cubes leave fp16: they overflow above 40 and vanish below 4e-3; powers and lengths have to be float32.",
            "Lengths are taken over all channels before the heads are split: per head it is another operator.",
            "A mean in the place of a sum: eps then counts once for each token.",
            "A row without a positive entry is 1e-6 throughout: phi keeps its length, the normaliser is eps alone.",
        ),
    )


OPERATOR = operator()
