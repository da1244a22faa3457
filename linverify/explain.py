"""What there is and what it means: the texts of ``linverify list`` and ``linverify explain``."""

import dataclasses
import difflib
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linverify import regime, registry
from linverify.errors import UsageError, unknown
from linverify.identities import IDENTITIES
from linverify.operator import Input, Operator
from linverify.property import Property, Space

_WORDS = {"None": "with and without", "True": "yes", "False": "no"}
KINDS = ("operators", "implementations", "properties", "regimes")


def listing(kind: str) -> RenderableType:
    """Return the table of one kind of thing.

    Raises:
        UsageError: there is no such kind.
    """
    if kind == "operators":
        return Group(*(_entry(o) for o in registry.operators().values()))
    if kind == "implementations":
        found = sorted(registry.implementations(), key=lambda i: (i.operator, i.form))
        rows = [(i.form, i.backend + " (absent)" * bool(i.absent), i.target_text) for i in found]
        return _table(("form", "backend", "target"), rows)
    if kind == "properties":
        laws = [(p.name, "required" if p.required else "reported", p.law) for p in registry.properties().values()]
        return _table(("property", "verdict", "law"), laws)
    if kind == "regimes":
        return _table(("regime", "of", "what is drawn", "which mistakes live there"), _regimes())
    raise unknown("kind", kind, KINDS)


def explained(name: str) -> RenderableType:
    """Return all that is known of an operator, a property, an identity, a regime or a built-in implementation.

    Raises:
        UsageError: nothing has that name.
    """
    word = name.strip().lower().replace("-", "_").replace(" ", "_")
    parts: list[RenderableType] = []
    operators = {alias: o for o in registry.operators().values() for alias in (o.name, *o.aliases)}
    if word in operators:
        parts.append(_operator(operators[word]))
    properties = registry.properties()
    if word in properties:
        parts.append(_property(properties[word]))
    parts += [
        _grid([("regime", f"{n} ({of})"), ("draws", what), ("why", why)])
        for n, of, what, why in _regimes()
        if n == word
    ]
    for i in registry.implementations():
        if name.strip() in (i.name, i.target_text):
            facts = [("target", i.target_text), ("operator", i.operator), ("form", i.form), ("backend", i.backend)]
            parts.append(_grid([*facts, ("absent", i.absent)]))
    identity = name.strip().upper()
    if identity in IDENTITIES:
        having = ", ".join(o.name for o in registry.operators().values() if identity in o.identities)
        parts.append(_grid([("identity", identity), ("says", IDENTITIES[identity]), ("operators", having)]))
    if not parts:
        near = difflib.get_close_matches(
            word, [*operators, *properties, *(row[0] for row in _regimes())], n=1, cutoff=0.5
        )
        hint = f"did you mean {near[0]!r}?" if near else "'linverify list' shows what there is"
        raise UsageError(f"nothing is called {name!r}; {hint}")
    return Group(*parts)


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for position, heading in enumerate(headings):
        table.add_column(heading, no_wrap=position == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold", min_width=11)
    grid.add_column(overflow="fold")
    for label, value in rows:
        if value:
            grid.add_row(label, Text(value))
    return grid


def _regimes() -> list[tuple[str, ...]]:
    groups = {"operands": regime.OPERANDS, "gates": regime.GATES, "initial state": regime.STATES}
    return [(r.name, of, r.what, r.why) for of, found in groups.items() for r in found]


def _entry(o: Operator) -> RenderableType:
    """An operator in a list: a table of them would be all narrow columns."""
    facts = [
        ("what", o.summary),
        ("arguments", ", ".join(i.name for i in o.inputs)),
        ("forms", ", ".join(o.form_names)),
        ("source", o.source),
        ("identities", ", ".join(sorted(o.identities, key=_by_number))),
    ]
    return Group(Text(o.name, style="bold"), Padding(_grid(facts), (0, 0, 1, 2)))


def _operator(o: Operator) -> RenderableType:
    scale = "K**-0.5" if o.default_scale is None else f"{o.default_scale:g}"
    rows = [
        ("operator", o.name + (f" (also {', '.join(o.aliases)})" if o.aliases else "")),
        ("", ""),
        ("what", o.summary),
        ("equations", o.equations.strip()),
        ("source", o.source),
        ("forms", ", ".join(o.form_names)),
        ("inputs", "\n".join(_input(i) for i in o.inputs)),
        ("parameters", ", ".join(f"{n}={v}" for n, v in o.parameters.items())),
        ("state", f"[{', '.join(o.state_axes)}]" if o.state_axes else "none"),
        ("scale", f"{scale} by default"),
        ("reduces to", "\n".join(f"{r.to} when {r.when}" for r in o.reductions)),
        ("identities", "\n".join(f"{n}: {IDENTITIES[n]}" for n in sorted(o.identities, key=_by_number))),
        ("hazards", "\n".join(f"- {hazard}" for hazard in o.hazards)),
    ]
    laws = [
        (p.name, "required" if p.required else "reported", p.law)
        for p in registry.properties().values()
        if p.applies(o)
    ]
    return Group(
        _grid(rows), Text(), Text("properties that apply", style="bold"), _table(("property", "verdict", "law"), laws)
    )


def _by_number(identity: str) -> tuple[str, int]:
    return identity[0], int(identity[1:])


def _input(i: Input) -> str:
    also = f"; also called {', '.join(i.aliases)}" if i.aliases else ""
    return f"{i.name} [{', '.join(i.axes)}]: {i.domain}{also}"


def _property(p: Property) -> RenderableType:
    verdict = "required" if p.required else "reported"
    if not p.required:
        verdict += (
            f"; required with --claims {p.claim} or --require {p.name}"
            if p.claim
            else f"; required with --require {p.name}"
        )
    operators = [o.name for o in registry.operators().values() if p.applies(o)]
    return _grid(
        [
            ("property", p.name),
            ("law", p.law),
            ("why", p.why),
            ("verdict", verdict),
            ("needs", ", ".join(sorted(p.needs))),
            ("cases", space(p.space)),
            ("operators", ", ".join(operators)),
        ]
    )


def space(asked: Space) -> str:
    """Return which cases a property asks about, only what differs from "any case without gradients"."""
    default = Space()
    parts = []
    for f in dataclasses.fields(Space):
        value = getattr(asked, f.name)
        if value == getattr(default, f.name):
            continue
        name = f.name.replace("min_", "smallest ").replace("max_", "largest ").replace("_", " ")
        if isinstance(value, tuple):
            text = ", ".join(str(v) for v in value) or "any"
        else:
            text = _WORDS.get(repr(value), str(value))
        parts.append(f"{name}: {text}")
    return "; ".join(parts) or "any dense one, without gradients"
