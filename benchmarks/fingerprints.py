"""Which recipe did an emulated kernel have? Draw recipes at random, emulate a kernel of each, and let the fingerprint say.

    python benchmarks/fingerprints.py --out FILE.jsonl [--count 150]
    python benchmarks/fingerprints.py --table FILE.jsonl

A kernel is emulated by the rounding model with its operands really rounded and everything that stays in float32 perturbed, so
that its last bits differ from every candidate's. The operators are those whose recurrence the model writes out. Resumable.

right: the fingerprint names the recipe, or one that leaves no more of the error (a tie that no residual can break);
wrong: it names one that leaves more, or none.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from linverify import draw, registry
from linverify.case import Case
from linverify.dtype import format_of, round_to
from linverify.ensemble import flipped
from linverify.fingerprinting import GAP, Observed, Search, built, residuals
from linverify.judge import Judge
from linverify.operator import GATE_KINDS
from tests.kinds import PLAIN, suited

BASES = {
    "fp32": ("fp32", "tf32", "tf32rn", "bf16"),
    "bf16": ("native", "fp32", "tf32"),
    "fp16": ("native", "fp32", "tf32"),
}
POINTS = (
    "",
    "scores=fp32",
    "state=fp32",
    "state=native",
    "carry=native",
    "gates=native",
    "cotangents=fp32",
    "scores=tf32",
)
GATES = ("production", "mild", "strong")


def drawn(seed: int) -> tuple[Case, str]:
    """A case and a recipe."""
    r = random.Random(seed)
    operator = registry.operator(r.choice(PLAIN))
    dtype = r.choice(("fp32", "bf16", "fp16"))
    words = [r.choice(BASES[dtype]), r.choice(("C=16", "C=32", "C=64")), r.choice(("", "backward=separate"))]
    point = r.choice([p for p in POINTS if operator.gated or not p.startswith("gates")])
    if r.random() < 0.1:
        words, point = ["fp32", "recurrent"], ""
    case = Case(
        operator.name,
        1,
        r.choice((100, 130, 200)),
        2,
        r.choice((16, 24, 32)),
        r.choice((16, 20, 32)),
        dtype=dtype,
        gate=r.choice(GATES) if operator.gated else "none",
        state="normal",
        final_state=True,
        cotangent="both",
        seed=seed,
    )
    return suited(case, operator), ",".join(w for w in (*words, point) if w)


def run(seed: int) -> dict[str, Any]:
    """Emulate one kernel and say what the fingerprint makes of it."""
    case, text = drawn(seed)
    operator, start = registry.operator(case.operator), perf_counter()
    problem = draw.problem(case, operator)
    answer = Judge(operator, "cpu").answer(problem)
    recipe = built(text, case.dtype, case.dtype)
    gates = tuple(i.name for i in operator.of_kind(*GATE_KINDS))
    _, others = flipped(answer.question, recipe, gates, torch.Generator().manual_seed(seed), 1)
    inputs = {**problem.tensors, "initial_state": problem.initial_state}
    results = {}
    for name, value in others[0].items():
        like = problem.tensors[operator.value_name] if name == "o" else inputs[name[1:]] if name[0] == "d" else None
        dtype = torch.float32 if like is None else like.dtype
        results[name] = round_to(value[0], format_of(dtype)).to(dtype)
    observed = Observed(answer, results)
    search = Search(operator, case.dtype, case.dtype, (observed,))
    match = search.run()
    left = residuals(operator, observed, recipe)
    truth = sum(torch.tensor(sorted(left.values())).clamp(min=2.0**-43).log().tolist()) / len(left)
    alike = [built(t, case.dtype, case.dtype) for t in (match.name, *match.ties) if t]
    plain = [(a.chunk, a.format("scores").name) for a in alike[:1]]
    return {
        "seed": seed,
        "case": case.id,
        "recipe": text,
        "named": match.name,
        "score": match.score,
        "truth": truth,
        "ties": len(match.ties),
        "runner_up": match.runner_up_score,
        "right": bool(match.name) and match.score <= truth + GAP,
        "same": any(a == recipe or _same(a, recipe) for a in alike),
        "chunk": bool(plain) and plain[0][0] == recipe.chunk,
        "format": bool(plain) and plain[0][1] == recipe.format("scores").name,
        "tried": len(search.tried),
        "seconds": round(perf_counter() - start, 2),
    }


def _same(a: object, b: object) -> bool:
    from dataclasses import asdict

    first, second = asdict(a), asdict(b)  # type: ignore[call-overload]  # recipes
    first.pop("name"), second.pop("name")
    return bool(first == second)


def table(lines: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    out = [
        "| dtype | kernels | right | the very recipe is a tie | chunk size right | scores right | median ties |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in ("fp32", "bf16", "fp16", "all"):
        some = [d for d in lines if dtype in (d["case"].split("/")[2], "all")]
        if some:
            counts = Counter({k: sum(d[k] for d in some) for k in ("right", "same", "chunk", "format")})
            ties = sorted(d["ties"] for d in some)[len(some) // 2]
            cells = " | ".join(
                f"{counts[k]} ({counts[k] / len(some):.0%})" for k in ("right", "same", "chunk", "format")
            )
            out.append(f"| {dtype} | {len(some)} | {cells} | {ties} |")
    wrong = [d for d in lines if not d["right"]]
    out += ["", f"Not right: {len(wrong)}", ""]
    out += [
        f"* {d['case'].split('/')[0]} {d['case'].split('/')[2]}, {d['recipe']}: named {d['named'] or 'none'} "
        f"({d['score']:.2f}; the truth leaves {d['truth']:.2f})"
        for d in wrong
    ]
    return "\n".join(out)


def main() -> None:
    """Run what is missing, a line each; or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--count", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
        return
    done = {json.loads(line)["seed"] for line in given.out.read_text().splitlines()} if given.out.exists() else set()
    for seed in range(given.count):
        if seed not in done:
            found = run(seed)
            with given.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            if not found["right"]:
                print({k: v for k, v in found.items() if k != "seed"}, flush=True)


if __name__ == "__main__":
    main()
