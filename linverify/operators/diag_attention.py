"""DiagAttention of TransNormer: softmax attention within blocks of tokens that do not overlap."""

import numpy as np

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, heads_first, later, mask_like, softmax
from linverify.identities import SOFTMAX
from linverify.mechanism import Mechanism
from linverify.operator import Array, Inputs, Operator, Sizes


def operator(block: int = 64, causal: bool = True) -> Operator:
    """State the operator with the number of tokens in a block.

    Raises:
        ValueError: a block has no token.
    """
    if block < 1:
        raise ValueError(f"expected a block of at least 1 token, got {block}")

    def hidden(T: int) -> np.ndarray:
        token = np.arange(T)
        found: np.ndarray = token[:, None] // block != token[None, :] // block
        return found | (token[None, :] > token[:, None]) if causal else found

    def scores(x: Inputs, _: Sizes, scale: Array) -> Array:
        return heads_first(x["q"] * scale) @ heads_first(x["k"]).transpose(-1, -2)

    def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """The definition: all scores, those of other blocks masked."""
        q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
        found = (q * scale) @ k.transpose(-1, -2)
        return heads_first(softmax(found, mask=mask_like(hidden(sizes["T"]), found)) @ v)

    def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Block by block."""
        q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
        outs = []
        for start in range(0, sizes["T"], block):
            a, b, c = (y[:, :, start : start + block] for y in (q, k, v))
            found = (a * scale) @ b.transpose(-1, -2)
            outs.append(softmax(found, mask=later(a.shape[2], a.shape[2], found) if causal else None) @ c)
        return heads_first(cat(outs, 2))

    return Operator(
        name="diag_attention",
        aliases=("diagattention", "block_diagonal_attention"),
        summary="Softmax attention within blocks of tokens; nothing is seen across a block's border.",
        equations="o_i = sum_j softmax_j(scale * q_i . k_j) v_j over the j <= i of i's own block, i // block = j // block\n"
        "causal=false: over all j of the block",
        source="Qin et al. 2022, arXiv:2210.10340, section 4.2 (blocks of 64 in its experiments)",
        inputs=(QUERY, KEY, VALUE),
        forms={"naive": naive, "chunkwise": chunkwise},
        mechanism=Mechanism(weight="exponential", scores=scores, hidden=hidden, signed=True),
        identities=SOFTMAX | {"M4"} if causal else SOFTMAX,
        state_axes=(),
        rebuild=operator,
        pins={"causal": causal, "block_size": block, "block": block},
        hazards=(
            "A sliding window is not a block: the first token of a block sees itself alone.",
            "A ragged last block: its padding has to be masked before the softmax, not after it.",
            "Blocks counted from the start of a packed batch cut sequences where each alone is not cut.",
            "In decode the cache is cut at the block's border, not at the window's length.",
        ),
    )


OPERATOR = operator()
