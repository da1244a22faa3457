"""The suprema, exponents, caps and crossovers that mechanisms promise, by measurement, in every format that a CPU computes.

One row a mechanism, from one built-in form in each format: what the theory says, what was found, and whether it agrees
(exponent within 0.05, crossover within a factor of 2, rho from 0.95 to 1 + 10 u where the bound is attained).

    python benchmarks/stability_table.py [--device cuda:0] [--dtype fp64 ...] [--jobs N] [--only NAME ...]
                                         [--markdown FILE] [--json FILE]
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from linverify import registry
from linverify.options import operator_option
from linverify.plan import Plan
from linverify.stability.records import Finding, Stability
from linverify.stability.runner import kernels

SLOPE, FACTOR, RHO = 0.05, 2.0, 0.95
STEPS = 10
WIDTH = 16
FLAT = ("bounded", 0.0, None)


@dataclass(frozen=True)
class Expected:
    """What the theory says of one mechanism.

    Attributes:
        name: for people.
        operator: as after --op.
        sup: in words.
        cap: largest |dp/ds| over all inputs; infinite where there is none, None where the operator has no rows of weights.
        verdict: bounded, bounded by eps, unbounded.
        slope: exponent by a score (of a query's own gradient where there are no rows).
        crossover: where growth ends.
        own: exponent of a query's own gradient, None where nothing is claimed.
    """

    name: str
    operator: str
    sup: str
    cap: float | None
    verdict: str
    slope: float
    crossover: float | None = None
    own: float | None = None
    attained: bool = field(default=True, kw_only=True)


TABLE = (
    Expected("softmax", "softmax_attention", "p (1 - p)", 0.25, "bounded", 0.0, None, 0.0),
    Expected("1+elu", "normalized_linear_attention", "1 / (Z + e)", 1e6, "bounded by eps", -1.0, 1e-6, 0.0),
    Expected("ReLU", "normalized_linear_attention:phi=relu", "1 / (Z + e)", 1e6, "bounded by eps", -1.0, 1e-6, -1.0),
    Expected(
        "ReLU, e = 0", "normalized_linear_attention:phi=relu,eps=0", "1 / Z", math.inf, "unbounded", -1.0, None, -1.0
    ),
    Expected("ReLU of EfficientViT", "relu_linear_attention", "1 / (Z + e)", 1e15, "bounded by eps", -1.0, 1e-15, -1.0),
    Expected("cosFormer", "cosformer", "1 / max(Z, e)", 1e6, "bounded by eps", -1.0, 1e-6, -1.0),
    Expected(
        "identity, cancelling", "normalized_linear_attention:phi=identity", "1 / (Z + e)", math.inf, "unbounded", -2.0
    ),
    Expected("Performer, e = 0", "performer", "1 / Z", math.inf, "unbounded", -1.0),
    Expected("Based", "based", "1 / (Z + e), Z >= t / 2", 2 / (1 + 2e-6), "bounded", 0.0, None, 0.0),
    Expected("NormAttention", "norm_attention", "1 / sigma", 1e3, "bounded by eps", -1.0, math.sqrt(WIDTH * 1e-6), 0.0),
    Expected(
        "NormAttention, e beside the root",
        "norm_attention:norm=rms_outside",
        "1 / (rms + e)",
        1e6,
        "bounded by eps",
        -1.0,
        math.sqrt(WIDTH) * 1e-6,
        0.0,
    ),
    Expected(
        "NormAttention, layer norm",
        "norm_attention:norm=layer",
        "1 / sigma",
        1e3,
        "bounded by eps",
        -1.0,
        math.sqrt(WIDTH * 1e-6),
        0.0,
        attained=False,  # one-hot values are no multiples of what a layer norm stretches most: (1 - 1/d) of it
    ),
    Expected("SRMSNorm, e = 0", "norm_attention:eps=0", "sqrt(d) / |m|", math.inf, "unbounded", -1.0),
    Expected("linear attention", "linear_attention", "|v . do|", 1.0, *FLAT, 0.0),
    Expected("GLA", "gla", "|v . do|", 1.0, *FLAT, 0.0),
    Expected("SSD (Mamba-2)", "mamba2", "|v . do|", 1.0, *FLAT, 0.0),
    Expected("delta rule", "delta_rule", "no rows of weights", None, *FLAT),
    Expected("mLSTM", "mlstm", "1 / max(|Z|, 1)", 1.0, "bounded", -1.0, 1.0),
)


@dataclass(frozen=True)
class Measured:
    """One mechanism in one format: what was found, and in which points it differs from the theory."""

    name: str
    dtype: str
    verdict: str
    sup: float | None
    rho: float | None
    slope: float | None
    own: float | None
    crossover: float | None
    holds: bool
    differs: tuple[str, ...]


def found(result: Stability, diagnostic: str) -> Finding:
    """The finding of a diagnostic that is made once."""
    return next(f for f in result.findings if f.diagnostic == diagnostic)


def measure(row: Expected, dtype: str, device: str = "cpu") -> Measured:
    """Diagnose one built-in form in one format."""
    name, parameters = operator_option(row.operator)
    assert name is not None
    operator = registry.operator(name)
    target = f"linverify.impls.torch_{operator.form_names[0]}:{name}"
    plan = Plan(target, operator=name, operator_parameters=parameters, device=device)
    (result,) = kernels(plan, (dtype,), lambda _: None)
    d2, d4 = found(result, "D2"), found(result, "D4")
    differs = tuple(differences(row, d2, d4, dtype))
    sup, rho = d2.figures.get("sup"), d2.figures.get("rho")
    crossover, own = d4.figures.get("crossover"), d4.figures.get("slope of dq")
    holds = result.verdict == "pass"
    return Measured(row.name, dtype, d4.verdict, sup, rho, d4.number, own, crossover, holds, differs)


def differences(row: Expected, d2: Finding, d4: Finding, dtype: str) -> Iterator[str]:
    """Where a measurement leaves what the theory says."""
    unit = {"fp64": 2.0**-53, "fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}[dtype]
    if d4.verdict != row.verdict:
        yield f"verdict {d4.verdict}"
    if d4.number is None or abs(d4.number - row.slope) >= SLOPE:
        yield f"slope {d4.number}"
    own = d4.figures.get("slope of dq")
    if row.own is not None and (own is None or abs(own - row.own) >= SLOPE):
        yield f"own slope {own}"
    crossover = d4.figures.get("crossover")
    if row.crossover is not None:
        apart = math.inf if crossover is None else max(crossover / row.crossover, row.crossover / crossover)
        if apart > FACTOR:
            yield f"crossover {crossover}"
    if row.cap is None:
        return
    rho, sup = d2.figures.get("rho", math.inf), d2.figures.get("sup", math.inf)
    if row.attained and not RHO <= rho <= 1 + STEPS * unit:
        yield f"rho {rho}"
    if sup > row.cap * (1 + STEPS * unit):
        yield f"sup {sup}"


def number(x: float | None) -> str:
    """A cell."""
    return "-" if x is None else "none" if math.isinf(x) else f"{x:.4g}"


def table(rows: list[tuple[Expected, list[Measured]]]) -> Iterator[str]:
    """Theory and float64 first, then what the other formats change."""
    yield "| mechanism | bound | cap | sup found | rho | exponent | found | own, found | crossover | found | verdict | agrees |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
    for row, measured in rows:
        m = measured[0]
        cells = [row.name, row.sup.replace("|", "\\|"), number(row.cap), number(m.sup), number(m.rho), f"{row.slope:g}"]
        cells += ["-" if m.slope is None else f"{m.slope:.3f}", "-" if m.own is None else f"{m.own:.3f}"]
        cells += [number(row.crossover), number(m.crossover), m.verdict, "; ".join(m.differs) or "yes"]
        yield f"| {' | '.join(cells)} |"


def formats(rows: list[tuple[Expected, list[Measured]]]) -> Iterator[str]:
    """What each format makes of the same mechanism."""
    dtypes = [m.dtype for m in rows[0][1]]
    yield "| mechanism | " + " | ".join(dtypes) + " |"
    yield "| --- |" + " --- |" * len(dtypes)
    for row, measured in rows:
        cells = []
        for m in measured:
            slope = "-" if m.slope is None else f"{m.slope:.2f}"
            cells.append(
                f"sup {number(m.sup)}, rho {number(m.rho)}, exponent {slope}, to {number(m.crossover)}"
                + ("" if m.holds else " **beyond the bound**")
                + (f" ({'; '.join(m.differs)})" if m.differs and m.holds else "")
            )
        yield f"| {row.name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", action="append", choices=("fp64", "fp32", "bf16", "fp16"))
    parser.add_argument("--only", action="append", choices=[e.name for e in TABLE])
    parser.add_argument("--jobs", type=int, default=1, help="measurements at a time")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    dtypes = given.dtype or ["fp64", "fp32", "bf16", "fp16"]
    rows = []
    asked = [row for row in TABLE if given.only is None or row.name in given.only]
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        started = [(row, [pool.submit(measure, row, dtype, given.device) for dtype in dtypes]) for row in asked]
        for row, each in started:
            rows.append((row, [m.result() for m in each]))
            print(row.name, *(f"{m.dtype}: {m.holds} {m.differs}" for m in rows[-1][1]), file=sys.stderr, flush=True)
    lines = [*table(rows), "", *formats(rows)]
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if given.json:
        record = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": given.device,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": [
                {"expected": plain(dataclasses.asdict(e)), "measured": [plain(dataclasses.asdict(m)) for m in found]}
                for e, found in rows
            ],
        }
        given.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def plain(record: dict[str, object]) -> dict[str, object]:
    """Infinity has no spelling in JSON."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


if __name__ == "__main__":
    main()
