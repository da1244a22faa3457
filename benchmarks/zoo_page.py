"""The zoo's record as a page: what is found, by which law, how soon, which correct kernels are flagged, and other rules."""

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from tests.zoo.catalogue import BUGS, CORRECT
from tests.zoo.record import Bug

Rows = Mapping[str, Mapping[str, Any]]
PROFILES = ("quick", "standard")
_OPENING = """{bugs} planted bugs, each a small difference from a correct kernel that re-enacts a real one, {triton} of them in
Triton{how}, and {correct} correct kernels that make other choices. Made by

    python benchmarks/zoo.py all{device}
    python benchmarks/zoo.py page{out}

The record is `{record}`, the entries are in `tests/zoo`. Where it was made: {where}."""
_FOUND = """Each bug is asked under all laws up to the first violation, in each profile (what `quick` finds, in `standard`
only where there was time), and under the one law that is there for it, in the smallest profile that finds it. Seconds are from
the start of the session to the first violation, cases those that were judged until then; where the machine was shared, seconds
are upper bounds.{how}"""
_OTHERS = """The same {bugs} bugs and {correct} correct kernels in torch, each rule on inputs such as its own library's tests
have (`benchmarks/zoo_rivals.py`). gradcheck compares a backward with its own forward: a forward that is
wrong passes it."""


def table(heading: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """A Markdown table."""
    lines = (heading, ("---",) * len(heading), *rows)
    return ["| " + " | ".join(str(c) for c in line) + " |" for line in lines] + [""]


def found(rows: Rows, key: str) -> bool:
    """Whether a session ended with a violation."""
    return bool(rows.get(key, {}).get("verdict") == "violation")


def smallest(rows: Rows, name: str) -> str:
    """The smallest profile that finds a bug; "" where none does, or none was asked."""
    return next((p for p in PROFILES if found(rows, f"{name} {p}")), "")


def page(sections: Mapping[str, Rows], record: str, device: str = "cpu") -> str:
    """The page; entries that were not asked are said to be."""
    bugs, rivals, correct = sections["bugs"], sections["rivals"], sections["correct"]
    gpu = device != "cpu"
    mine = [b for b in BUGS if b.triton or not gpu]
    machines = {f"{_machine(row)}, {started[:10]}" for started, row in sections["runs"].items()}
    opening = _OPENING.format(
        bugs=len(mine),
        triton=sum(b.triton for b in mine),
        how="" if gpu else " (run in its interpreter)",
        correct=sum(c.triton or not gpu for c in CORRECT),
        device=f" --device {device}" if gpu else "",
        out=f" --device {device} --out docs/published/{record}" if gpu else "",
        record=record,
        where="; ".join(sorted(machines)),
    )
    parts = ["# The bug zoo, on a GPU" if gpu else "# The bug zoo, on a CPU", "", opening, ""]
    parts += [*_found(bugs, mine, gpu=gpu), *_laws(bugs, mine), *_correct(correct)]
    parts += _rivals(bugs, rivals, correct) if rivals else []
    return "\n".join([*parts, *_each(bugs, rivals, mine)])


def _machine(row: Mapping[str, Any]) -> str:
    names = ("torch", "triton", "python", "gpu", "device_name")
    return ", ".join(f"{name} {row[name]}" for name in names if row.get(name))


def _seconds(values: list[float]) -> tuple[str, str]:
    return (f"{median(values):.1f}", f"{max(values):.1f}") if values else ("-", "-")


def _counts(bugs: Rows, some: list[Bug], profile: str) -> tuple[Any, ...]:
    """Asked, found, and seconds and cases until then, of a profile."""
    rows = [bugs[f"{b.name} {profile}"] for b in some if f"{b.name} {profile}" in bugs]
    hits = [r for r in rows if r["verdict"] == "violation"]
    return (f"{len(hits)} of {len(rows)}" if rows else "not asked", *_seconds([r["seconds"] for r in hits]))


def _found(bugs: Rows, mine: list[Bug], *, gpu: bool) -> list[str]:
    kinds = list(dict.fromkeys(b.kind for b in mine))
    rows: list[tuple[Any, ...]] = []
    for kind in (*kinds, "all"):
        some = [b for b in mine if kind in (b.kind, "all")]
        own = [bugs[f"{b.name} own"] for b in some if f"{b.name} own" in bugs]
        alone = Counter(r["profile"] if r["verdict"] == "violation" else "" for r in own)
        counts = (*_counts(bugs, some, "quick"), *_counts(bugs, some, "standard"))
        rows.append((kind, *counts, *((alone[p] if own else "not asked") for p in (*PROFILES, ""))))
    missed = [b.name for b in mine if not smallest(bugs, b.name)]
    quick = sum(found(bugs, f"{b.name} quick") for b in mine)
    cases = [bugs[f"{b.name} quick"]["cases"] for b in mine if found(bugs, f"{b.name} quick")]
    heading = (
        *("kind", "quick finds", "median seconds", "most", "standard finds", "median seconds", "most"),
        *("own law: quick", "standard", "not found"),
    )
    return [
        "## What is found",
        "",
        _FOUND.format(how="" if gpu else " A kernel in Triton runs in the interpreter on a CPU, in fp32 and fp16."),
        "",
        *table(heading, rows),
        f"`quick` finds {quick} of {len(mine)} ({quick / len(mine):.1%}), half of them within {median(cases):.0f} judged cases."
        if cases
        else "",
        f"In no profile: {', '.join(missed) or 'none'}.",
        "",
    ]


def _laws(bugs: Rows, mine: list[Bug]) -> list[str]:
    firsts = {p: Counter(str(bugs.get(f"{b.name} {p}", {}).get("law", "")) for b in mine) for p in PROFILES}
    alone = {b.law for b in mine if f"{b.name} own" in bugs}
    own = Counter(b.law for b in mine if found(bugs, f"{b.name} own"))
    planned = Counter(b.law for b in mine)
    names = sorted({*planned, *firsts["quick"], *firsts["standard"]} - {""})
    rows: list[tuple[Any, ...]] = [
        (n, planned[n], own[n] if n in alone or not planned[n] else "not asked", *(firsts[p][n] for p in PROFILES))
        for n in names
    ]
    heading = ("law", "bugs it is there for", "found by it alone", "first to object: quick", "standard")
    return [
        "## By which law",
        "",
        "Laws are asked in an order of their own, basic ones first, so that the first to object is often `agreement`.",
        "",
        *table(heading, rows),
    ]


def _correct(rows: Rows) -> list[str]:
    lines: list[tuple[Any, ...]] = []
    for profile in PROFILES:
        own = {key: row for key, row in rows.items() if key.split()[1] == profile}
        if not own:
            continue
        asked = Counter(key.split()[0] for key in own)
        seeds = ", ".join(f"{n} for {count} kernels" for n, count in sorted(Counter(asked.values()).items()))
        passed = [row for row in own.values() if row["verdict"] == "pass"]
        key, worst = max(own.items(), key=lambda item: (item[1]["verdict"] == "pass", item[1]["worst"]))
        cases = sum(row["cases"] for row in own.values())
        most = f"{worst['worst']:.2f} ({key.split()[0]}, {worst['law']})"
        flagged = sum(bool(row.get("alarms")) for row in own.values())
        unchecked = len(own) - flagged - len(passed)
        marginal = sum(bool(row.get("marginal")) for row in own.values())
        seconds = _seconds([row["seconds"] for row in own.values()])
        lines.append((profile, seeds, len(own), cases, flagged, marginal, unchecked, most, *seconds))
    heading = (
        *("profile", "seeds", "sessions", "cases", "flagged", "marginal", "unchecked"),
        *("largest share of the budget that passes", "median seconds", "most"),
    )
    flags = [(k, a["law"], f"{a['share'] or 0:.2f}", a["case"]) for k, r in rows.items() for a in r.get("alarms", ())]
    out = [
        "## Correct kernels",
        "",
        "Sessions of all laws, each of its own seed; seconds are of the whole session, pauses of a run included. Marginal: a",
        "case was near the line, or beyond it with the first roundings that were simulated, and within it with fresh ones; it",
        "is reported, and passes. Twelve sessions flagged a kernel before: features of 1 + elu summed in float32, weights of",
        "softmax formed anew from a row's log sum, features below 6e-8, a gate's gradient that is what float32 leaves of one",
        "token (triton_gla_blocks_of_32, 1.53). Each time the budget was at fault; it was mended, and they were asked again.",
        "",
    ]
    out += table(heading, lines)
    return out + (table(("session", "law", "share", "case"), flags) if flags else [])


def _rivals(bugs: Rows, rivals: Rows, correct: Rows) -> list[str]:
    names = list(next(iter(rivals.values()))["found"])
    own = [b for b in BUGS if b.name in rivals]
    right = [c for c in CORRECT if c.name in rivals]

    def flagged(profile: str) -> int:
        sessions = [row for key, row in correct.items() if key.split()[1] == profile and key.split()[0] in rivals]
        return sum(bool(row.get("alarms")) for row in sessions)

    lines: list[tuple[Any, ...]] = []
    for p in PROFILES:
        asked = [f"{b.name} {p}" for b in own if f"{b.name} {p}" in bugs]
        if len(asked) == len(own):
            lines.append((f"linverify, {p}", sum(found(bugs, key) for key in asked), f"{flagged(p)} (all seeds)"))
    lines += [(r, *(sum(bool(rivals[e.name]["found"][r]) for e in some) for some in (own, right))) for r in names]
    heading = ("rule", f"bugs found of {len(own)}", f"correct kernels flagged of {len(right)}")
    return ["## Other rules", "", _OTHERS.format(bugs=len(own), correct=len(right)), "", *table(heading, lines)]


def _each(bugs: Rows, rivals: Rows, mine: Iterable[Bug]) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for b in mine:
        asked = [bugs.get(f"{b.name} {p}", {}) for p in PROFILES]
        own, others = bugs.get(f"{b.name} own", {}), rivals.get(b.name, {}).get("found", {})
        objecting = ", ".join(r for r, hit in others.items() if hit) or ("none" if others else "not asked")
        rows.append(
            (
                f"[{b.name}]({b.source})",
                b.operator + (" (Triton)" if b.triton else ""),
                b.kind,
                " ".join(b.shows),
                smallest(bugs, b.name) or ("not found" if any(asked) else "not asked"),
                *(" ".join(str(r[n]) for n in ("law", "result") if r.get(n)) or "-" for r in asked),
                *(asked[0].get(n, "-") for n in ("seconds", "cases")),
                f"{b.law}: {own['profile'] if found(bugs, f'{b.name} own') else 'no' if own else 'not asked'}",
                objecting,
            )
        )
    heading = (
        *("bug and origin", "operator", "kind", "shows in", "smallest profile", "first in quick", "first in standard"),
        *("seconds", "cases", "its law alone", "other rules"),
    )
    return ["## Every bug", "", *table(heading, rows)]
