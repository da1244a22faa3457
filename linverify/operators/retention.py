"""Retention: linear attention whose state decays by a constant of each head, gamma_h = 1 - 2^(-5-h)."""

from collections.abc import Mapping

from linverify.arguments import KEY, PINS, QUERY, VALUE
from linverify.identities import COMMON, WRITES_ONLY_KEYS
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes, per_head


def _canonical(x: Mapping[str, Array], sizes: Sizes) -> Canonical:
    # 1 - 2^(-5-h) is dyadic, so only the logarithm rounds, and only as far as the arithmetic in use does
    gamma = per_head([1.0 - 2.0 ** (-5 - h) for h in range(sizes["H"])], x["q"])
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=gamma.log())


def _as_simple_gla(x: Mapping[str, Array]) -> dict[str, Array]:
    """Spell the inputs as those of simple_gla, the constant decay as a gate at every token."""
    gamma = per_head([1.0 - 2.0 ** (-5 - h) for h in range(x["q"].shape[2])], x["q"].double())
    return {**{n: x[n] for n in "qkv"}, "g": gamma.log()[..., 0].expand(x["q"].shape[:3]).clone()}


OPERATOR = Operator(
    name="retention",
    aliases=("retnet",),
    summary="A sum of key-value products that decays by the constant 1 - 2^(-5-h) of head h.",
    equations="S_t = gamma_h S_{t-1} + k_t v_t^T,  gamma_h = 1 - 2^(-5-h)\no_t = scale * S_t^T q_t",
    source="Sun et al. 2023, arXiv:2307.08621, section 2.1, the recurrent form without the rotation and without the group norm",
    inputs=(QUERY, KEY, VALUE),
    canonical=_canonical,
    # the decay is no input: heads cannot be permuted with it (M7) and no token leaves the state alone (M10)
    identities=(COMMON | WRITES_ONLY_KEYS | {"G5", "G10"}) - {"M7", "M10", "X1"},
    hazards=(
        "gamma computed in bf16 rounds to 1 from the fifth head on, and the decay is gone.",
        "Off by one in the power of gamma: the newest token is not decayed, the initial state is decayed at token one.",
        "A head index taken within a program's block instead of over all heads gives every block the first heads' decay.",
    ),
    reductions=(Reduction("simple_gla", "always, with the decay as a gate", dict, _as_simple_gla),),
    pins=PINS,
)
