"""Based: linear attention whose weights are the Taylor series of exp up to the second degree."""

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
        name="based",
        aliases=("taylor_linear_attention", "based_linear_attention"),
        summary="Linear attention with weights 1 + s + s^2 / 2 of the scaled scores s, divided by their sum.",
        equations="s_ij = scale * q_i . k_j,  w_ij = 1 + s_ij + s_ij^2 / 2\n"
        "o_i = sum_{j <= i} w_ij v_j / (sum_{j <= i} w_ij + eps)   (use_norm=false: without the division)\n"
        "as a state: sums of v, k v^T and (k k^T) v^T, read by 1, q and q q^T / 2",
        source="Arora et al. 2024, arXiv:2402.18668, section 4 (second-order Taylor feature map); eps as in "
        "flash-linear-attention's based",
        inputs=(QUERY, KEY, VALUE),
        forms=second_degree(1.0, 1.0, 0.5, finish),
        mechanism=Mechanism(
            divisor="sum" if use_norm else "none",
            eps=eps if use_norm else 0.0,
            least=0.5,
            scores=weights_of(1.0, 1.0, 0.5),
        ),
        identities=NORMALISED if use_norm else NORMALISED - {"M16"},
        state_axes=(),
        rebuild=operator,
        pins={"use_norm": use_norm},
        hazards=(
            "A weight is at least 1/2, but as a sum of three states it is a difference of large numbers where s is near -1.",
            "The constant term is a running sum of the values: left out of one chunk, or counted twice, it hides in the rest.",
            "Packed features weigh mixed products by 1 / sqrt(K), squares by 1 / sqrt(2 K): exchanged, they look right.",
            "The scale belongs on the score, so once on the square's inside: scale^2, not scale.",
            "A null key has weight one: padding has to be masked, zeros do not do it.",
        ),
    )


OPERATOR = operator()
