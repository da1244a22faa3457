"""Mixed chunk attention (FLASH): squared ReLU attention inside a chunk, linear attention between chunks, a gate on both."""

import numpy as np

from linverify.formulas import cat, later, mask_like
from linverify.operator import Array, Input, Inputs, Operator, Sizes
from linverify.operators.gau import squared_relu


def _spans(T: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, T)) for start in range(0, T, chunk)]


def operator(chunk: int = 16, causal: bool = False) -> Operator:
    """State the operator with its chunk length C, which is part of what it computes, and its direction.

    Raises:
        ValueError: the chunk length is not positive.
    """
    if chunk < 1:
        raise ValueError(f"expected a chunk of at least 1, got {chunk}")

    def quadratic(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """One matrix over all pairs of tokens: inside a chunk the one kind of weight, over the linear reach the other."""
        T = sizes["T"]
        number = np.arange(T) // chunk
        near = number[:, None] == number[None, :]
        far = number[:, None] > number[None, :] if causal else np.ones((T, T), dtype=bool)
        inside = squared_relu((x["quad_q"] @ x["quad_k"].transpose(-1, -2)) * (1 / chunk))
        inside = inside.masked_fill(mask_like(~near, inside), 0)
        if causal:
            inside = inside.masked_fill(later(T, T, inside), 0)
        across = (x["lin_q"] @ x["lin_k"].transpose(-1, -2)) * (1 / (chunk if causal else T))
        across = across.masked_fill(mask_like(~far, across), 0)
        return scale * (x["u"] * ((inside + across) @ x["v"]))

    def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Chunk by chunk; keys meet values first in the linear part: all of them, or those of the chunks before."""
        T, outs = sizes["T"], []
        written = [x["lin_k"][:, s].transpose(-1, -2) @ x["v"][:, s] for s in _spans(T, chunk)]
        state: Array = None
        for part in written if not causal else []:
            state = part if state is None else state + part
        for s, own in zip(_spans(T, chunk), written, strict=True):
            inside = squared_relu((x["quad_q"][:, s] @ x["quad_k"][:, s].transpose(-1, -2)) * (1 / chunk))
            if causal:
                inside = inside.masked_fill(later(inside.shape[-2], inside.shape[-1], inside), 0)
            o = inside @ x["v"][:, s]
            if state is not None:
                o = o + (x["lin_q"][:, s] @ state) * (1 / (chunk if causal else T))
            outs.append(o)
            if causal:
                state = own if state is None else state + own
        return scale * (x["u"] * cat(outs, 1))

    return Operator(
        name="flash",
        aliases=("mixed_chunk_attention", "flash_mixed_chunk"),
        summary="Squared ReLU attention inside chunks of C tokens plus linear attention over all (causal: earlier) chunks, "
        "gated by u.",
        equations="quad_i = sum_j relu(quad_q_i . quad_k_j / C)^2 v_j,  j in the chunk of i (causal: j <= i)\n"
        "lin_i = (1 / T) lin_q_i^T sum_j lin_k_j v_j^T  over all j\n"
        "causal: (1 / C) lin_q_i^T sum_j lin_k_j v_j^T  over the chunks before that of i\n"
        "o_i = scale * u_i * (quad_i + lin_i)",
        source="Hua et al. 2022, arXiv:2202.10447, section 3 (mixed chunk attention), without the relative position bias; "
        "normalisers 1 / T and 1 / C as in lucidrains/FLASH-pytorch, flash_pytorch.py",
        inputs=(
            Input("quad_q", ("B", "T", "K"), "query", aliases=("q_quad", "Q_quad")),
            Input("quad_k", ("B", "T", "K"), "key", aliases=("k_quad", "K_quad")),
            Input("lin_q", ("B", "T", "K"), "query", aliases=("q_lin", "Q_lin")),
            Input("lin_k", ("B", "T", "K"), "key", aliases=("k_lin", "K_lin")),
            Input("v", ("B", "T", "V"), "value", aliases=("value", "values", "V")),
            Input("u", ("B", "T", "V"), "parameter", aliases=("gate", "gates", "U")),
        ),
        forms={"naive": quadratic, "chunkwise": chunkwise},
        identities=frozenset({"M1", "M7", "M19", "G13"}) | ({"M4"} if causal else set()),
        o_axes=("B", "T", "V"),
        default_scale=1.0,
        state_axes=(),
        rebuild=operator,
        pins={"chunk": chunk, "chunk_size": chunk, "group_size": chunk, "causal": causal},
        hazards=(
            "The sum over chunks must leave the own chunk out when causal: with it, the future of the chunk leaks in.",
            "The last chunk may be shorter: its scores are still divided by C, and its padding must not enter the sum.",
            "The chunk length is part of what is computed: a kernel cannot choose it by what runs fast.",
            "Sums over many chunks in 16 bits lose the new ones.",
        ),
    )


OPERATOR = operator()
