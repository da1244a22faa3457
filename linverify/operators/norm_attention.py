"""NormAttention of TransNormer: linear attention whose output is normalised as a vector, in the place of a denominator."""

from collections.abc import Callable

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import layer_norm, positive, where, zeros_like
from linverify.mechanism import Mechanism
from linverify.operator import Array, Canonical, Inputs, Operator, Sizes
from linverify.operators.normalized_linear_attention import FACTS, MAPS


def _outside(x: Array, eps: float) -> Array:
    """X / (root of its mean square + eps); at zero the root's slope is taken as zero, as torch takes it of a norm."""
    square = (x * x).mean(-1, keepdim=True)
    above = positive(square)
    root = where(above, square.masked_fill(~above, 1).sqrt(), zeros_like(square))
    return x / (root + eps)


def _inside(x: Array, eps: float) -> Array:
    """X / root of (its mean square + eps)."""
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()


NORMS: dict[str, Callable[[Array, float], Array]] = {"rms": _inside, "rms_outside": _outside, "layer": layer_norm}
"""Norms by name: root mean square with eps under the root or beside it, layer norm without weights."""


def operator(phi: str = "elu1", norm: str = "rms", scope: str = "head", eps: float = 1e-6) -> Operator:
    """State the operator.

    Args:
        phi: feature map of queries and keys.
        norm: rms (eps under the root), rms_outside (eps beside it), layer.
        scope: head (each head by itself) or all (heads side by side).
        eps: of the norm.

    Raises:
        ValueError: there is no such map, norm or scope.
    """
    for word, value, known in (("phi", phi, MAPS), ("norm", norm, NORMS), ("scope", scope, ("head", "all"))):
        if value not in known:
            raise ValueError(f"expected {word} among {', '.join(known)}, got {value!r}")
    feature, normed = MAPS[phi], NORMS[norm]

    def canonical(x: Inputs, _: Sizes) -> Canonical:
        return Canonical(q=feature(x["q"]), k=feature(x["k"]), v=x["v"])

    def readout(o: Array, _: Inputs, __: Sizes) -> Array:
        if scope == "head":
            return normed(o, eps)
        B, T, H, V = o.shape
        return normed(o.reshape(B, T, H * V), eps).reshape(B, T, H, V)

    return Operator(
        name="norm_attention",
        aliases=("normattention", "norm_linear_attention"),
        summary="Linear attention over mapped queries and keys; each output is normalised as a vector, not by its weights.",
        equations="o'_t = scale * sum_{s <= t} (phi(q_t) . phi(k_s)) v_s,  phi = 1 + elu unless told otherwise\n"
        "o_t = o'_t / sqrt(mean(o'_t^2) + eps) over the channels of a head (scope=all: of all heads)\n"
        "norm=rms_outside: o'_t / (sqrt(mean(o'_t^2)) + eps);  norm=layer: layer norm",
        source="Qin et al. 2022, arXiv:2210.10340, section 4.1; norm over all heads and eps beside the root as in "
        "github.com/Doraemonzzz/transnormer-v2-pytorch",
        inputs=(QUERY, KEY, VALUE),
        canonical=canonical,
        readout=readout,
        mechanism=Mechanism(norm=norm, norm_eps=eps, **FACTS[phi]),  # type: ignore[arg-type]  # one of NORMS, checked above
        # nothing is linear behind a norm; over all heads it couples them (no M7)
        identities=frozenset({"M4", "M6", "M19", "G13"} | ({"M7"} if scope == "head" else set())),
        default_scale=1.0,
        state_axes=(),
        coupled_heads=scope == "all",
        rebuild=operator,
        hazards=(
            "Without a denominator the sum grows with the length: in 16 bits it overflows before it is normalised.",
            "eps beside the root bounds gradients by 1 / eps, under the root by 1 / sqrt(eps): a factor of 1e3 to 1e4.",
            "Normalised per head or over all heads, per device under tensor parallelism: three different operators.",
            "An output near zero is scaled up to length sqrt(V): what was rounding becomes signal.",
        ),
    )


OPERATOR = operator()
