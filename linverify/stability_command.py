"""``linverify stability``: are the gradients of a kernel, an operator or a block bounded, and by what?"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import linverify
from linverify import dtype as formats
from linverify import environment, options, registry
from linverify.cli_options import Claims, Device, Dtypes, Op, Seed, Set
from linverify.errors import UsageError
from linverify.outputs import Terminal
from linverify.plan import Plan
from linverify.reports import stability as console_report
from linverify.reports import stability_json
from linverify.reports.files import write_whole
from linverify.reports.stability_html import html
from linverify.stability.layers import Training
from linverify.stability.modules import module
from linverify.stability.records import Stability, StabilityReport
from linverify.stability.runner import Heard, forms, kernels
from linverify.target import parse

_USUAL = Training()
# Fewer have no quantiles.
_FEWEST_STEPS = 10


def stability(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET", help="A kernel as of check, an operator's name, or an nn.Module (file.py:Block)."
        ),
    ] = None,
    op: Op = None,
    settings: Set = None,
    claims: Claims = None,
    device: Device = None,
    dtype: Dtypes = None,
    seed: Seed = 0,
    layers: Annotated[int, typer.Option("--layers", metavar="N", help="Of a module's stack.")] = _USUAL.layers,
    width: Annotated[int, typer.Option("--width", metavar="D", help="Of a module.")] = _USUAL.width,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Of a module's training.")] = _USUAL.steps,
    batch: Annotated[int, typer.Option("--batch", metavar="B", help="Sequences a step.")] = _USUAL.batch,
    length: Annotated[int, typer.Option("--length", metavar="T", help="Bytes a sequence.")] = _USUAL.length,
    json: Annotated[Path | None, typer.Option("--json", metavar="F", help="Write the whole run to this file.")] = None,
    html_: Annotated[
        Path | None, typer.Option("--html", metavar="F", help="Write a page to read in a browser.")
    ] = None,
    *,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the records.")] = False,
) -> int:
    """Diagnose gradients: their gains, suprema, spectra, growth, layers, dilution, and what each format makes of them.

    The exit code is 1 where a gradient exceeds what its own mechanism bounds it by; a mechanism that has no bound (ReLU
    without an eps) is a finding, not a fault.
    """
    if schema:
        sys.stdout.write(stability_json.schema())
        return 0
    if target is None:
        raise UsageError("expected a TARGET: FILE.py::NAME --op OP, an operator's name, or FILE.py:Block")
    for option, path in (("--json", json), ("--html", html_)):
        options.file_option(option, path)
    if json is not None and html_ is not None and json.resolve() == html_.resolve():
        raise UsageError(f"--html {html_}: --json goes to the same file")
    operator, parameters = options.operator_option(op)
    plan = Plan(
        target,
        operator=None if operator is None else registry.operator(operator).name,
        operator_parameters=parameters,
        settings=options.settings_option(settings or ()),
        claims=options.claims_option(claims or ()),
        device=options.device_option(device),
        seed=seed,
    )
    dtypes = tuple(dict.fromkeys(formats.parse(t).name for t in dtype or ()))
    training = _training(layers, width, steps, batch, length, seed, plan.device)
    with Console(stderr=True).status("starting") as line:
        results = _results(plan, dtypes, training, line.update)
    report = StabilityReport(linverify.__version__, environment.environment(plan.device), seed, results)
    console_report.print_stability(Terminal(), report)
    for path, text in ((json, stability_json.json_text), (html_, html)):
        if path is not None:
            _write(path, text(report))
    return report.exit_code


def _training(layers: int, width: int, steps: int, batch: int, length: int, seed: int, device: str) -> Training:
    counts = {"--layers": layers, "--width": width, "--batch": batch, "--length": length}
    for option, count in counts.items():
        if count < 1:
            raise UsageError(f"{option} {count}: expected at least 1")
    if steps < _FEWEST_STEPS:
        raise UsageError(f"--steps {steps}: expected at least {_FEWEST_STEPS}, so that there are quantiles")
    return Training(layers, width, steps, batch, length, seed, device)


def _results(plan: Plan, dtypes: tuple[str, ...], training: Training, heard: Heard) -> tuple[Stability, ...]:
    """Tell the kinds of targets apart: an operator's name, a module (a name in a file, without --op), kernels."""
    words = {alias: o for o in registry.operators().values() for alias in (o.name, *o.aliases)}
    name, _, given = plan.target.partition(":")
    stated = words.get(name.strip().lower().replace("-", "_"))
    if stated is not None and (not given or "=" in given) and not Path(plan.target).exists():
        _, parameters = options.operator_option(plan.target) if given else ("", {})
        if plan.operator not in (None, stated.name):
            raise UsageError(f"{plan.target} is an operator, and --op names another one")
        merged = {**plan.operator_parameters, **parameters}
        return forms(stated, _with(plan, merged), dtypes, heard)
    spec = parse(plan.target)
    if plan.operator is None and spec.function is not None:
        heard(f"{plan.target}: diagnosing and training")
        found = module(spec, plan.settings, training)
        if found is not None:
            return (found,)
    return kernels(plan, dtypes, heard)


def _with(plan: Plan, parameters: dict[str, str]) -> Plan:
    return replace(plan, operator_parameters=parameters)


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
