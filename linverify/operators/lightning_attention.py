"""Lightning attention: linear attention whose state decays by a constant of each head and layer."""

from linverify.arguments import KEY, PINS, QUERY, VALUE
from linverify.identities import COMMON, WRITES_ONLY_KEYS
from linverify.operator import Canonical, Inputs, Operator, Sizes, per_head


def operator(layer: int = 0, layers: int = 12) -> Operator:
    """State the operator of one layer of a model; the last layers decay least.

    Raises:
        ValueError: there is no such layer.
    """
    if not 0 <= layer < layers:
        raise ValueError(f"expected a layer from 0 to {layers - 1}, got {layer}")

    def canonical(x: Inputs, sizes: Sizes) -> Canonical:
        # one rational number a head, rounded once: both arithmetics get the same float64
        rates = [-8 * h * (layers - layer) / (sizes["H"] * layers) for h in range(sizes["H"])]
        return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=per_head(rates, x["q"]))

    return Operator(
        name="lightning_attention",
        aliases=("lightning_attn", "lightning"),
        summary="A sum of key-value products that decays by a constant of the head and the layer; head 0 does not decay.",
        equations="S_t = lambda_h S_{t-1} + k_t v_t^T,  lambda_h = exp(-(8 h / H) (1 - layer / layers))\n"
        "o_t = scale * S_t^T q_t",
        source="Qin et al. 2024, arXiv:2401.04658, algorithm 1; decay: Qin et al. 2023, arXiv:2307.14995, section 3.1, "
        "as flash-linear-attention's lightning_attn has it, its scale included",
        inputs=(QUERY, KEY, VALUE),
        canonical=canonical,
        # the decay is no input: heads cannot be permuted with it (M7) and no token leaves the state alone (M10)
        identities=(COMMON | WRITES_ONLY_KEYS | {"G5", "G10"}) - {"M7", "M10", "X1"},
        rebuild=operator,
        hazards=(
            "Decays factored as Lambda and its inverse overflow once a block of C tokens has C 8 h / H above 88.",
            "Strong heads: lambda_h of the last head is near exp(-8), so its state is one token, and lost digits do not show.",
            "Head 0 has no decay at all: its state grows with the length.",
            "A head index within a program's block, or a count of local heads under tensor parallelism, decays too fast.",
            "Slopes as in ALiBi, 2^(-8 (h + 1) / H), are another operator under the same name.",
        ),
        pins={**PINS, "layer_idx": layer, "num_layers": layers},
    )


OPERATOR = operator()
