"""Correct low-precision kernels, judged as `check` would judge a kernel of which it knows nothing: every alarm is a false one.

    python benchmarks/correct_runs.py --out FILE.jsonl [--count 1000] [--jobs 8] [--seconds 400] [--only gla,kda]
    python benchmarks/correct_runs.py --table FILE.jsonl

`count` runs a precision class (fp32 in IEEE arithmetic, tf32, bf16, fp16), spread evenly over the operators. A run is a case,
drawn as the law about gradients draws its own, and a kernel, drawn from what careful published kernels do
(correct_choices.py). Resumable; stops starting runs after `seconds`.
"""

import argparse
import dataclasses
import json
import os
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from correct_choices import PRECISIONS, kernel_for
from correct_results import results

from linverify import draw, explore, registry
from linverify.case import Case
from linverify.judge import Judge
from linverify.profile import PROFILES
from linverify.property import Space
from linverify.score import Unjudgeable
from linverify.strategies import strata

OPERATORS = (
    *("linear_attention", "retention", "simple_gla", "gla", "rwkv6"),
    *("delta_rule", "gated_delta_rule", "kda", "rwkv7", "mamba2"),
)
BY_CHANNEL = ("gla", "rwkv6", "kda", "rwkv7")
SCALAR = ("retention", "simple_gla", "gated_delta_rule", "mamba2")
LOW_RANK = ("delta_rule", "gated_delta_rule", "kda", "rwkv7")
# Which operators have a choice, and which choices there are token by token.
CHOICES: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("operands", "chunk", "values", "scale", "sums", "first"), lambda _: True),
    **dict.fromkeys(("sub", "blocks", "anchor"), lambda o: o in BY_CHANNEL),
    **dict.fromkeys(("write", "read", "gaps"), lambda o: o in SCALAR),
    **dict.fromkeys(("scores",), lambda o: o not in BY_CHANNEL),
    **dict.fromkeys(("exponential", "gate"), lambda o: o in (*BY_CHANNEL, *SCALAR)),
    **dict.fromkeys(("solver", "solve", "stored"), lambda o: o in LOW_RANK),
    **dict.fromkeys(("strength",), lambda o: o in LOW_RANK and o != "rwkv7"),
    **dict.fromkeys(("bonus",), lambda o: o == "rwkv6"),
}
STEPPED = ("scale", "sums", "exponential", "gate", "bonus")
BLOCK = 10
SIZES = dataclasses.replace(PROFILES["standard"], name="correct runs", cases=BLOCK, max_T=300, rows=4)
SPACE = Space(mixed=True, packed=None, cotangents=("o", "state", "both"))
OFFERED = frozenset({"scale", "initial_state", "final_state", "packed", "gradients", "groups"})


def cases(operator: str, precision: str, block: int) -> tuple[Case, ...]:
    """The cases of a block, drawn by the project's own strategies."""
    dtype = "fp32" if precision == "tf32" else precision
    found = strata(registry.operator(operator), OFFERED, SPACE, profile=SIZES, device="cpu", dtypes=(dtype,), claims={})
    seed = zlib.crc32(f"{operator}/{precision}/{block}".encode())
    # Hypothesis starts with the simplest case: one a block is enough of that
    return explore.draw(found[0].strategy, BLOCK, seed)


def run(case: Case, precision: str, label: str) -> dict[str, Any]:
    """Judge one correct kernel on one case."""
    start, operator = time.perf_counter(), registry.operator(case.operator)
    problem, judge = draw.problem(case, operator), Judge(operator, "cpu")
    answer = judge.answer(problem)
    kernel = kernel_for(answer.recurrence.rows, precision, random.Random(label))
    judged: dict[str, tuple[str, float, str, str]] = {}
    for n, value in results(problem, operator, kernel).items():
        before = dict(judge.counts)
        try:
            score = judge.score(answer, n, value, precision)
            if score.outcome == "reject" and judge.certify(answer, n, score):
                score = judge.score(answer, n, value, precision)
        except Unjudgeable:
            judged[n] = ("unjudgeable", 0.0, "", "")
            continue
        how = next(k for k, c in judge.counts.items() if c > before[k])
        judged[n] = (score.outcome, round(score.share, 4), score.statistic, how)
    return {
        "run": label,
        "case": case.id,
        "precision": precision,
        "kernel": dataclasses.asdict(kernel),
        "judged": judged,
        "seconds": round(time.perf_counter() - start, 2),
    }


def block(operator: str, precision: str, number: int, have: frozenset[str], until: float) -> list[dict[str, Any]]:
    """The runs of a block that are missing, until the time is over."""
    torch.set_num_threads(1)
    found = []
    for i, case in enumerate(cases(operator, precision, number)):
        label = f"{operator}/{precision}/{number}/{i}"
        if label not in have and time.time() < until:
            found.append(run(case, precision, label))
    return found


def alarms(line: dict[str, Any]) -> list[str]:
    """Results of a correct kernel that were rejected."""
    return [n for n, (outcome, *_) in line["judged"].items() if outcome == "reject"]


def _row(name: str, lines: list[dict[str, Any]]) -> str:
    judged = [(j, n, d) for d in lines for n, j in d["judged"].items()]
    worst, n, d = max(((j[1], n, d["run"]) for j, n, d in judged), default=(0.0, "", ""))
    outcomes = Counter(j[0] for j, _, _ in judged)
    how = Counter(j[3] for j, _, _ in judged)
    settled = (how["screened"] + how["analytic"]) / max(1, len(judged))
    wolf = sum(bool(alarms(d)) for d in lines)
    cells = f"{len(lines)} | {len(judged)} | {wolf} | {outcomes['marginal']} | {worst:.2f} ({n}, {d})"
    return f"| {name} | {cells} | {settled:.0%} |"


def table(lines: list[dict[str, Any]]) -> str:
    """The runs as Markdown: by precision, operator, form and choice."""
    head = "| {} | runs | results | false alarms | marginal results | largest share | settled without realisations |"
    out = []

    def part(title: str, name: Callable[[dict[str, Any]], str], some: list[dict[str, Any]]) -> None:
        out.extend([head.format(title), "| --- |" + " --- |" * 6])
        keys = sorted({name(d) for d in some}, key=lambda k: (not k.isdigit(), int(k) if k.isdigit() else 0, k))
        out.extend([_row(k, [d for d in some if name(d) == k]) for k in keys])
        out.append("")

    part("precision", lambda d: str(d["precision"]), lines)
    out.insert(-1, _row("all", lines))
    part("operator, precision", lambda d: f"{d['run'].split('/')[0]}, {d['precision']}", lines)
    part("form, precision", lambda d: f"{d['kernel']['form']}, {d['precision']}", lines)
    for field, has in CHOICES.items():
        some = [d for d in lines if d["kernel"]["form"] != "recurrent" or field in STEPPED]
        part(field, lambda d, field=field: str(d["kernel"][field]), [d for d in some if has(d["run"].split("/")[0])])
    wolves = [f"* {d['run']} {n}: {d['judged'][n]} {d['case']} {d['kernel']}" for d in lines for n in alarms(d)]
    return "\n".join([*out, *wolves])


def blocks(given: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """What is to be run, so that a part of it is spread evenly."""
    operators = given.only.split(",")
    for number in range(given.first, given.first - (-given.count // (BLOCK * len(OPERATORS)))):
        for operator in operators:
            for precision in given.precisions.split(","):
                yield operator, precision, number


def main() -> None:
    """Run what is missing, a line each; or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="runs a precision class")
    parser.add_argument("--first", type=int, default=0, help="number of the first block: others draw other runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", default=",".join(OPERATORS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    given = parser.parse_args()
    if given.table:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
        return
    until = time.time() + given.seconds
    have = {json.loads(line)["run"] for line in given.out.read_text().splitlines()} if given.out.exists() else set()
    with ProcessPoolExecutor(given.jobs) as pool, given.out.open("a") as file:
        asked = [pool.submit(block, *b, frozenset(have), until) for b in blocks(given)]
        for done in as_completed(asked):
            for line in done.result():
                file.write(json.dumps(line) + "\n")
                if wolf := alarms(line):
                    print(line["run"], {n: line["judged"][n] for n in wolf}, line["case"], line["kernel"], flush=True)
            file.flush()


if __name__ == "__main__":
    main()
