"""The published score: the records of `mutation.py` as one page, each survivor explained, and one file of numbers."""

import json
import statistics
import sys
from pathlib import Path

from linverify.reports.selftest import percent
from linverify.reports.selftest_json import read
from linverify.selftest.score import MutantResult, Outcome, Row, TargetScore, by_family, by_law, share, tallied

# What a study of each survivor found, by the mutant's name.
EXPLAINED: dict[str, str] = {}
HEAD = """# The checker's own score on a CPU

{machine}. `linverify selftest` makes mistakes in a kernel's source, one at a time, and asks the check about each. What
counts, and how a mutant that computes the same is told from others, says [the how-to](../pages/howto/selftest.md).
Profile `{profile}`, seed {seed}:

    python benchmarks/mutation.py RECORDS
    python benchmarks/mutation.py RECORDS --publish docs/published/mutation-cpu

**{share}: {caught} of {counting} mutants that compute something else were caught**, in {targets} targets. Beside them
{equivalent} are equivalent and {refused} refuse, most of them with exceptions about shapes; neither counts. Half of the
caught ones fell to the first {half} of their questions (a property and a case each), 95 % to the first {most}. A mutant
took {seconds:.2f} s on average on a busy machine, the comparison with its original included.
"""
LAWS = """A mutant is credited to the first property that caught it, in the order of the questions: small cases first, and
`agreement` and `gradients` before all others. So this does not say what a property would catch alone.
"""
EQUIVALENT = """## What the equivalent ones are

They were read, since a hole in the case space would hide here. By kind: a size taken from another tensor of the same shape; a
branch that is never taken, or whose sides agree; a tile of another size; a copy of a tensor that is new anyway; an update in
place of memory of the kernel's own; a final state returned unasked, which is accepted; operands left in the case's own 16-bit
format, which correct kernels do; what a masked load gives to lanes that nothing reads. Three are mistakes that the required
properties do not ask about: another default scale (the property `default_scale` reports it), float64 inputs computed in
float32 (float64 is asked on request), and a load beyond the end of a tensor whose value is never used (compute-sanitizer sees
it, on a GPU).
"""


def publish(records: Path, file: Path) -> None:
    """Write FILE.md and FILE.json."""
    found = [read(p) for p in sorted(records.glob("*.json"))]
    targets = [t for one in found for t in one.targets]
    mutants = [m for t in targets for m in t.mutants]
    tally = tallied(targets)
    questions = sorted(m.questions for m in mutants if m.outcome is Outcome.CAUGHT)
    first = found[0]
    machine = ", ".join(
        f"{name} {first.environment[name]}" for name in ("torch", "python") if name in first.environment
    )
    head = HEAD.format(
        machine=f"{machine[:1].upper()}{machine[1:]}, {first.started[:10]}",
        profile=first.profile,
        seed=first.seed,
        share=percent(share(tally) or 0.0),
        caught=tally[Outcome.CAUGHT],
        counting=tally[Outcome.CAUGHT] + tally[Outcome.SURVIVED],
        targets=len(targets),
        equivalent=tally[Outcome.EQUIVALENT],
        refused=tally[Outcome.REFUSED],
        half=int(statistics.median(questions)),
        most=questions[int(0.95 * len(questions))],
        seconds=sum(m.seconds for m in mutants) / len(mutants),
    )
    columns = ("caught", "survived", "equivalent", "refused", "share caught")
    parts = [head]
    if sum(t.unjudged for t in targets):
        parts.append(f"{sum(t.unjudged for t in targets)} mutants of these targets were not judged for want of time.\n")
    parts += [
        "## Targets\n",
        _table(("target", *columns), [(f"`{t.target}`", *_row(Row("", t.tally))) for t in targets]),
    ]
    parts += ["## Kinds of mistake\n", _table(("kind", *columns), [(r.label, *_row(r)) for r in by_family(targets)])]
    laws = [(f"`{row.law}`", str(row.first)) for row in by_law(targets) if row.first]
    parts += ["## Properties\n", LAWS, _table(("caught first by", "mutants"), laws)]
    parts += ["## Survivors\n", *(_survivor(t, m) for t in targets for m in t.mutants if m.outcome is Outcome.SURVIVED)]
    if not tally[Outcome.SURVIVED]:
        parts.append("None.\n")
    parts.append(EQUIVALENT)
    file.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")
    numbers = {
        "environment": first.environment,
        "profile": first.profile,
        "seed": first.seed,
        "columns": ["line", "family", "what", "outcome", "law", "questions"],
        "targets": [
            {
                "target": t.target,
                "operators": t.operators,
                "source": t.source,
                "unjudged": t.unjudged,
                "excluded": len(t.excluded),
                "mutants": [[m.line, m.family, m.what, m.outcome, m.law, m.questions] for m in t.mutants],
            }
            for t in targets
        ],
    }
    text = json.dumps(numbers, indent=1).replace("\n     ", " ").replace("\n    ]", "]").replace("\n     ]", "]")
    file.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    unexplained = [m.name for m in mutants if m.outcome is Outcome.SURVIVED and m.name not in EXPLAINED]
    if unexplained:
        sys.exit(f"survivors without an explanation: {', '.join(unexplained)}")


def _survivor(target: TargetScore, m: MutantResult) -> str:
    return (
        f"### `{target.target}`, line {m.line}\n\n```diff\n{m.diff}\n```\n\n{m.reason}, on `{m.case_id}`.\n\n"
        f"{EXPLAINED.get(m.name, 'Not studied yet.')}\n"
    )


def _row(row: Row) -> tuple[str, ...]:
    order = (Outcome.CAUGHT, Outcome.SURVIVED, Outcome.EQUIVALENT, Outcome.REFUSED)
    return (*(str(row.tally.get(o, 0)) for o in order), "-" if row.share is None else percent(row.share))


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
