"""The page of a library on trial, from what benchmarks/check_libraries.py kept; the judgement is a hand's.

    python benchmarks/library_page.py OUT --title mlstm-kernels [--judgements FILE.json] > docs/published/mlstm-kernels-h100.md
    python benchmarks/library_page.py LINES.jsonl --title "Reported defects of fla-core 0.6.0"
    python benchmarks/library_page.py LINES.jsonl --title "mlstm-kernels on an H100" --library mlstm

The second form makes a table of what benchmarks/fla_defects.py or benchmarks/short_trial.py kept, the third one of a library's
functions; results beyond their budget are named, with a case for each function that shows one.

FILE.json maps a function's name to what a person found on looking into it: kernel, convention or ours, and why. A function
without one is marked as not looked into.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trial_targets import LIBRARIES

OPEN = "**not looked into yet**"
# What a crew says of an attempt that it did not finish.
UNANSWERED = ("no answer", "not begun")
# The first of these that is broken is the one to read: one fault breaks many laws.
FIRST = ("contract", "agreement", "gradients")


def lines_of(out: Path) -> list[dict[str, Any]]:
    """What was kept, the last line of each function, in the order of the first."""
    lines = [json.loads(x) for x in (out / "results.jsonl").read_text().splitlines()]
    return list({line["name"]: line for line in lines}.values())


def failures(out: Path, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Broken laws with their failures, the one to read first in front."""
    record = out / f"{name}.json"
    if not record.exists():
        return []
    (result,) = json.loads(record.read_text())["results"]
    broken = [(p["name"], p["failure"]) for p in result["properties"] if p["status"] == "violation"]
    return sorted(broken, key=lambda x: FIRST.index(x[0]) if x[0] in FIRST else len(FIRST))


def refusals(out: Path, name: str) -> list[str]:
    """What the target refused, a sentence each."""
    record = out / f"{name}.json"
    if not record.exists():
        return []
    (result,) = json.loads(record.read_text())["results"]
    return [f"{r['kind']}: {r['message']} ({r['count']} cases, smallest `{r['case_id']}`)" for r in result["refusals"]]


def row(line: Mapping[str, Any], judgement: str) -> str:
    """A row of the table."""
    if "verdict" not in line:
        return f"| `{line['name']}` | {line['operator']} | could not be checked | - | {judgement or line['why']} |"
    verdict = line["verdict"]
    if line["broken"]:
        verdict += ": " + ", ".join(f"`{law}`" for law in line["broken"])
    looked = judgement or ("" if line["verdict"] == "pass" else OPEN)
    return f"| `{line['name']}` | {line['operator']} | {verdict} | {line['judged']} | {looked} |"


def violation(line: Mapping[str, Any], law: str, failure: Mapping[str, Any], judgement: str) -> list[str]:
    """The section of a function with a broken law."""
    evidence, place = failure["evidence"], failure["location"] or {}
    found = evidence["message"] or (
        f"expected {evidence['expected']}, got {evidence['got']} at {evidence['where']}; "
        f"{evidence['how_many']} of {evidence['of']} elements beyond what a single one may be off"
    )
    where = ", ".join(str(place[k]) for k in ("times", "heads", "features") if place.get(k))
    again = line["command"].replace("linverify check", f"linverify replay {failure['case_id']} --target", 1)
    return [
        f"## {line['name']}",
        "",
        f"* `{law}`, case `{failure['case_id']}`",
        f"* {evidence['result']}: {found}",
        f"* wrong: {', '.join(failure['wrong']) or '-'}; right: {', '.join(failure['right']) or '-'}",
        *([f"* where: {where}"] if where else []),
        *([f"* needs: {', '.join(failure['needs'])}"] if failure["needs"] else []),
        f"* diagnosis: {failure['diagnosis']}",
        f"* again: `{again} --property {law}`",
        f"* judgement: {judgement or OPEN}",
        "",
    ]


def page(out: Path, title: str, judgements: Mapping[str, str]) -> str:
    """The whole page as Markdown."""
    lines = lines_of(out)
    versions = json.loads((out / "versions.json").read_text())
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "device")
    text = [
        f"# {title} on trial",
        "",
        f"{versions.get('device', 'device unknown')}; {known}. Numbers count judged (law, case) pairs.",
        "",
        "| function | operator | verdict | judged | after looking into it |",
        "| --- | --- | --- | --- | --- |",
        *(row(line, judgements.get(line["name"], "")) for line in lines),
        "",
    ]
    for line in lines:
        for law, failure in failures(out, line["name"])[:1]:
            text += violation(line, law, failure, judgements.get(line["name"], ""))
    refused = [(line["name"], r) for line in lines for r in refusals(out, line["name"])]
    if refused:
        text += ["## Refused", "", *(f"* `{name}`: {why}" for name, why in refused), ""]
    return "\n".join(text)


# As benchmarks/short_cases.py tells a result that is beyond its budget.
BEYOND = re.compile(r"([^;:]+): (\w+) share ([^, ]+)(?:, RMS error ([^ ]+))? \[([^\]]+)\]")
CAPPED = 1e8  # a share that stands for a value that is not finite


def told(numbers: str) -> tuple[str, str]:
    """What is beyond its budget by kind of case, with shares, and the first case that shows it; the rest as it stands."""
    by_word: dict[str, list[str]] = {}
    for word, name, share, _, _ in BEYOND.findall(numbers):
        known = "not finite" if float(share) > CAPPED else f"{float(share):.3g}"
        by_word.setdefault(word.strip(), []).append(f"{name} {known}")
    first = next((case for *_, case in BEYOND.findall(numbers)), "")
    by_message: dict[str, list[str]] = {}
    for part in BEYOND.sub("", numbers).split(";")[1:]:
        word, _, message = part.strip().partition(": ")
        if message and "not_contiguous" not in message:
            by_message.setdefault(message, []).append(word)
    parts = [f"{word}: {', '.join(names)}" for word, names in by_word.items()]
    parts += [f"{', '.join(words)}: {message}" for message, words in by_message.items()]
    return "; ".join(parts).replace("|", "\\|"), first


def functions(file: Path, library: str, judgements: Mapping[str, str]) -> str:
    """The table of a library's functions, the last line of each that has an answer."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for line in (json.loads(x) for x in file.read_text().splitlines()):
        key = (line["name"], line["what"])
        if line["name"] in LIBRARIES[library].targets and (key not in lines or line["status"] not in UNANSWERED):
            lines[key] = line
    text = ["| function | asked | verdict | judged | beyond the budget (shares), or why not | after looking into it |"]
    text += ["| --- | --- | --- | --- | --- | --- |"]
    cases = []
    for (name, what), line in lines.items():
        judged = re.search(r"(\d+) results, largest share ([\d.e+]+)", line["numbers"])
        beyond, first = told(line["numbers"]) if judged else (line["numbers"].replace("|", "\\|"), "")
        worst = f"{judged[1]}, worst share {judged[2]}" if judged and line["status"] == "pass" else judged and judged[1]
        looked = judgements.get(name, "" if line["status"] == "pass" else OPEN)
        text.append(f"| `{name}` | {what} | {line['status']} | {worst or '-'} | {beyond} | {looked} |")
        cases += [f"* `{name}`: `{first}`"] if first else []
    return "\n".join([*text, "", *(["One case each that shows it:", "", *cases, ""] if cases else [])])


def table(file: Path, title: str, judgements: Mapping[str, str]) -> str:
    """What a crew of processes found, a row an attempt."""
    lines = [json.loads(x) for x in file.read_text().splitlines()]
    printed = [x for x in lines if x["status"] == "printed"]
    rows = [
        f"| {x['name']} | {x['what']} | {x['status']} | {x['numbers'].replace('|', chr(92) + '|')} "
        f"| {judgements.get(x['name'], '')} |"
        for x in lines
        if x not in printed
    ]
    head = ["| | what | found | numbers | after looking into it |", "| --- | --- | --- | --- | --- |"]
    blocks = [f"## {x['name']}\n\n```\n{x['numbers'].strip()}\n```" for x in printed]
    return "\n".join([f"# {title}", "", *head, *rows, "", *blocks])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--judgements", type=Path)
    parser.add_argument("--library", choices=list(LIBRARIES), help="its functions alone")
    given = parser.parse_args(arguments)
    if not given.out.is_file() and not (given.out / "results.jsonl").exists():
        sys.exit(f"expected {given.out}/results.jsonl, which check_libraries.py writes; there is none")
    judgements = json.loads(given.judgements.read_text()) if given.judgements else {}
    if given.library and given.out.is_file():
        print(f"# {given.title}\n\n{functions(given.out, given.library, judgements)}")
        return
    print((table if given.out.is_file() else page)(given.out, given.title, judgements))


if __name__ == "__main__":
    main()
