"""The reference pages of the site, from the code: operators, properties, regimes, commands."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from linverify import cli, explain, regime, registry  # noqa: E402  # the checkout beside this file, installed or not
from linverify.exits import EXIT_CODES  # noqa: E402
from linverify.identities import IDENTITIES  # noqa: E402
from linverify.operator import Operator  # noqa: E402
from linverify.profile import PROFILES  # noqa: E402
from linverify.property import Property  # noqa: E402


def table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown table."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def operators() -> str:
    """Every operator: equations, arguments, reductions, hazards."""
    head = (
        "# Operators\n\nWhat `--op` means, written from the files in `linverify/operators/`. Axes: B batch, T time, H heads, "
        "G groups of heads, K key width, V value width. Gates are natural logarithms.\n"
    )
    return "\n".join([head, *(_operator(o) for o in registry.operators().values())])


def _operator(o: Operator) -> str:
    scale = "K**-0.5" if o.default_scale is None else f"{o.default_scale:g}"
    also = f"Also called {', '.join(f'`{a}`' for a in o.aliases)}. " if o.aliases else ""
    state = f"State: [{', '.join(o.state_axes)}]." if o.state_axes else "No state."
    inputs = [
        (f"`{i.name}`", f"[{', '.join(i.axes)}]", i.domain, ", ".join(f"`{a}`" for a in i.aliases)) for i in o.inputs
    ]
    laws = [f"[`{p.name}`](properties.md#{p.name})" for p in registry.properties().values() if p.applies(o)]
    parts = [
        f"## {o.name} {{ #{o.name} }}\n\n{o.summary}\n\n```text\n{o.equations.strip()}\n```\n",
        f"{also}Default scale: {scale}. {state} Source: {o.source}.\n",
        table(("argument", "axes", "domain", "other spellings"), inputs),
    ]
    if o.reductions:
        parts.append(
            "Becomes a simpler operator: "
            + "; ".join(f"[`{r.to}`](#{r.to}) when {r.when}" for r in o.reductions)
            + ".\n"
        )
    if o.hazards:
        parts.append("Where implementations usually go wrong:\n\n" + "\n".join(f"* {h}" for h in o.hazards) + "\n")
    named = [f"{n} ({IDENTITIES[n]})" if n in IDENTITIES else n for n in sorted(o.identities)]
    parts.append(f"Laws that apply: {', '.join(laws)}.\n")
    if named:
        parts.append(f"Identities that hold: {'; '.join(named)}.\n")
    return "\n".join(parts)


def properties() -> str:
    """Every law."""
    head = (
        "# Properties\n\nThe laws that every implementation is asked, written from the files in `properties/`. *Required* laws "
        "decide the verdict; *reported* ones are shown, and count with `--require` or a claim.\n"
    )
    return "\n".join([head, *(_property(p) for p in registry.properties().values())])


def _property(p: Property) -> str:
    verdict = "Required." if p.required else f"Reported; counts with `--require {p.name}`"
    if not p.required:
        verdict += f" or `--claims {p.claim}`." if p.claim else "."
    needs = (
        f" Asked of functions that offer {', '.join(sorted(n.replace('_', ' ') for n in p.needs))}." if p.needs else ""
    )
    why = f"{p.why}\n\n" if p.why else ""
    applies = [o.name for o in registry.operators().values() if p.applies(o)]
    whom = "" if len(applies) == len(registry.operators()) else f" Operators: {', '.join(applies)}."
    return (
        f"## {p.name} {{ #{p.name} }}\n\n**{p.law}**\n\n{why}{verdict}{needs}{whom} Cases: {explain.space(p.space)}.\n"
    )


def regimes() -> str:
    """Every region of the inputs."""
    groups = {"Operands": regime.OPERANDS, "Gates": regime.GATES, "Initial states": regime.STATES}
    parts = [
        "# Regimes\n\nNamed regions of the inputs, from which cases are drawn; a case id names them (`gate=strong`).\n"
    ]
    for of, found in groups.items():
        rows = [(f"`{r.name}`", r.what, r.why) for r in found]
        parts.append(f"## {of}\n\n" + table(("regime", "what is drawn", "which mistakes live there"), rows))
    return "\n".join(parts)


def commands() -> str:
    """Commands and their options as ``--help`` shows them, exit codes, profiles."""
    names = [c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback]
    parts = ["# Commands\n\nWhat the command line says of itself.\n"]
    parts += [f"## linverify {name}\n\n```text\n{_help(name)}\n```\n" for name in names]
    parts.append("## Exit codes\n\n" + table(("code", "meaning"), [(str(c), m) for c, m in EXIT_CODES.items()]))
    sizes = [
        (
            p.name,
            str(p.cases),
            str(p.long_cases),
            f"to {p.max_T}, long {p.long_T[0]}-{p.long_T[1]}",
            f"to {p.gpu_max_T}, long {p.gpu_long_T[0]}-{p.gpu_long_T[1]}",
        )
        for p in PROFILES.values()
    ]
    heading = ("profile", "cases a law and dtype", "long ones", "T on a CPU", "T on a GPU")
    parts.append("## Profiles\n\n" + table(heading, sizes))
    return "\n".join(parts)


def _help(command: str) -> str:
    before = {n: os.environ.get(n) for n in ("COLUMNS", "TERMINAL_WIDTH")}
    os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            code = cli.main([command, "--help"])
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
    if code:
        raise RuntimeError(f"linverify {command} --help ended with {code}")
    return told.getvalue().strip()


PAGES: dict[str, Callable[[], str]] = {
    "operators": operators,
    "properties": properties,
    "regimes": regimes,
    "commands": commands,
}
