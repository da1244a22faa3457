"""ReBased: linear attention whose weights are the squares of the scores."""

from linverify.arguments import KEY, QUERY, VALUE
from linverify.identities import NORMALISED
from linverify.mechanism import Mechanism
from linverify.operator import Array, Operator
from linverify.operators._second_degree import second_degree, weights_of


def operator(use_norm: bool = True, eps: float = 1e-6) -> Operator:
    """State the operator, divided by the sum of its weights plus eps unless told otherwise."""

    def finish(total: Array, normaliser: Array) -> Array:
        return total / (normaliser + eps) if use_norm else total

    return Operator(
        name="rebased",
        aliases=("rebased_linear_attention",),
        summary="Linear attention with the squares of the scaled scores for weights, divided by their sum.",
        equations="w_ij = (scale * q_i . k_j)^2\n"
        "o_i = sum_{j <= i} w_ij v_j / (sum_{j <= i} w_ij + eps)   (use_norm=false: without the division)",
        source="Aksenov et al. 2024, arXiv:2402.10644, section 4, after the affine map and layer norm of q and k; eps as in "
        "flash-linear-attention's rebased (1e-6 in its naive form, 1e-5 in its kernel)",
        inputs=(QUERY, KEY, VALUE),
        forms=second_degree(0.0, 0.0, 1.0, finish),
        mechanism=Mechanism(
            divisor="sum" if use_norm else "none",
            eps=eps if use_norm else 0.0,
            scores=weights_of(0.0, 0.0, 1.0),
            shrink=lambda q, factor: q * factor.sqrt(),
        ),
        # a query orthogonal to all keys has no weight at all, and eps decides (no M16)
        identities=NORMALISED - {"M16"},
        state_axes=(),
        rebuild=operator,
        pins={"use_norm": use_norm, "use_normalize": use_norm, "eps": eps},
        hazards=(
            "The normaliser vanishes where a query is orthogonal to its keys, as for the first tokens: eps decides there.",
            "The scale counts twice, scale^2: a kernel that squares first and scales then is off by sqrt(K).",
            "Weights near zero are squares of small differences: scores rounded to 16 bits before squaring lose them.",
            "eps differs between forms of one library (1e-5 and 1e-6).",
        ),
    )


OPERATOR = operator()
