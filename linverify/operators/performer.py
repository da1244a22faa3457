"""Performer: linear attention over positive random features of the softmax kernel (FAVOR+)."""

import torch

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, ones_like
from linverify.identities import NORMALISED
from linverify.operator import Array, Canonical, Input, Inputs, Operator, Sizes


def _features(sizes: Sizes) -> int:
    """Rows of the projection: one block of orthogonal rows and a part of a second."""
    return sizes["K"] + sizes["K"] // 2 + 1


def _orthogonal(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Blocks of K orthogonal rows, with the lengths of normal vectors (section 3.4 of the paper)."""
    F, K = shape
    blocks = [torch.randn(K, K, generator=generator, dtype=torch.float64) for _ in range(-(-F // K))]
    directions = torch.cat([torch.linalg.qr(b)[0].mT for b in blocks])[:F]
    return directions * torch.randn(F, K, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)


def operator(eps: float = 1e-6) -> Operator:
    """State the operator with the eps that is added to every feature.

    Raises:
        ValueError: eps is not positive.
    """
    if not eps > 0:
        raise ValueError(f"expected eps above 0, since all features of a long key are zero in any format, got {eps}")

    def feature(x: Array, w: Array, sizes: Sizes, *, query: bool) -> Array:
        x = x * sizes["K"] ** -0.25
        reach = x @ w.transpose(0, 1)
        # the query's own maximum cancels against the normaliser, but for eps; one over keys of other tokens would not
        top = reach.detach().amax(-1, keepdim=True) if query else 0
        return ((reach - (x * x).sum(-1, keepdim=True) / 2 - top).exp() + eps) * _features(sizes) ** -0.5

    def canonical(x: Inputs, sizes: Sizes) -> Canonical:
        w = x["projection"]
        return Canonical(
            q=feature(x["q"], w, sizes, query=True),
            k=feature(x["k"], w, sizes, query=False),
            v=cat([x["v"], ones_like(x["v"][..., :1])]),
        )

    def readout(o: Array, _: Inputs, __: Sizes) -> Array:
        return o[..., :-1] / o[..., -1:]

    return Operator(
        name="performer",
        aliases=("favor", "favor_plus", "favor+"),
        summary="Normalised linear attention over positive random features, whose products estimate exp(q . k / sqrt(K)).",
        equations="phi(x)_r = F^(-1/2) (exp(w_r . x' - |x'|^2 / 2 - m) + eps),  x' = K^(-1/4) x\n"
        "m = max_r (w_r . x') of its own token for queries, 0 for keys\n"
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
        own_axes={"F": _features},
        identities=NORMALISED,
        default_scale=1.0,
        state_axes=(),
        rebuild=operator,
        hazards=(
            "A stabiliser of the keys that is a maximum over tokens, future ones too, leaks through eps: it is not causal.",
            "Without eps all features of a long key are zero, and the normaliser divides zero by zero.",
            "The factor K^(-1/4) belongs on queries and keys, in the exponent's square too: once, not twice.",
            "eps below the smallest number of a format is zero there, and then protects nothing.",
        ),
    )


OPERATOR = operator()
