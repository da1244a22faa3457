"""cosFormer: rectified queries and keys, reweighted by the cosine of their distance."""

import numpy as np

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, ones_like
from linverify.identities import NORMALISED
from linverify.mechanism import Mechanism
from linverify.operator import Array, Canonical, Inputs, Operator, Sizes


def operator(length: int = 0, eps: float = 1e-6) -> Operator:
    """State the operator with M, the cosine's quarter period: at least the number of tokens, or 0 for that number itself.

    Raises:
        ValueError: M is negative.
    """
    if length < 0:
        raise ValueError(f"expected length of at least 1, or 0 for the number of tokens, got {length}")

    def canonical(x: Inputs, sizes: Sizes) -> Canonical:
        T = sizes["T"]
        angle = x["q"].new_tensor(np.arange(1, T + 1) * (np.pi / (2 * (length or T))))[:, None, None]
        q, k = x["q"].relu(), x["k"].relu()
        return Canonical(
            q=cat([q * angle.sin(), q * angle.cos()]),
            k=cat([k * angle.sin(), k * angle.cos()]),
            v=cat([x["v"], ones_like(x["v"][..., :1])]),
        )

    def readout(o: Array, _: Inputs, __: Sizes) -> Array:
        return o[..., :-1] / o[..., -1:].clamp(min=eps)

    return Operator(
        name="cosformer",
        aliases=("cos_former", "cosformer_attention"),
        summary="Normalised linear attention over rectified queries and keys; weights fall with distance as a cosine does.",
        equations="w_ts = (relu(q_t) . relu(k_s)) cos(pi (t - s) / (2 M)),  M = T unless told otherwise\n"
        "o_t = sum_{s <= t} w_ts v_s / max(sum_{s <= t} w_ts, eps)\n"
        "as features: [relu(x) sin(pi t / (2 M)), relu(x) cos(pi t / (2 M))], t = 1 .. T",
        source="Qin et al. 2022, arXiv:2202.08791, eq. 10 to 12; eps as a lower bound: cosformer.py of "
        "github.com/OpenNLPLab/cosFormer",
        inputs=(QUERY, KEY, VALUE),
        canonical=canonical,
        readout=readout,
        mechanism=Mechanism(divisor="clamp", eps=eps),
        # M follows T, and a packed sequence has its own; with M given, packing changes nothing (M19). A row without weight
        # is zero whatever the values (no M16).
        identities=NORMALISED - {"M16"} if length else NORMALISED - {"M16", "M19"},
        default_scale=1.0,
        state_axes=(),
        rebuild=operator,
        hazards=(
            "M taken from the tokens at hand: prefixes of a sequence, prefill and decode, disagree.",
            "A query or key without a positive channel has weight zero: the lower bound decides, and its gradient jumps there.",
            "eps added instead of taken as a lower bound shifts every small normaliser.",
            "Tables of sine and cosine in 16 bits: weights of distant tokens, a difference of products, turn negative.",
            "Positions from 0 in one form and from 1 in the other cancel; within one form they do not.",
        ),
    )


OPERATOR = operator()
