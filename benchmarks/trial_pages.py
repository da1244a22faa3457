"""The tables in the pages of libraries on trial, from the records beside them; the judgements are a hand's.

    python benchmarks/trial_pages.py [--check] [--trial short.jsonl ...] [--reported fla_defects.jsonl ...]

A page of docs/published says where a table goes: ``<!-- table: gpu mlstm -->`` is one of a library's functions from
trial-h100.jsonl (benchmarks/short_trial.py), ``cpu`` from trial-cpu.jsonl (benchmarks/check_libraries.py), ``reported`` from
trial-reported-h100.jsonl (benchmarks/fla_defects.py), ``script NAME`` what a reproducer printed on the GPU.
--trial and --reported first put a run's lines into the records, an answer in place of an older one.
trial-judgements.json maps a function or a thread to what a person found on looking into it. With --check a page that is not
what its records say is an error.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from library_page import UNANSWERED, functions, row, table
from trial_targets import LIBRARIES

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "published"
MACHINE = re.compile(r"/[\w./-]*?/(?:site-packages|site|src)/")
TABLE = re.compile(r"(<!-- table: ([^>]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def lines(name: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of a record."""
    return [json.loads(x) for x in (folder / name).read_text(encoding="utf-8").splitlines()]


def made(asked: str, folder: Path) -> str:
    """One table.

    Raises:
        ValueError: nothing of that kind is known.
    """
    kind, _, name = asked.partition(" ")
    judgements = json.loads((folder / "trial-judgements.json").read_text(encoding="utf-8"))
    if kind == "gpu":
        return functions(folder / "trial-h100.jsonl", name, judgements)
    if kind == "cpu":
        known = {x["name"]: x for x in lines("trial-cpu.jsonl", folder) if x["name"] in LIBRARIES[name].targets}
        head = ["| function | operator | verdict | judged | after looking into it |", "| --- | --- | --- | --- | --- |"]
        return "\n".join([*head, *(row(x, judgements.get(f"{n} on a CPU", "")) for n, x in known.items()), ""])
    if kind == "reported":
        return table(folder / "trial-reported-h100.jsonl", "", judgements).partition("\n\n")[2].strip() + "\n"
    if kind == "script":
        found = [x["numbers"] for x in lines("trial-h100.jsonl", folder) if x["name"] == name]
        if not found:
            return "(not run on the GPU yet)\n"
        return "\n".join(f"    {x}".rstrip() for x in found[-1].strip().splitlines()) + "\n"
    raise ValueError(f"expected gpu, cpu, reported or script, got {asked!r}")


def filled(text: str, folder: Path) -> str:
    """A page with its tables."""
    return TABLE.sub(lambda found: f"{found[1]}\n{made(found[2], folder)}\n{found[3]}", text)


def add(record: Path, run: Path) -> None:
    """Put the answers of a run into a record; paths of the machine that made them are cut to what lies in a package."""
    known = {(x["name"], x["what"]): x for x in lines(record.name, record.parent)}
    for line in lines(run.name, run.parent):
        if line["status"] not in UNANSWERED:
            known[line["name"], line["what"]] = {**line, "numbers": MACHINE.sub("", line["numbers"])}
    record.write_text("".join(json.dumps(x) + "\n" for x in known.values()), encoding="utf-8")


def main() -> None:
    """Fill every page in, or say which is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--trial", type=Path, nargs="+", default=[])
    parser.add_argument("--reported", type=Path, nargs="+", default=[])
    given = parser.parse_args()
    for run in given.trial:
        add(PUBLISHED / "trial-h100.jsonl", run)
    for run in given.reported:
        add(PUBLISHED / "trial-reported-h100.jsonl", run)
    stale = []
    for page in sorted(PUBLISHED.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        wanted = filled(text, PUBLISHED)
        if wanted != text:
            stale.append(page.name)
            if not given.check:
                page.write_text(wanted, encoding="utf-8")
    if given.check and stale:
        sys.exit(f"not what their records say: {', '.join(stale)}; run python benchmarks/trial_pages.py")


if __name__ == "__main__":
    main()
