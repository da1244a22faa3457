"""Normalised linear attention: mapped queries and keys, divided by the sum of the weights."""

from collections.abc import Callable
from typing import Any

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import cat, elu1, ones_like
from linverify.identities import NORMALISED
from linverify.mechanism import Mechanism, by_factor, by_logarithm, of_elu1
from linverify.operator import Array, Canonical, Inputs, Operator, Sizes

MAPS: dict[str, Callable[[Array], Array]] = {
    "elu1": elu1,
    "relu": lambda x: x.relu(),
    "identity": lambda x: x,
    "exp": lambda x: x.exp(),
}
"""Feature maps by name; elu1 is 1 + elu."""

FACTS: dict[str, dict[str, Any]] = {
    "elu1": {"shrink": of_elu1, "lipschitz": 1.0, "added": 1.0},
    "relu": {"shrink": by_factor},
    "identity": {"shrink": by_factor, "signed": True},
    "exp": {"shrink": by_logarithm, "lipschitz": 1.0},
}
"""What each map says of gradients (``linverify.mechanism``): how features shrink, their signs, |phi'| / phi, what it adds."""


def operator(phi: str = "elu1", eps: float = 1e-6) -> Operator:
    """State the operator with a feature map and the eps that is added to the normaliser.

    Raises:
        ValueError: there is no such feature map.
    """
    if phi not in MAPS:
        raise ValueError(f"expected phi among {', '.join(MAPS)}, got {phi!r}")
    feature = MAPS[phi]

    def canonical(x: Inputs, _: Sizes) -> Canonical:
        return Canonical(q=feature(x["q"]), k=feature(x["k"]), v=cat([x["v"], ones_like(x["v"][..., :1])]))

    def readout(o: Array, _: Inputs, __: Sizes) -> Array:
        return o[..., :-1] / (o[..., -1:] + eps)

    return Operator(
        name="normalized_linear_attention",
        aliases=("normalised_linear_attention", "linear_transformer"),
        summary="Linear attention over mapped queries and keys, divided by the sum of its weights.",
        equations="S_t = S_{t-1} + phi(k_t) v_t^T;  z_t = z_{t-1} + phi(k_t)\n"
        "o_t = scale * S_t^T phi(q_t) / (scale * z_t . phi(q_t) + eps),  phi = 1 + elu unless told otherwise",
        source="Katharopoulos et al. 2020, arXiv:2006.16236, eq. 4 to 10",
        inputs=(QUERY, KEY, VALUE),
        canonical=canonical,
        readout=readout,
        mechanism=Mechanism(divisor="sum", eps=eps, **FACTS[phi]),
        identities=NORMALISED,
        state_axes=(),
        rebuild=operator,
        hazards=(
            "A normaliser near zero makes gradients of the mapped query as large as 1 / eps.",
            "eps below the smallest number of a format is zero there: 1e-10 in fp16.",
            "A normaliser kept as a running sum in 16 bits stops growing after a few hundred tokens.",
        ),
    )


OPERATOR = operator()
