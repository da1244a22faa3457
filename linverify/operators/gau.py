"""The attention of a gated attention unit: squared ReLU of scores, no denominator, one head, a gate on what is read."""

from linverify.formulas import cat, later
from linverify.operator import Array, Input, Inputs, Operator, Sizes

TILE = 16
NORMS = ("inside", "outside")


def squared_relu(x: Array) -> Array:
    """The square of what is above zero."""
    above = x.relu()
    return above * above


def operator(causal: bool = False, norm: str = "inside") -> Operator:
    """State the operator.

    Args:
        causal: whether a token sees only tokens up to its own; n is the whole length all the same.
        norm: "inside": relu(q . k / n)^2; "outside": relu(q . k)^2 / (n K).

    Raises:
        ValueError: there is no such norm.
    """
    if norm not in NORMS:
        raise ValueError(f"expected norm among {', '.join(NORMS)}, got {norm!r}")

    def weights(scores: Array, sizes: Sizes) -> Array:
        if norm == "inside":
            return squared_relu(scores * (1 / sizes["T"]))
        return squared_relu(scores) * (1 / (sizes["T"] * sizes["K"]))

    def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """All pairs of tokens at once."""
        found = weights(x["q"] @ x["k"].transpose(-1, -2), sizes)
        if causal:
            found = found.masked_fill(later(sizes["T"], sizes["T"], found), 0)
        return scale * (x["u"] * (found @ x["v"]))

    def tiled(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Tiles of keys one after the other, summed up; those that lie in the future are left out."""
        T, outs = sizes["T"], []
        for start in range(0, T, TILE):
            rows = x["q"][:, start : start + TILE]
            read: Array = None
            for first in range(0, start + 1 if causal else T, TILE):
                found = weights(rows @ x["k"][:, first : first + TILE].transpose(-1, -2), sizes)
                if causal and first == start:
                    found = found.masked_fill(later(found.shape[-2], found.shape[-1], found), 0)
                added = found @ x["v"][:, first : first + TILE]
                read = added if read is None else read + added
            outs.append(read)
        return scale * (x["u"] * cat(outs, 1))

    return Operator(
        name="gau",
        aliases=("gated_attention_unit", "flash_quad"),
        summary="Attention by squared ReLU of scores over n, with one narrow head, gated by u; FLASH-Quad is a stack of it.",
        equations="o_i = scale * u_i * sum_j relu(q_i . k_j / n)^2 v_j,  n = T\n"
        "norm=outside: relu(q_i . k_j)^2 / (n K);  causal: over j <= i",
        source="Hua et al. 2022, arXiv:2202.10447, section 2 (GAU) and section 4 (FLASH-Quad), without the "
        "relative position bias; lucidrains/FLASH-pytorch; the other norm: K the width of q and k",
        inputs=(
            Input("q", ("B", "T", "K"), "query", aliases=("query", "queries", "Q")),
            Input("k", ("B", "T", "K"), "key", aliases=("key", "keys", "K")),
            Input("v", ("B", "T", "V"), "value", aliases=("value", "values", "V")),
            Input("u", ("B", "T", "V"), "parameter", aliases=("gate", "gates", "U")),
        ),
        forms={"naive": naive, "chunkwise": tiled},
        identities=frozenset({"M1", "M7", "M19", "G13"}) | ({"M4"} if causal else {"M8"}),
        o_axes=("B", "T", "V"),
        default_scale=1.0,
        state_axes=(),
        rebuild=operator,
        pins={"causal": causal},
        hazards=(
            "A causal mask written into the scores after the weights were made from them masks nothing.",
            "1 / n inside the square makes weights of about 1 / n^2: below the smallest number of fp16 from n = 4096 on.",
            "The slope of the squared ReLU is 2 relu(s): without the 2, or with the slope of a ReLU, only gradients err.",
            "n is the length of the own sequence, not of the padded or packed one.",
        ),
    )


OPERATOR = operator()
