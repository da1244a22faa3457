"""Linear angular attention (Castling-ViT): the first terms of an expansion of 1 - angle / pi."""

from math import pi

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import heads_first, unit
from linverify.identities import ALL_TOKENS
from linverify.operator import Array, Input, Inputs, Operator, Sizes

TERMS = ("own", "all")


def operator(half: str = "own", norm: bool = True) -> Operator:
    """State the operator as the authors' code has it, or as the truncated kernel.

    Args:
        half: where the constant term 1/2 of the expansion goes: "own" adds v_i / 2 (their code), "all" adds the sum of all
            v_j / 2 (what the kernel's expansion says).
        norm: whether o is divided by its norm over the features of its head.

    Raises:
        ValueError: `half` is neither.
    """
    if half not in TERMS:
        raise ValueError(f"expected half among {', '.join(TERMS)}, got {half!r}")

    def parts(x: Inputs) -> tuple[Array, Array, Array]:
        return heads_first(unit(x["q"])), heads_first(unit(x["k"])), heads_first(x["v"])

    def finished(o: Array, v: Array, scale: Array) -> Array:
        o = o * (1 / pi) + 0.5 * (v if half == "own" else v.sum(2, keepdim=True))
        return heads_first(scale * (unit(o) if norm else o))

    def quadratic(x: Inputs, _: Sizes, scale: Array) -> Array:
        """Cosines of all pairs of tokens first."""
        q, k, v = parts(x)
        return finished((q @ k.transpose(-1, -2)) @ v, v, scale)

    def linear(x: Inputs, _: Sizes, scale: Array) -> Array:
        """Keys meet values first."""
        q, k, v = parts(x)
        return finished(q @ (k.transpose(-1, -2) @ v), v, scale)

    def rows(name: str, given: Input) -> Input:
        return Input(name, given.axes, given.kind, "rows not zero", given.aliases)

    return Operator(
        name="linear_angular_attention",
        aliases=("castling_attention", "angular_attention"),
        summary="Attention over all tokens with the first two terms of the angular kernel, then unit norm in each head.",
        equations="q^ = q / |q|,  k^ = k / |k|\ny_i = v_i / 2 + (1 / pi) q^_i^T sum_j k^_j v_j^T  (half=all: sum_j v_j / 2)\n"
        "o_i = scale * y_i / |y_i|  (norm=false: scale * y_i)",
        source="You et al. 2022, arXiv:2211.10526, section 3; GATECH-EIC/Castling-ViT, castling-vit.py. Their convolution "
        "of v and the sparse branch of training are no part of it",
        inputs=(rows("q", QUERY), rows("k", KEY), VALUE),
        forms={"naive": quadratic, "chunkwise": linear},
        identities=frozenset({"M7", "M8", "M19", "G13"}) if norm else ALL_TOKENS,
        default_scale=1.0,
        state_axes=(),
        outside=("zeros",),
        rebuild=operator,
        hazards=(
            "Three norms divide by zero: of a query, of a key and of the result.",
            "The constant term is each token's own value, not the sum of all values that the expansion asks for.",
            "The norm at the end hides a wrong factor in front of the sum only where the sum is far larger than v / 2.",
            "Normalised queries and keys rounded to 16 bits are no longer of unit norm.",
        ),
    )


OPERATOR = operator()
