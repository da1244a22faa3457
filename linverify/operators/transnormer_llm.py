"""TransNormerLLM's token mixer: rotated queries and keys, a decay of each head, one norm over all heads."""

import math

import torch

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, rms_norm
from linverify.mechanism import Mechanism
from linverify.operator import Array, Canonical, Input, Inputs, Operator, Sizes, per_head


def slopes(heads: int) -> list[float]:
    """Decay rates of the heads as in ALiBi (Press et al. 2021, arXiv:2108.12409, section 3).

    A power of two H has 2^(-8/H), 2^(-16/H) ...; other numbers take every second one of the next power of two for the rest.
    """
    whole = 1 << (heads.bit_length() - 1)
    found = [2.0 ** (-8.0 * (h + 1) / whole) for h in range(whole)]
    return found + slopes(2 * whole)[0::2][: heads - whole] if whole < heads else found


def _angles(_: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """10000^(-2 i / D) over all D = H K channels, at initialisation."""
    D = math.prod(shape)
    return (10000.0 ** (-2.0 * torch.arange(D, dtype=torch.float64) / D)).reshape(shape)


def operator(layer: int = 0, layers: int = 24, eps: float = 1e-6) -> Operator:
    """State the operator of one layer of a model; eps is added to the mean square under the root.

    Raises:
        ValueError: there is no such layer.
    """
    if not 0 <= layer < layers or layers < 2:
        raise ValueError(f"expected a layer from 0 to {layers - 1} of at least 2, got {layer}")

    def canonical(x: Inputs, sizes: Sizes) -> Canonical:
        position = x["theta"].new_tensor(list(range(sizes["T"])))[:, None, None]
        angle = position * x["theta"]  # [T, H, K]
        cos, sin = angle.cos(), angle.sin()
        rates = [-s * (1 - layer / (layers - 1) + 1e-5) for s in slopes(sizes["H"])]
        return Canonical(
            q=cat([x["q"] * cos, x["q"] * sin]),
            k=cat([x["k"] * cos, x["k"] * sin]),
            v=x["v"],
            log_decay=per_head(rates, x["q"]),
        )

    def readout(o: Array, _: Inputs, __: Sizes) -> Array:
        B, T, H, V = o.shape
        return rms_norm(o.reshape(B, T, H * V), eps).reshape(B, T, H, V)

    return Operator(
        name="transnormer_llm",
        aliases=("transnormerllm", "tnl"),
        summary="Linear attention with rotated queries and keys and a decay of each head, normalised over all heads at once.",
        equations="S_t = lambda_h S_{t-1} + r(k_t) v_t^T,  r(x_t) = [x_t cos(t theta_h), x_t sin(t theta_h)]\n"
        "o'_t = scale * S_t^T r(q_t) = scale * sum_{s <= t} lambda_h^(t-s) (sum_d q_td k_sd cos((t - s) theta_hd)) v_s\n"
        "o_t = o'_t / sqrt(mean(o'_t^2 over heads and channels) + eps)\n"
        "lambda_h = exp(-slope_h (1 - layer / (layers - 1) + 1e-5)),  slope_h as in ALiBi",
        source="Qin et al. 2023, arXiv:2307.14995, section 3.1 (LRPE-d, SimpleRMSNorm); slopes, layer factor, eps and the norm "
        "over all heads as in its published models; without activations, gate and projections",
        inputs=(
            QUERY,
            KEY,
            VALUE,
            Input("theta", ("H", "K"), "parameter", "angle a token", aliases=("angles", "freqs"), draw=_angles),
        ),
        canonical=canonical,
        readout=readout,
        mechanism=Mechanism(norm="rms", norm_eps=eps, signed=True),
        default_scale=1.0,
        state_axes=(),
        # the norm couples the heads (no M7); only differences of positions count, so packing changes nothing (M19)
        identities=frozenset({"M4", "M6", "M19", "G13"}),
        coupled_heads=True,
        rebuild=operator,
        hazards=(
            "Angles of late tokens in 16 bits: t theta has an error of many turns; the table has to be float32.",
            "Decode continues the positions of prefill: an offset that is reset rotates queries away from their keys.",
            "The norm runs over all heads: per head, or over the heads of one device, it is another operator.",
            "The square mean of an output near zero is below eps, and gradients grow to 1 / sqrt(eps).",
            "lambda^(C - j) written as lambda^C times lambda^-j overflows for long blocks.",
        ),
    )


OPERATOR = operator()
