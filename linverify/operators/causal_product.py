"""Causal product: fast-transformers' kernel, heads before tokens, nothing scaled and nothing normalised."""

from linverify.formulas import heads_first
from linverify.operator import Array, Canonical, Input, Inputs, Operator, Reduction, Sizes


def _canonical(x: Inputs, _: Sizes) -> Canonical:
    return Canonical(q=heads_first(x["Q"]), k=heads_first(x["K"]), v=heads_first(x["V"]))


def _readout(o: Array, _: Inputs, __: Sizes) -> Array:
    return heads_first(o)


OPERATOR = Operator(
    name="causal_product",
    aliases=("causal_dot_product", "causal_linear_product"),
    summary="Every output is the sum of the values up to its token, weighted by products of its query with their keys.",
    equations="O_i = scale * sum_{j <= i} (Q_i . K_j) V_j,  layout [N, H, L, E] and [N, H, L, M]",
    source="Katharopoulos et al. 2020, arXiv:2006.16236, section 3.3 and algorithm 1; "
    "causal_product of github.com/idiap/fast-transformers",
    inputs=(
        Input("Q", ("B", "H", "T", "K"), "query", aliases=("queries", "q", "query")),
        Input("K", ("B", "H", "T", "K"), "key", aliases=("keys", "k", "key")),
        Input("V", ("B", "H", "T", "V"), "value", aliases=("values", "v", "value")),
    ),
    canonical=_canonical,
    readout=_readout,
    o_axes=("B", "H", "T", "V"),
    state_axes=(),
    default_scale=1.0,
    identities=frozenset({"M1", "M2", "M3", "M4", "M6", "M7", "M13", "M15", "G7", "G10", "G13", "X1"}),
    hazards=(
        "Two kernels share the work by size, a usual one and one for few blocks: both sides of the border need a look.",
        "Widths that are no multiple of the tile (E by 4, M by 32), and E too large for shared memory, take other branches.",
        "The output is allocated in float32 whatever the inputs: other dtypes are to be refused, not read as float32.",
        "The backward pass is three calls of the forward one, two of them on the reversed sequence.",
        "Nothing decays: the state grows with the length, with the root of it for random keys.",
    ),
    reductions=(
        Reduction(
            "linear_attention",
            "nothing: it is the same sum with heads before tokens",
            dict,
            lambda x: {n.lower(): t.transpose(1, 2) for n, t in x.items()},
        ),
    ),
)
