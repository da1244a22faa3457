"""Performer: linear attention over positive random features of the softmax kernel (FAVOR+)."""

import torch

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, ones_like
from linverify.identities import NORMALISED
from linverify.mechanism import Mechanism
from linverify.operator import Array, Canonical, Input, Inputs, Operator, Sizes


def _features(sizes: Sizes) -> int:
    """Rows of the projection: one block of orthogonal rows and a part of a second."""
    return sizes["K"] + sizes["K"] // 2 + 1


def _orthogonal(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Blocks of K orthogonal rows, with the lengths of normal vectors (section 3.4 of the paper)."""
    F, K = shape
    blocks = []
    for _ in range(-(-F // K)):
        q, r = torch.linalg.qr(torch.randn(K, K, generator=generator, dtype=torch.float64))
        blocks.append((q * r.diagonal().sign()).mT)  # without these signs the first rows have a preferred direction
    directions = torch.cat(blocks)[:F]
    lengths = torch.randn(F, K, generator=generator, dtype=torch.float64).square().sum(1, keepdim=True).sqrt()
    return directions * lengths


def _lengthened(q: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """A query so much longer that its features, exp(-|q|^2 / (2 sqrt(K))) at their heart, are about so much smaller."""
    length = q.norm(dim=-1, keepdim=True)
    found: torch.Tensor = q * (length.square() - 2 * q.shape[-1] ** 0.5 * factor.log()).sqrt() / length
    return found


def operator(eps: float = 0.0) -> Operator:
    """State the operator with an eps that is added to every exponential.

    Raises:
        ValueError: eps is negative.
    """
    if eps < 0:
        raise ValueError(f"expected eps of at least 0, got {eps}")

    def feature(x: Array, w: Array, sizes: Sizes) -> Array:
        x = x * sizes["K"] ** -0.25
        found = (x @ w.transpose(0, 1) - (x * x).sum(-1, keepdim=True) / 2).exp()
        return (found + eps if eps else found) * _features(sizes) ** -0.5

    def canonical(x: Inputs, sizes: Sizes) -> Canonical:
        return Canonical(
            q=feature(x["q"], x["projection"], sizes),
            k=feature(x["k"], x["projection"], sizes),
            v=cat([x["v"], ones_like(x["v"][..., :1])]),
        )

    def readout(o: Array, _: Inputs, __: Sizes) -> Array:
        return o[..., :-1] / o[..., -1:]

    return Operator(
        name="performer",
        aliases=("favor", "favor_plus", "favor+"),
        summary="Normalised linear attention over positive random features, whose products estimate exp(q . k / sqrt(K)).",
        equations="phi(x)_r = F^(-1/2) (exp(w_r . x' - |x'|^2 / 2) + eps),  x' = K^(-1/4) x,  eps = 0 unless told otherwise\n"
        "o_t = sum_{s <= t} (phi(q_t) . phi(k_s)) v_s / sum_{s <= t} phi(q_t) . phi(k_s)",
        source="Choromanski et al. 2020, arXiv:2009.14794, lemma 1, section 3 and appendix B (stabilisers, eps)",
        inputs=(
            QUERY,
            KEY,
            VALUE,
            Input(
                "projection",
                ("F", "K"),
                "parameter",
                "rows w_r, orthogonal in blocks of K",
                aliases=("projection_matrix", "omega", "W"),
                draw=_orthogonal,
            ),
        ),
        canonical=canonical,
        readout=readout,
        mechanism=Mechanism(divisor="sum", shrink=_lengthened),
        own_axes={"F": _features},
        identities=NORMALISED,
        # of a long key every feature is zero in any format: without eps the normaliser is zero, too
        outside=() if eps else ("outlier", "range"),
        default_scale=1.0,
        state_axes=(),
        rebuild=operator,
        hazards=(
            "A stabiliser taken off the keys' exponents cancels if eps = 0; with eps, a maximum over all tokens is not causal.",
            "All features of a long key are zero in any format: without eps, the normaliser divides zero by zero.",
            "Orthogonal rows straight from a QR factorisation have a preferred direction (its signs): the estimate is biased.",
            "The factor K^(-1/4) belongs on queries and keys, in the exponent's square too: once, not twice.",
            "eps below the smallest number of a format is zero there, and then protects nothing.",
        ),
    )


OPERATOR = operator()
