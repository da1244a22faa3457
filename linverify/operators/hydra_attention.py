"""Hydra attention: as many heads as features, so that a state is one number a feature."""

from linverify.formulas import ones_like, unit
from linverify.operator import Array, Input, Inputs, Operator, Sizes

TILE = 16


def definition(x: Inputs, _: Sizes, scale: Array) -> Array:
    """Keys meet values first: one sum a feature serves every query."""
    q, k = unit(x["q"]), unit(x["k"])
    return scale * (q * (k * x["v"]).sum(1, keepdim=True))


def one_by_one(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """Queries meet keys first, in the other order of multiplication: token by token, each query takes its share."""
    q, k = unit(x["q"]), unit(x["k"])
    o: Array = None
    for t in range(sizes["T"]):
        share = (q * k[:, t : t + 1]) * x["v"][:, t : t + 1]
        o = share if o is None else o + share
    return scale * o


def tiled(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """Keys meet values first, tile by tile, as products with a row of ones."""
    q, k = unit(x["q"]), unit(x["k"])
    total: Array = None
    for first in range(0, sizes["T"], TILE):
        written = k[:, first : first + TILE] * x["v"][:, first : first + TILE]
        added = ones_like(written[:, :, :1]).transpose(-1, -2) @ written
        total = added if total is None else total + added
    return scale * (q * total)


OPERATOR = Operator(
    name="hydra_attention",
    aliases=("hydra",),
    summary="Linear attention over all tokens with one head a feature; queries and keys have unit norm over all features.",
    equations="q^ = q / |q|,  k^ = k / |k|  over all features of a token\no_i = scale * q^_i * sum_j k^_j * v_j  (elementwise)",
    source="Bolya et al. 2022, arXiv:2209.07484, section 3 and the code in its appendix; robflynnyh/hydra-linear-attention",
    inputs=(
        Input("q", ("B", "T", "V"), "query", "rows not zero", aliases=("query", "queries", "Q")),
        Input("k", ("B", "T", "V"), "key", "rows not zero", aliases=("key", "keys", "K")),
        Input("v", ("B", "T", "V"), "value", aliases=("value", "values", "V")),
    ),
    forms={"naive": definition, "recurrent": one_by_one, "chunkwise": tiled},
    identities=frozenset({"M1", "M7", "M8", "M19", "G13"}),
    o_axes=("B", "T", "V"),
    default_scale=1.0,
    state_axes=(),
    outside=("zeros",),
    hazards=(
        "The norm of a zero row divides by zero; near it the gradient grows as 1 / |q|.",
        "Norms run over the whole width, before any split into heads.",
        "A sum over tokens in 16 bits stops growing after a few hundred of equal sign.",
        "Normalised rows rounded to 16 bits before the sum lose what the sum would have kept.",
    ),
)
