"""D3, the spectrum: the largest singular value of the map from values to outputs, and of a row's map from scores to weights.

The map of the values is linear wherever no norm follows, so the kernel's forward pass applies it and its backward pass applies
the transpose: power iteration needs nothing else, and <w, J v> = <J^T w, v> tests one against the other. The derivatives of a
row by its scores are read off key gradients and come as a whole matrix, whose norm has a closed form:

    softmax: at most 1/2;   division by Z: sqrt(n) |p| / Z for non-negative p;   root mean square norm: 1 / sigma.
"""

import math

import torch
from torch import Tensor

from linverify.mechanism import BOUNDED, UNBOUNDED
from linverify.problem import Fault, Refused
from linverify.rows import Row
from linverify.stability.inputs import Tensors, one_hot, same_rows, telling
from linverify.stability.probe import STEPS, Probe
from linverify.stability.records import Finding, unchecked

TOKENS = 64
ROW = 8
ITERATIONS = 50
_SETTLED = 2.0**-20


def spectrum(probe: Probe) -> Finding:
    """Iterate on the value map where it is linear, and take the norm of one row's derivatives by scores."""
    try:
        return _measured(probe)
    except (Refused, Fault, TypeError) as error:
        return unchecked("D3", "spectrum", probe.dtype, str(error))


def _measured(probe: Probe) -> Finding:
    figures: dict[str, float] = {}
    wrong: list[str] = []
    told: list[str] = []
    linear = "M1" in probe.operator.identities and probe.by_token
    number = bound = None
    shown_by = ""
    if linear:
        number, bound = _values(probe, figures, wrong)
        shown_by = f"ordinary inputs, T={TOKENS}, K=V=16, one head"
        told.append(f"|o| is at most {number:.4g} |v| (gap to the next {figures['gap']:.2g})")
    if probe.facts is not None:
        measured, closed = _row(probe)
        figures |= {"norm of a row by its scores": measured, "its bound": closed}
        told.append(f"a row by its scores has norm {measured:.4g}, its bound is {closed:.4g}")
        if measured > closed * probe.allowance(ROW) * (1 + STEPS * probe.unit * math.sqrt(ROW)):
            excess = f"{measured / closed - 1:.3g} above their bound"
            wrong.append(f"a row's derivatives by its scores have norm {measured:.4g}, {excess}")
    if not told:
        return unchecked(
            "D3", "spectrum", probe.dtype, "o is not linear in the values, and there are no rows of weights"
        )
    verdict = UNBOUNDED if number is not None and not math.isfinite(number) else BOUNDED if linear else "measured"
    return Finding(
        "D3",
        "spectrum",
        probe.dtype,
        verdict,
        not wrong,
        number if number is not None else figures["norm of a row by its scores"],
        bound if bound is not None else figures.get("its bound"),
        shown_by,
        "; ".join(wrong or told),
        figures,
    )


def _values(probe: Probe, figures: dict[str, float], wrong: list[str]) -> tuple[float, float]:
    """Largest singular value of the value map by power iteration, and that of the reference's matrix."""
    tensors = probe.inputs(1, TOKENS)
    w = torch.randn(tensors[probe.value].shape, generator=probe.generator("spectrum"), dtype=torch.float64)
    w = probe.given({**tensors, probe.value: w})[probe.value].double()
    u = torch.randn(probe.ask(tensors).o.shape, generator=probe.generator("upstream"), dtype=torch.float64)
    u = u.to(probe.given(tensors)[probe.value].dtype).double()
    there, back = _forward(probe, tensors, w), _backward(probe, tensors, u)
    gap = abs(float((u * there).sum() - (back * w).sum()))
    sizes = float(u.norm() * there.norm() + back.norm() * w.norm())
    figures["adjoint"] = gap / sizes
    # the two sides are sums of rounded results: each is off by its format's unit, and by the sums inside
    if gap > (probe.allowance(TOKENS) - 1) * sizes:
        wrong.append(f"forward and backward pass are no transposes of each other: off by {gap / sizes:.3g}")
    sigma, before = 0.0, -1.0
    for _ in range(ITERATIONS):
        w = w / w.norm()
        there = _forward(probe, tensors, w)
        sigma = float(there.norm())
        if abs(sigma - before) <= _SETTLED * sigma:
            break
        before, w = sigma, _backward(probe, tensors, there / max(sigma, probe.smallest))
    exact = torch.linalg.svdvals(_matrix(probe, tensors))
    figures |= {"sigma": sigma, "sigma of the reference": float(exact[0]), "gap": float(1 - exact[1] / exact[0])}
    if sigma > float(exact[0]) * probe.allowance(TOKENS):
        excess = f"{sigma / float(exact[0]) - 1:.3g} more than its own matrix"
        wrong.append(f"the value map stretches by {sigma:.6g}, {excess}")
    return sigma, float(exact[0])


def _forward(probe: Probe, tensors: Tensors, w: Tensor) -> Tensor:
    return probe.ask({**tensors, probe.value: w}).o


def _backward(probe: Probe, tensors: Tensors, u: Tensor) -> Tensor:
    return probe.ask(tensors, u).grads[probe.value]


def _matrix(probe: Probe, tensors: Tensors) -> Tensor:
    """The value map [T, T] of one channel, by the reference: one-hot values tell every column."""
    wide = {**tensors, probe.value: one_hot(1, TOKENS, TOKENS)}
    return probe.reference(wide)["o"][0, :, 0].double()


def _row(probe: Probe) -> tuple[float, float]:
    """Norm of the last row's derivatives by its scores, and its closed form."""
    base = telling(probe, 1, ROW, "row")
    channels = base[probe.value].shape[-1]
    upstream = torch.eye(channels, dtype=torch.float64)[:, None]
    row, found, _ = probe.score_gradients(same_rows(base, probe, channels), upstream)
    jacobian = found[:, 0].double()  # [outputs, scores]
    unit = float(row.values[0, 0].norm(dim=-1).amax())  # of the values, where a step size multiplies them
    return float(torch.linalg.matrix_norm(jacobian, 2)), _closed(probe, row) * unit


def _closed(probe: Probe, row: Row) -> float:
    facts = probe.facts
    assert facts is not None
    if facts.weight == "exponential":
        return 0.5
    if facts.norm != "none":
        return float(row.steepness[0, 0])
    p, n = row.weights[0, 0], row.scores.shape[-1]
    divisor, turn = float(row.divisor[0, 0].abs()), float(row.turn[0, 0])
    # of (I - turn p 1^T) / D: with sum p = 1 it is sqrt(n) |p| / D, with an eps a little less
    return float(torch.linalg.matrix_norm(torch.eye(n, dtype=torch.float64) - turn * p[:, None], 2)) / divisor
