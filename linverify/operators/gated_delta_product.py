"""Gated DeltaProduct: a decay once a token, then several delta steps, and a read after the last of them."""

from dataclasses import replace

from linverify.arguments import KEY, NORMALISED_OUTSIDE, QUERY, SCALAR_GATE, STRENGTH, VALUE
from linverify.formulas import stack, zeros_like
from linverify.identities import COMMON
from linverify.operator import Array, Canonical, Inputs, Operator, Reduction, Sizes


def _at_one_step(x: Array, at: int, steps: int) -> Array:
    """[B, T, H, D] to [B, T * steps, H, D]: at that step of each token, zero at its others."""
    parts = [x if step == at else zeros_like(x) for step in range(steps)]
    return stack(parts, 2).reshape(x.shape[0], -1, *x.shape[2:])


def operator(num_householder: int = 2) -> Operator:
    """State the operator with a number of delta steps a token.

    Raises:
        ValueError: that number is below one.
    """
    n = num_householder
    if n < 1:
        raise ValueError(f"expected num_householder of at least 1, got {n}")

    def canonical(x: Inputs, _: Sizes) -> Canonical:
        k, v, beta = (x[m].reshape(x[m].shape[0], -1, *x[m].shape[3:]) for m in ("k", "v", "beta"))
        return Canonical(
            q=_at_one_step(x["q"], n - 1, n),
            k=k,
            v=v,
            log_decay=_at_one_step(x["g"][..., None], 0, n),
            beta=beta[..., None],
        )

    def readout(o: Array, _: Inputs, __: Sizes) -> Array:
        return o[:, n - 1 :: n]

    def one_step(x: Inputs) -> dict[str, Array]:
        """Restrict to tokens of one step: the others have strength zero."""
        beta = x["beta"].clone()
        beta[:, :, 1:] = 0
        return {**x, "beta": beta}

    return Operator(
        name="gated_delta_product",
        aliases=("gdp", "deltaproduct", "delta_product"),
        summary="A scalar decay once a token, then n delta steps on the decayed state; the query reads after the last.",
        equations="P_{t,0} = exp(g_t) S_{t-1}\n"
        "P_{t,j} = P_{t,j-1} + beta_{t,j} k_{t,j} (v_{t,j} - P_{t,j-1}^T k_{t,j})^T,  j = 1 ... n\n"
        "S_t = P_{t,n};  o_t = scale * S_t^T q_t,  n = 2 unless told otherwise",
        source="Siems et al. 2025, arXiv:2502.10297, section 3 (products of Householder steps); the arguments of "
        "fla.ops.gated_delta_product",
        inputs=(
            QUERY,
            replace(KEY, axes=("B", "T", "S", "H", "K")),
            replace(VALUE, axes=("B", "T", "S", "H", "V")),
            SCALAR_GATE,
            replace(STRENGTH, axes=("B", "T", "S", "H")),
        ),
        canonical=canonical,
        readout=readout,
        own_axes={"S": lambda _: n},
        # the steps of a token are one token to time
        identities=(COMMON - {"M13", "G7"}) | {"M11", "M12", "M14", "G6", "G11"},
        unit_keys=True,
        rebuild=operator,
        hazards=(
            "The gate acts once a token, before its first step; at every step the state decays n times too fast.",
            "k, v and beta have n steps a token on the axis of time; cut at a chunk that is no multiple of n they mix tokens.",
            "A read after the first step instead of the last is right where the other strengths are zero.",
            "A chunk of C tokens solves a triangle of n C steps; packed lengths count tokens, not steps.",
        ),
        reductions=(
            Reduction(
                "gated_delta_rule",
                "one step a token, the others of strength zero",
                one_step,
                lambda x: {
                    "q": x["q"],
                    **{m: x[m][:, :, 0].clone() for m in "kv"},
                    "g": x["g"],
                    "beta": x["beta"][:, :, 0].clone(),
                },
            ),
        ),
        pins={**NORMALISED_OUTSIDE, "num_householder": n},
    )


OPERATOR = operator()
