"""Judge captured results of H100 kernels, as they are and with planted faults: by the usual rule and by the declared recipe.

    python benchmarks/h100_recipes.py FOLDER --out FILE.jsonl [--only none,scalar] [--jobs 16]
    python benchmarks/h100_recipes.py FOLDER --out FILE.jsonl --clean --seed 5     no faults; other seeds of roundings
    python benchmarks/h100_recipes.py --table FILE.jsonl

FOLDER holds safetensors files as tests/data does. Resumable: cases that FILE already holds are not run again. A fault counts as
found where the tensor is rejected that carries it, and its clean tensor is not.
"""

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from captured import Captured, captured, one_thread
from torch import Tensor

from linverify import budget
from linverify.declared import declared
from linverify.dtype import format_of, round_to
from linverify.judge import Judge
from linverify.reference import chunkwise
from linverify.score import Answer
from linverify.subtracted import Subtraction

GRID = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
DTYPES = ("bf16", "fp16", "fp32")
# Elements of o that a case has changed, one at a time: whether a change of one is seen depends on where it lies.
ELEMENTS = 12
RULES = ("subtracted", "declared", "generic", "rms ratio")
Fault = tuple[str, str, Tensor]  # name, result, value
CASES: list[Captured] = []
_SEEDS = budget.seeds()


def like(x: Tensor, y: Tensor) -> Tensor:
    """Y rounded to x's dtype."""
    return round_to(y, format_of(x.dtype)).to(x.dtype)


def places(case: Captured) -> list[tuple[int, int, int]]:
    """Head, token and column of the elements of o that are changed."""
    generator, (_, T, H, V) = torch.Generator().manual_seed(zlib.crc32(case.name.encode())), case.results["o"].shape
    return [tuple(int(torch.randint(n, (1,), generator=generator)) for n in (H, T, V)) for _ in range(ELEMENTS)]


def element(o: Tensor, place: tuple[int, int, int], size: float) -> Tensor:
    """O with one element changed by so many times its root mean square."""
    (head, token, column), one = place, o.double()
    one[0, token, head, column] += size * o.double().square().mean().sqrt()
    return like(o, one)


def faults(case: Captured, answer: Answer) -> Iterator[Fault]:
    """Planted changes of a correct kernel's results; those of one name differ by the place that they change."""
    r, ref = case.results, answer.reference
    o = r["o"]
    elements, T = places(case), o.shape[1]
    stale, (h, t, d) = o.clone(), elements[0]
    start = 16 * (T // 16 - 1)
    stale[:, start : start + 16, h, :16] = o[:, start - 16 : start, h, :16]
    yield "one stale 16x16 tile", "o", stale
    last = o.double()
    last[:, -1] *= 1.01
    yield "last token 1 %", "o", like(o, last)
    double = o.clone()
    double[0, t, h, d] *= 2
    yield "one element x2", "o", double
    yield "scale left out of dq", "dq", like(r["dq"], r["dq"].double() * 8)
    if "dg" in r:
        end = ref["state"] * case.problem.cotangents["state"].double()  # [B, H, K, V]
        missing = end.sum((2, 3)) if r["dg"].dim() == 3 else end.sum(3)
        yield "dg without final-state term", "dg", like(r["dg"], r["dg"].double() - missing[:, None])
        swapped = case.problem.tensors["g"].flip(2)
        other = chunkwise(case.problem.with_tensors(g=swapped), case.operator)
        for n in r:
            if n != "dg":
                yield f"heads' gates swapped|{n}", n, like(r[n], r[n].double() + other[n] - ref[n])
    for size in GRID:
        yield f"o all|{size:g}", "o", like(o, o.double() * (1 + size))
        row = o.double()
        row[:, t, h] *= 1 + size
        yield f"o row|{size:g}", "o", like(o, row)
        for place in elements:
            yield f"o element|{size:g}", "o", element(o, place, size)
        dk = r["dk"].double()
        dk[:, t, h] *= 1 + size
        yield f"dk row|{size:g}", "dk", like(r["dk"], dk)


def rms_ratio(result: str, value: Tensor, ref: Tensor) -> float:
    """The rule of flash-linear-attention's tests, 1 at its limit: 0.005, or 0.02 for gate and strength gradients."""
    limit = 0.02 if result in ("dg", "dbeta") else 0.005
    return float((value.double() - ref).square().mean().sqrt() / ref.square().mean().sqrt()) / limit


def run(case: Captured, *, planted: bool = True) -> dict[str, Any]:
    """Shares of every clean tensor, and which faults each rule finds."""
    judge, start = Judge(case.operator, "cpu"), perf_counter()
    answer = judge.answer(case.problem)
    declaration = declared(case.recipe)
    assert declaration is not None
    recipe = declaration.recipe(case.dtype, case.precision)

    assert recipe is not None
    subtraction = Subtraction(case.operator, answer, recipe)

    def verdicts(result: str, value: Tensor) -> dict[str, tuple[str, float]]:
        sharp = judge.score(answer, result, value, case.precision, recipe)
        usual = judge.score(answer, result, value, case.precision)
        ratio = rms_ratio(result, value, answer.reference[result])
        rms = ("reject" if not ratio <= 1 else "pass", ratio)
        left = subtraction.score(result, value, judge.axes(result))
        # what is left counts beside the declared recipe's own judgement
        parts = [(sharp.outcome, sharp.share), *([] if left is None else [(left.outcome, left.share)])]
        both = max(parts, key=lambda p: (p[0] == "reject", p[1]))
        return {
            "subtracted": both,
            "declared": (sharp.outcome, sharp.share),
            "generic": (usual.outcome, usual.share),
            "rms ratio": rms,
        }

    clean = {n: verdicts(n, v) for n, v in case.results.items()}
    caught: dict[str, list[dict[str, bool]]] = {}
    for name, result, value in faults(case, answer) if planted else ():
        seen = verdicts(result, value)
        whole = name.split("|")[0] if name.startswith("heads") else name
        caught.setdefault(whole, []).append(
            {r: seen[r][0] == "reject" and clean[result][r][0] != "reject" for r in RULES}
        )
    # Swapped gates show in any of the results; of changed elements each is a trial of its own.
    found = {
        name: {r: any(t[r] for t in trials) if name.startswith("heads") else mean(t[r] for t in trials) for r in RULES}
        for name, trials in caught.items()
    }
    return {
        "case": case.name,
        "kernel": case.kernel,
        "dtype": case.dtype,
        "regime": case.regime,
        "weak_dg": case.sums_in_16_bits,
        "clean": clean,
        "found": found,
        "seconds": round(perf_counter() - start, 1),
    }


def alarms(lines: list[dict[str, Any]]) -> list[str]:
    """What became of the clean tensors."""
    out = ["| rule | tensors | false alarms | marginal | largest share |", "| --- | --- | --- | --- | --- |"]
    for rule in RULES:
        clean = [(v[rule], n, d) for d in lines for n, v in d["clean"].items() if not (d["weak_dg"] and n == "dg")]
        outcomes = [v[0] for v, _, _ in clean]
        worst, n, d = max(((v[1], n, d["case"]) for v, n, d in clean), key=lambda x: x[0])
        counts = f"{len(clean)} | {outcomes.count('reject')} | {outcomes.count('marginal')}"
        out.append(f"| {rule} | {counts} | {worst:.2f} ({d.replace('|', ' ')}, {n}) |")
    out += ["", "Gate gradients that are summed in 16 bits (a real loss), share of the budget, declared / generic:", ""]
    for d in lines:
        if d["weak_dg"]:
            a, b = d["clean"]["dg"]["declared"], d["clean"]["dg"]["generic"]
            out.append(f"* {d['case'].replace('|', ' ')}: {a[1]:.2f} ({a[0]}) / {b[1]:.2f} ({b[0]})")
    return out


def rates(lines: list[dict[str, Any]], fault: str, rule: str) -> str:
    """Share of the cases, and of the places within them, in which a rule finds a fault, by dtype."""
    cells = []
    for dtype in (*DTYPES, "all"):
        hits = [d["found"][fault][rule] for d in lines if dtype in (d["dtype"], "all")]
        cells.append(f"{sum(hits) / len(hits):.2f}" if hits else "-")
    return " / ".join(cells)


def smallest(lines: list[dict[str, Any]], change: str, rule: str) -> str:
    """Smallest size of a change that is found in nine cases of ten (of elements: in nine of ten), and in half of them."""
    sizes = []
    for share in (0.9, 0.5):
        good = [g for g in GRID if sum(d["found"][f"{change}|{g:g}"][rule] for d in lines) >= share * len(lines)]
        sizes.append(f"{min(good):g}" if good else "> 1")
    return " / ".join(sizes)


def table(lines: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    if not any(d["found"] for d in lines):
        return "\n".join(alarms(lines))
    named = [n for n in dict.fromkeys(n for d in lines for n in d["found"]) if "|" not in n]
    out = [
        *alarms(lines),
        "",
        "| fault | " + " | ".join(f"{r}: bf16 / fp16 / fp32 / all" for r in RULES) + " | cases |",
    ]
    out.append("| --- |" + " --- |" * (len(RULES) + 1))
    for n in named:
        # a gate gradient that was never right tells nothing about a term that it lacks
        some = [d for d in lines if n in d["found"] and not (n.startswith("dg") and d["weak_dg"])]
        out.append(f"| {n} | " + " | ".join(rates(some, n, r) for r in RULES) + f" | {len(some)} |")
    out += ["", "Smallest relative change found in at least 90 % / 50 % of the cases:", ""]
    out += ["| change | dtype | " + " | ".join(RULES) + " |", "| --- | --- |" + " --- |" * len(RULES)]
    for what in ("o all", "o row", "dk row", "o element"):
        for dtype in DTYPES:
            some = [d for d in lines if d["dtype"] == dtype]
            out.append(f"| {what} | {dtype} | " + " | ".join(smallest(some, what, r) for r in RULES) + " |")
    return "\n".join(out)


def nth(i: int, seed: int, *, planted: bool) -> dict[str, Any]:
    """Run one of the cases that were read before this process forked; `seed` is added to those of all roundings."""
    seeds = tuple(s + seed for s in _SEEDS)
    budget.seeds = lambda: seeds
    return run(CASES[i], planted=planted)


def main() -> None:
    """Run what is missing, a line each; or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    one_thread()
    if given.table:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
        return
    done = {json.loads(line)["case"] for line in given.out.read_text().splitlines()} if given.out.exists() else set()
    kernels = tuple(k for k in given.only.split(",") if k)
    CASES.extend(c for c in captured(given.folder, prefix=given.prefix, kernels=kernels) if c.name not in done)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("fork")) as pool, given.out.open("a") as file:
        for finished in as_completed(
            [pool.submit(nth, i, given.seed, planted=not given.clean) for i in range(len(CASES))]
        ):
            found = finished.result()
            file.write(json.dumps(found) + "\n")
            file.flush()
            worst = {r: max((v[r][1], n) for n, v in found["clean"].items() if math.isfinite(v[r][1])) for r in RULES}
            shown = {r: f"{s:.2f} {n}" for r, (s, n) in worst.items()}
            print(found["case"], f"{found['seconds']} s", shown, flush=True)


if __name__ == "__main__":
    main()
