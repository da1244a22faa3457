"""D6, dilution: how far each row spreads its weights.

Locality l(r) is the share of a row's weight within the last r N tokens of N; dilution l(r) / r is 1 where weights are uniform.
Entropy over log i and effective support exp(H) / i are 1 there, too. Signed weights are taken by their size, and the sign
cancellation sum |p| / |sum p| says how much of them is lost (1: nothing; beyond 10 elasticities of gradients diverge).

Weights are read off the kernel by one-hot values. What its row weighs beyond what the equations do is a fault: a lost mask, a
decay that is not applied.

Source: Qin et al. 2022, arXiv:2210.10340, section 3 (attention dilution).
"""

import torch
from torch import Tensor

from linverify.problem import Fault, Refused
from linverify.stability.inputs import one_hot
from linverify.stability.probe import STEPS, Probe
from linverify.stability.records import Curve, Finding, unchecked

TOKENS = 64
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
AT = 0.4


def dilution(probe: Probe) -> Finding:
    """Read the weights of all rows and compare their locality with the reference's."""
    if not probe.by_token:
        return unchecked("D6", "dilution", probe.dtype, "values are not laid out token by token and channel by channel")
    try:
        return _measured(probe)
    except (Refused, Fault, TypeError) as error:
        return unchecked("D6", "dilution", probe.dtype, str(error))


def _measured(probe: Probe) -> Finding:
    tensors = {**probe.inputs(1, TOKENS, V=TOKENS), probe.value: one_hot(1, TOKENS, TOKENS)}
    own, exact = probe.ask(tensors).o[0, :, 0], probe.reference(tensors)["o"][0, :, 0]
    got, expected = statistics(own), statistics(exact)
    beyond = float((own - exact).abs().sum(-1).sub((own.abs() + exact.abs()).sum(-1) * _room(probe)).amax())
    token = int((own - exact).abs().sum(-1).argmax())
    lost = abs(got["locality"] - expected["locality"])
    holds = bool(own.isfinite().all()) and beyond <= 0
    near = got["locality"] / got["uniform"]
    sentence = (
        f"the last {AT:.0%} of tokens get {got['locality']:.2f} of a row's weight, {near:.2f} times what uniform weights give; "
        f"entropy {got['entropy']:.2f}, effective support {got['support']:.2f}, sign cancellation {got['cancellation']:.3g}"
    )
    if not holds:
        sentence = f"row {token} does not weigh the tokens as the equations do: locality is off by {lost:.3g}"
    curve = Curve(
        SHARES,
        tuple(float(locality(own, r)) for r in SHARES),
        "share of the tokens",
        "share of the weight",
        tuple(float(locality(exact.new_ones(exact.shape).tril(), r)) for r in SHARES),
        linear=True,
    )
    return Finding(
        "D6",
        "dilution",
        probe.dtype,
        "measured",
        holds,
        near,
        None,
        f"ordinary inputs, T={TOKENS}, one head",
        sentence,
        got,
        (curve,),
    )


def _room(probe: Probe) -> float:
    """Relative room for rounding in a row: that of the bound, and of weights that are what is left of a difference."""
    return (probe.allowance(TOKENS) - 1) * STEPS


def statistics(p: Tensor) -> dict[str, float]:
    """Means over the rows of a weight matrix [T, T]; without the first one where it is causal: it has nothing to spread."""
    size, causal = p.abs(), looks_back(p)
    share = size / size.sum(-1, keepdim=True).clamp(min=2.0**-1000)
    every = torch.ones_like(p)
    seen = (every.tril() if causal else every).sum(-1)
    entropy = -(share * share.clamp(min=2.0**-1000).log()).sum(-1)
    rows = slice(int(causal), None)
    ratio = size.sum(-1) / p.sum(-1).abs().clamp(min=2.0**-1000)
    return {
        "locality": float(locality(p, AT)),
        "uniform": float(locality(every.tril() if causal else every, AT)),
        "entropy": float((entropy[rows] / seen[rows].log()).mean()),
        "support": float((entropy.exp() / seen)[rows].mean()),
        "cancellation": float(ratio[rows].median()),
        "largest cancellation": float(ratio[rows].amax()),
    }


def looks_back(p: Tensor) -> bool:
    """Whether no row weighs a later token."""
    return bool((p.triu(1) == 0).all())


def locality(p: Tensor, share: float) -> Tensor:
    """Mean over the rows of the weight within the last share * T tokens (half of them on each side where rows see all)."""
    T = p.shape[0]
    apart = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    near = (apart >= 0) & (apart < share * T) if looks_back(p) else apart.abs() < share * T / 2
    size = p.abs()
    return ((size * near).sum(-1) / size.sum(-1).clamp(min=2.0**-1000)).mean()
