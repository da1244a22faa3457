"""Linear attention: a running sum of key-value products, or the sum over all tokens, without normaliser and decay."""

from linverify.arguments import KEY, PINS, QUERY, VALUE
from linverify.formulas import heads_first
from linverify.identities import ALL_TOKENS, COMMON, WRITES_ONLY_KEYS
from linverify.operator import Array, Canonical, Inputs, Operator, Sizes


def _canonical(x: Inputs, _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"])


def _scores_first(x: Inputs, _: Sizes, scale: Array) -> Array:
    q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
    return heads_first(((q * scale) @ k.transpose(-1, -2)) @ v)


def _state_first(x: Inputs, _: Sizes, scale: Array) -> Array:
    q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
    return heads_first((q * scale) @ (k.transpose(-1, -2) @ v))


def operator(causal: bool = True) -> Operator:
    """State the operator: a recurrence, or without `causal` the same sum over all tokens, which has no state."""
    return Operator(
        name="linear_attention",
        aliases=("linear_attn", "la"),
        summary="A sum of key-value products, read by the query; not normalised, no decay.",
        equations="S_t = S_{t-1} + k_t v_t^T\no_t = scale * S_t^T q_t\ncausal=false: o_t = scale * S_T^T q_t, without states",
        source="Katharopoulos et al. 2020, arXiv:2006.16236, section 3.3 (all tokens: section 3.2), with the identity for "
        "the feature map and no normaliser",
        inputs=(QUERY, KEY, VALUE),
        canonical=_canonical if causal else None,
        forms={} if causal else {"naive": _scores_first, "chunkwise": _state_first},
        state_axes=("N", "H", "K", "V") if causal else (),
        identities=COMMON | WRITES_ONLY_KEYS | {"M9", "M18", "G5", "G10"} if causal else ALL_TOKENS,
        rebuild=operator,
        hazards=(
            "Nothing decays: a state grows with T if keys are aligned; in 16 bits it stops growing after some hundred writes.",
            "A library that normalises by default divides by q . sum(k), which may be close to zero or negative.",
            "The scale belongs on the query once; on the key as well, or left out, results are off by sqrt(K).",
            "Both directions as two causal runs count each token's own term twice.",
        ),
        pins={**PINS, "normalize": False, "causal": causal},
    )


OPERATOR = operator()
