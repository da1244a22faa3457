"""D1, the gain: how much longer a gradient is than the upstream gradient that caused it, token by token, and its elasticity.

    gain_x(t) = |dL/dx_t| / |dL/do_i|,   elasticity = |x_t| gain_x(t) / |o_i|,   i the row that the gradient comes back to

Elasticity is free of units: a query that fades has a gain of about 1 / Z and a constant elasticity, while scores that cancel
raise both. A query's gradient is bounded by the sum of its scores' bounds times what the query moves of each, a value's by its
weight; the mechanism says both.
"""

import math

import torch
from torch import Tensor

from linverify.mechanism import BOUNDED, BY_EPS, UNBOUNDED
from linverify.problem import Fault, Refused
from linverify.rows import Row, query_levers
from linverify.stability.inputs import Tensors, faded, ladder, same_rows, telling
from linverify.stability.probe import Asked, Probe
from linverify.stability.records import Finding, unchecked

ROWS, TOKENS = 16, 8
# A gain that grows less than this over the whole fading is bounded; one that grows less over its end has been stopped.
_GROWS = 8.0
_STILL = 1.25
_END = 6


def gain(probe: Probe) -> Finding:
    """Measure gains at ordinary inputs, and the query's own as it fades."""
    try:
        return _measured(probe)
    except (Refused, Fault, TypeError, ValueError) as error:
        return unchecked("D1", "gain", probe.dtype, str(error))


def _measured(probe: Probe) -> Finding:
    tensors = probe.inputs(ROWS, TOKENS)
    asked, upstream = _asked(probe, tensors)
    length = upstream[:, -1].flatten(1).norm(dim=1)
    o = asked.o[:, -1].flatten(1).norm(dim=1)
    figures: dict[str, float] = {}
    for i in probe.operator.inputs:
        if i.axes[:2] != ("B", "T") or i.name not in asked.grads:
            continue
        gains = asked.grads[i.name].flatten(2).norm(dim=2) / length[:, None]
        size = probe.given(tensors)[i.name].double().flatten(2).norm(dim=2)
        figures[f"gain of {i.name}"] = float(gains.amax())
        figures[f"median gain of {i.name}"] = float(gains[:, -1].median())
        figures[f"elasticity of {i.name}"] = float((gains * size / o[:, None]).amax())
    ratios, beyond = _against_the_equations(probe)
    figures |= {f"over the exact one, {n}": r for n, r in ratios.items()}
    name = max(ratios, key=lambda n: ratios[n], default="")
    allowed = probe.allowance(TOKENS) - 1
    holds = all(excess <= allowed for excess in beyond.values())
    verdict, sentence, shown_by = _fading(probe, tensors)
    if not holds:
        name = max(beyond, key=lambda n: beyond[n])
        sentence = (
            f"the gradient of {name} is {ratios[name]:.4g} times as long as the equations say: by {beyond[name]:.3g} of the "
            "lengths of its terms"
        )
        shown_by = f"positive queries and keys, T={TOKENS}"
    number = ratios.get(name)
    bound = 1.0 if ratios else None
    return Finding("D1", "gain", probe.dtype, verdict, holds, number, bound, shown_by, sentence, figures)


def _asked(probe: Probe, tensors: Tensors) -> tuple[Asked, Tensor]:
    """Have a random gradient come back to the last row of o."""
    shape = tuple(probe.ask(tensors).o.shape)
    upstream = torch.zeros(shape, dtype=torch.float64)
    drawn = torch.randn(shape[2:], generator=probe.generator("gain"), dtype=torch.float64)
    upstream[:, -1] = drawn.to(probe.given(tensors)[probe.value].dtype).double()
    return probe.ask(tensors, upstream), upstream


def _against_the_equations(probe: Probe) -> tuple[dict[str, float], dict[str, float]]:
    """Lengths of the last query's and the values' gradients over the exact ones, and by how much they are longer.

    The latter in units of the bound, the lengths of all terms that a gradient is the sum of: rounding may add a share of that.
    {} where the operator has no rows of weights.
    """
    if probe.facts is None:
        return {}, {}
    tensors = telling(probe, ROWS, TOKENS, "gain")
    tensors[probe.value] = probe.inputs(ROWS, TOKENS)[probe.value]
    asked, upstream = _asked(probe, tensors)
    exact, given, row = probe.reference(tensors, upstream), probe.given(tensors), probe.row(tensors)
    back = upstream[:, -1]
    bounds = {probe.query: (row.bounds(back) * query_levers(probe.operator, given)).sum(-1)}
    if torch.equal(row.values.transpose(1, 2), given[probe.value].double()[:, row.seen]):
        bounds[probe.value] = row.weights.abs() * (row.steepness * back.norm(dim=-1))[..., None]
    ratios, beyond = {}, {}
    for name, bound in bounds.items():
        got, right = (_lengths(x, row, whole=name == probe.value) for x in (asked.grads[name], exact[f"d{name}"]))
        excess = (got - right) / bound.clamp(min=probe.smallest)
        beyond[name] = float(excess.nan_to_num(math.inf).amax())
        ratios[name] = float((got / right.clamp(min=probe.smallest)).nan_to_num(math.inf).amax())
    return ratios, beyond


def _lengths(gradient: Tensor, row: Row, *, whole: bool) -> Tensor:
    """|dx| of all tokens seen [B, H, N], or of the last one [B, H]."""
    seen = gradient[:, row.seen].transpose(1, 2) if whole else gradient[:, -1]
    found: Tensor = seen.norm(dim=-1)
    return found


def _fading(probe: Probe, tensors: Tensors) -> tuple[str, str, str]:
    """Verdict on the query's own gain as it fades, a sentence, and the input."""
    if not probe.query:
        return "measured", f"{probe.operator.name} has no query that could fade", ""
    factors = ladder(probe, probe.row(tensors)) if probe.facts else 2.0 ** -torch.arange(31, dtype=torch.float64)
    asked, upstream = _asked(probe, faded(probe, same_rows(tensors, probe, len(factors)), factors))
    length = upstream[:, -1].flatten(1).norm(dim=1)
    gains = asked.grads[probe.query][:, -1].flatten(1).norm(dim=1) / length
    size = probe.given(faded(probe, same_rows(tensors, probe, len(factors)), factors))[probe.query].double()
    elastic = gains * size[:, -1].flatten(1).norm(dim=1) / asked.o[:, -1].flatten(1).norm(dim=1)
    known = gains[gains.isfinite() & (gains > 0)]
    if len(known) < 2 * _END:
        return "measured", "the query's gradient vanishes as it fades", ""
    ordinary, largest, end = float(known[:_END].amax()), float(known.amax()), known[-_END:]
    if largest <= _GROWS * ordinary:
        verdict, told = BOUNDED, "stays bounded"
    elif float(end.amax()) <= _STILL * float(end.amin()) or float(known[-1]) < largest / _GROWS:
        verdict, told = BY_EPS, "grows until an eps ends it"
    else:
        verdict, told = UNBOUNDED, "grows without end"
    at = int(gains.nan_to_num().argmax())
    sentence = (
        f"the query's own gain {told} as it fades: {ordinary:.3g} before, at most {largest:.3g}; "
        f"its elasticity there is {float(elastic[at]):.3g}"
    )
    return verdict, sentence, f"query faded by 2^{float(factors[at].log2()):.0f}: gain {largest:.4g}"
