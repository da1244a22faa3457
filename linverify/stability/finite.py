"""D7, finite precision: what of the gradients stays finite in each format, and what inside a kernel would not.

Queries fade as for D4, in every format that is asked for. A result that is not finite although the exact one fits the format is
a fault. Figures that explain: how small Z gets against eps, whether the format holds eps at all, how large the gradient of a
mapped query is on the way (beyond 6e4 it overflows float16), and the cancellation number of gate gradients,

    kappa_t = sum_{s >= t} (|q dq| + |k dk|)_s / |dg_t|,

by which a cumulative form of the gate gradient multiplies rounding errors.
"""

import math

import torch

from linverify.dtype import FORMATS
from linverify.mechanism import BOUNDED, UNBOUNDED
from linverify.problem import Fault, Refused
from linverify.stability.inputs import faded, ladder, same_rows, telling, towards
from linverify.stability.probe import Probe
from linverify.stability.records import Finding, unchecked

TOKENS = 4
LONG = 256
HALF_RANGE = 60000.0


def finite(probe: Probe) -> Finding:
    """Fade queries in this format."""
    if not probe.query:
        return unchecked("D7", "finite", probe.dtype, f"{probe.operator.name} has no query that could fade")
    try:
        return _measured(probe)
    except (Refused, Fault, TypeError) as error:
        return unchecked("D7", "finite", probe.dtype, str(error))


def _measured(probe: Probe) -> Finding:
    fmt, facts = FORMATS[probe.dtype], probe.facts
    figures: dict[str, float] = {}
    base = telling(probe, 1, TOKENS, "finite") if facts else probe.inputs(1, TOKENS)
    factors = ladder(probe, probe.row(base)) if facts else 2.0 ** -torch.arange(31, dtype=torch.float64)
    tensors = faded(probe, same_rows(base, probe, len(factors)), factors)
    upstream = torch.zeros(probe.ask(tensors).o.shape, dtype=torch.float64)
    if facts:
        row = probe.row(tensors)
        upstream[:, -1] = towards(row)
        inner = (row.bounds(upstream[:, -1]) / row.steepness[..., None]).amax()
        figures["largest derivative by a score"] = float(row.bounds(upstream[:, -1]).amax())
        figures["beyond float16"] = float((row.bounds(upstream[:, -1]).amax((1, 2)) > HALF_RANGE).double().mean())
        if facts.eps:
            figures["smallest Z / eps"] = float(row.total.abs().amin()) / facts.eps
            held = float(torch.tensor(facts.eps, dtype=torch.float64).to(fmt.torch_dtype))
            figures["eps in this format / eps"] = held / facts.eps
        assert math.isfinite(float(inner)) or facts.promise == UNBOUNDED
    else:
        upstream[:, -1] = 1.0
    exact = probe.reference(tensors, upstream)
    asked = probe.ask(tensors, upstream)
    results = {"o": asked.o, **{f"d{n}": g for n, g in asked.grads.items()}}
    # half the range: what lies nearer to its end may well be rounded beyond it
    fits = {n: exact[n].isfinite() & (exact[n].abs() < fmt.largest / 2) for n in results}
    broken = {n: int((~x.isfinite() & fits[n]).sum()) for n, x in results.items()}
    beyond = sum(int((~f).sum()) for f in fits.values())
    figures |= {"not finite": float(sum(broken.values())), "exact ones out of range": float(beyond)}
    figures |= _gates(probe)
    total = sum(broken.values())
    named = ", ".join(f"{count} of {n}" for n, count in broken.items() if count)
    bad = [
        i
        for i in range(len(factors))
        if any(
            not bool((x[i].isfinite() | ~fits[n][i]).all()) for n, x in results.items() if x.shape[0] == len(factors)
        )
    ]
    shown_by = (
        f"query faded by 2^{float(factors[bad[0]].log2()):.0f}"
        if bad
        else f"queries faded to 2^{float(factors[-1].log2()):.0f}"
    )
    return Finding(
        "D7",
        "finite",
        probe.dtype,
        UNBOUNDED if total else BOUNDED,
        not total,
        float(total),
        0.0,
        shown_by,
        f"not finite although {probe.dtype} holds the exact number: {named}" if total else _told(figures, beyond),
        figures,
    )


def _told(figures: dict[str, float], beyond: int) -> str:
    parts = ["every result is finite" + (f" ({beyond} exact ones are out of the format's range)" if beyond else "")]
    if figures.get("eps in this format / eps") == 0.0:
        parts.append("eps is zero in this format: only arithmetic wider than it keeps the division finite")
    if figures.get("beyond float16"):
        parts.append(f"derivatives by scores reach {figures['largest derivative by a score']:.3g}, beyond float16")
    if "kappa" in figures:
        parts.append(f"gate gradients cancel up to {figures['kappa']:.3g} times")
    return "; ".join(parts)


def _gates(probe: Probe) -> dict[str, float]:
    """The cancellation number of gate gradients, where a log gate of tokens has one."""
    gates = [i for i in probe.operator.of_kind("log_gate") if i.axes[:3] == ("B", "T", "H")]
    if not gates or not {"G3"} & probe.operator.identities:
        return {}
    tensors = probe.inputs(1, LONG)
    drawn = torch.randn(probe.ask(tensors).o.shape, generator=probe.generator("kappa"), dtype=torch.float64)
    found = probe.reference(tensors, drawn)
    given = {n: x.double() for n, x in probe.given(tensors).items()}
    flow = sum((given[n] * found[f"d{n}"]).abs() for n in (probe.query, probe.key))
    gate = found[f"d{gates[0].name}"]
    assert isinstance(flow, torch.Tensor)
    summed = flow.flip(1).cumsum(1).flip(1)
    summed = summed.sum(-1) if gate.dim() == 3 else summed
    kappa = summed / gate.abs().clamp(min=2.0**-1000)
    return {"kappa": float(kappa.quantile(0.99)), "median kappa": float(kappa.median())}
