"""The gated delta rule (Gated DeltaNet): a scalar decay, then a delta step on the decayed state."""

from collections.abc import Mapping

from linverify.arguments import KEY, NORMALISED_OUTSIDE, QUERY, SCALAR_GATE, STRENGTH, VALUE
from linverify.identities import COMMON, DELTA
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=x["g"][..., None], beta=x["beta"][..., None])


OPERATOR = Operator(
    name="gated_delta_rule",
    aliases=("gdn", "gated_deltanet", "gated_delta_net"),
    summary="The delta rule on a state that a scalar log gate has decayed just before.",
    equations="P_t = exp(g_t) S_{t-1}\nS_t = P_t + beta_t k_t (v_t - P_t^T k_t)^T\no_t = scale * S_t^T q_t",
    source="Yang et al. 2024, arXiv:2412.06464, section 3.1 (recurrence), section 3.3 (chunks)",
    inputs=(QUERY, KEY, VALUE, SCALAR_GATE, STRENGTH),
    canonical=_canonical,
    identities=COMMON | DELTA | {"M11", "M12", "G3", "G4", "G6"},
    hazards=(
        "The removal reads the decayed state; on the undecayed one results differ by a factor exp(g) that mild gates hide.",
        "The suffix sum for the gate gradient needs key gradients of write and removal with opposite signs.",
        "Decay ratios inside the triangle must be masked before exp, or strong gates give NaN.",
        "The triangle's inverse stored in 16 bits loses digits in proportion to its condition.",
        "A kernel that normalises keys by itself changes the result wherever keys are off unit norm.",
    ),
    unit_keys=True,
    reductions=(
        Reduction(
            "delta_rule",
            "g = 0",
            lambda x: {**x, "g": x["g"].new_zeros(x["g"].shape)},
            lambda x: {n: x[n] for n in ("q", "k", "v", "beta")},
        ),
    ),
    pins={**NORMALISED_OUTSIDE, "use_gate_in_kernel": False, "use_beta_sigmoid_in_kernel": False},
)
