"""The zoo's record as a page: what is found, by which law, how soon, and what other rules find."""

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

from tests.zoo.catalogue import BUGS, CORRECT

Sections = Mapping[str, Mapping[str, Mapping[str, Any]]]
_OPENING = """{bugs} planted bugs, each a small difference from a correct kernel that re-enacts a real one, {triton} of them in
Triton (run in its interpreter), and {correct} correct kernels that make other choices. Made by `python benchmarks/zoo.py`; the
record is `zoo-cpu.json`, the entries are in `tests/zoo`."""
_FOUND = """The smallest profile that finds it: under all laws up to the first violation, and under the one law that is there
for it. Seconds to the first violation include the start of the session; the machine was shared, so they are upper bounds."""
_OTHERS = """The same {bugs} bugs and {correct} correct kernels in torch, each rule on inputs such as its own library's tests
have (`benchmarks/zoo_rivals.py`). gradcheck compares a backward with its own forward: a forward that is wrong passes it."""


def table(heading: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """A Markdown table."""
    lines = (heading, ("---",) * len(heading), *rows)
    return ["| " + " | ".join(str(c) for c in line) + " |" for line in lines] + [""]


def page(sections: Sections) -> str:
    """The page; entries that were not asked are said to be."""
    bugs, rivals = sections.get("bugs", {}), sections.get("rivals", {})
    asked = [b for b in BUGS if b.name in bugs]
    return "\n".join(
        [
            "# The bug zoo, on a CPU",
            "",
            _OPENING.format(bugs=len(BUGS), triton=sum(b.triton for b in BUGS), correct=len(CORRECT)),
            "",
            *_found(bugs, asked),
            *_laws(bugs, asked),
            *_correct(sections.get("correct", {})),
            *_rivals(bugs, rivals),
            *_each(bugs, rivals),
        ]
    )


def _profile(row: Mapping[str, Any]) -> str:
    return str(row["profile"]) or "not found"


def _found(bugs: Mapping[str, Any], asked: list[Any]) -> list[str]:
    kinds = list(dict.fromkeys(b.kind for b in BUGS))
    rows = []
    for kind in (*kinds, "all"):
        own = [bugs[b.name] for b in asked if kind in (b.kind, "all")]
        whole, alone = (Counter(_profile(r[how]) for r in own) for how in ("whole", "alone"))
        seconds = [r["whole"]["seconds"] for r in own if r["whole"]["profile"]]
        rows.append(
            (
                kind,
                len(own),
                *(whole[p] for p in ("quick", "standard", "not found")),
                *(alone[p] for p in ("quick", "standard", "not found")),
                f"{median(seconds):.1f}" if seconds else "-",
                f"{max(seconds):.1f}" if seconds else "-",
            )
        )
    return [
        "## What is found",
        "",
        _FOUND,
        "",
        *table(
            (
                *("kind", "bugs", "quick", "standard", "not found"),
                *("own law: quick", "standard", "not found", "median seconds", "most"),
            ),
            rows,
        ),
    ]


def _laws(bugs: Mapping[str, Any], asked: list[Any]) -> list[str]:
    first = Counter(bugs[b.name]["whole"].get("law", "") for b in asked)
    own = Counter(b.law for b in asked if bugs[b.name]["alone"]["profile"])
    planned = Counter(b.law for b in asked)
    rows = [(law, planned[law], own[law], first[law]) for law in sorted({*planned, *first} - {""})]
    return [
        "## By which law",
        "",
        "Laws are asked in the order of their names, so that the first to object is often `agreement`.",
        "",
        *table(("law", "bugs it is there for", "found by it alone", "first to object"), rows),
    ]


def _correct(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    flagged = [(key, a["law"], f"{a['share']:.2f}", a["case"]) for key, row in rows.items() for a in row["alarms"]]
    by = Counter(" ".join(key.split()[1:]) for key in rows)
    worst = max((row["worst"] for row in rows.values() if not row["alarms"]), default=0.0)
    lines = [
        "## Correct kernels",
        "",
        f"Sessions (profile and seed: kernels): {', '.join(f'{k}: {n}' for k, n in by.items())}.",
        f"Flagged: {len({f[0] for f in flagged})}. Largest share of the budget of those that pass: {worst:.2f}.",
        "",
    ]
    return lines + (table(("session", "law", "share", "case"), flagged) if flagged else [])


def _rivals(bugs: Mapping[str, Any], rivals: Mapping[str, Any]) -> list[str]:
    names = list(next(iter(rivals.values()))["found"]) if rivals else []
    own = [b for b in BUGS if b.name in rivals]
    right = [c for c in CORRECT if c.name in rivals]
    found = {r: [sum(bool(rivals[e.name]["found"][r]) for e in some) for some in (own, right)] for r in names}
    rows: list[tuple[Any, ...]] = [
        (
            "linverify, quick",
            sum(bugs[b.name]["whole"]["profile"] == "quick" for b in own if b.name in bugs),
            "see above",
        )
    ]
    rows += [(r, hits, alarms) for r, (hits, alarms) in found.items()]
    return [
        "## Other rules",
        "",
        _OTHERS.format(bugs=len(own), correct=len(right)),
        "",
        *table(("rule", f"bugs found of {len(own)}", f"correct kernels flagged of {len(right)}"), rows),
    ]


def _each(bugs: Mapping[str, Any], rivals: Mapping[str, Any]) -> list[str]:
    rows = []
    for b in BUGS:
        row = bugs.get(b.name)
        whole, alone = (row["whole"], row["alone"]) if row else ({}, {})
        others = rivals.get(b.name, {}).get("found", {})
        rows.append(
            (
                f"[{b.name}]({b.source})",
                b.operator + (" (Triton)" if b.triton else ""),
                b.kind,
                " ".join(b.shows),
                _profile(whole) if row else "not asked",
                whole.get("law", ""),
                whole.get("seconds", ""),
                f"{b.law}: {_profile(alone) if row else 'not asked'}",
                ", ".join(r for r, hit in others.items() if hit) or ("none" if others else "not asked"),
            )
        )
    heading = (
        "bug and origin",
        "operator",
        "kind",
        "shows in",
        "found",
        "first by",
        "seconds",
        "its law alone",
        "other rules",
    )
    return ["## Every bug", "", *table(heading, rows)]
