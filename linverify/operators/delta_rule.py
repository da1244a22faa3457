"""The delta rule (DeltaNet): each write first removes what the state holds under its key."""

from collections.abc import Mapping

from linverify.arguments import KEY, NORMALISED_OUTSIDE, QUERY, STRENGTH, VALUE
from linverify.identities import COMMON, DELTA
from linverify.operator import Array, Canonical, Operator, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], beta=x["beta"][..., None])


OPERATOR = Operator(
    name="delta_rule",
    aliases=("deltanet", "delta_net"),
    summary="Each write replaces the value stored under its key, with strength beta; keys are used as given.",
    equations="S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T\no_t = scale * S_t^T q_t",
    source="Schlag et al. 2021, arXiv:2102.11174, section 4; chunks: Yang et al. 2024, arXiv:2406.06484, section 3",
    inputs=(QUERY, KEY, VALUE, STRENGTH),
    canonical=_canonical,
    identities=COMMON | DELTA,
    hazards=(
        "A Neumann or doubling series for the inverse has huge terms for nearly equal keys though the result is below 2.",
        "Nearly equal keys and beta towards 2 make the triangle ill-conditioned; tf32 in the inverse is amplified by it.",
        "beta |k|^2 above 2 makes the recurrence itself grow without bound.",
        "A kernel that normalises keys by itself changes the result wherever keys are off unit norm.",
        "Keys enter the write and the removal: a key gradient without the second part is wrong by its own size.",
    ),
    unit_keys=True,
    pins=NORMALISED_OUTSIDE,
)
