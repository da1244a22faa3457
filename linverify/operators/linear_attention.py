"""Linear attention: a running sum of key-value products, without normaliser and without decay."""

from collections.abc import Mapping

from linverify.arguments import KEY, PINS, QUERY, VALUE
from linverify.identities import COMMON, WRITES_ONLY_KEYS
from linverify.operator import Array, Canonical, Operator, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"])


OPERATOR = Operator(
    name="linear_attention",
    aliases=("linear_attn", "la"),
    summary="A sum of key-value products, read by the query; not normalised, no decay.",
    equations="S_t = S_{t-1} + k_t v_t^T\no_t = scale * S_t^T q_t",
    source="Katharopoulos et al. 2020, arXiv:2006.16236, section 3.3, with the identity for the feature map and no normaliser",
    inputs=(QUERY, KEY, VALUE),
    canonical=_canonical,
    identities=COMMON | WRITES_ONLY_KEYS | {"M9", "M18", "G5", "G10"},
    hazards=(
        "Nothing decays: a state grows with T if keys are aligned, and in 16 bits stops absorbing after some hundred writes.",
        "A library that normalises by default divides by q . sum(k), which may be close to zero or negative.",
        "The scale belongs on the query once; on the key as well, or left out, results are off by sqrt(K).",
    ),
    pins={**PINS, "normalize": False},
)
