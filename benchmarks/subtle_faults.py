"""Subtle faults in low-precision kernels of six operators: who finds them, and who cries wolf.

    python benchmarks/subtle_faults.py --out FILE.jsonl [--seeds 0,1] [--jobs 16]
    python benchmarks/subtle_faults.py --table FILE.jsonl

Rules: linverify without and with a declared recipe, and "explained": whether the declared recipe's simulated errors leave less
than 1/e of a result's error energy, what a check with a declared recipe tells besides its verdict; the RMS ratio of
flash-linear-attention's tests (0.005; 0.02 for gates and strengths); torch.allclose with torch.testing's defaults for the
dtype; KernelBench's atol = rtol = 1e-2; FlashAttention's "at most twice the error of the same thing in eager torch". All see
the same tensors. Resumable.
"""

import argparse
import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rules import beyond_twice, not_close, rms_ratio
from subtle_kernels import CHUNK, INSIDE, chunked, stepped
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.fingerprinting import MATCH, Observed, built, residuals
from linverify.judge import Judge
from linverify.problem import Problem
from linverify.score import Answer

OPERATORS = ("linear_attention", "retention", "simple_gla", "gla", "delta_rule", "gated_delta_rule")
PRECISIONS = ("bf16", "fp16", "tf32", "fp32")
RULES = ("declared", "explained", "generic", "rms ratio", "allclose", "1e-2", "2x eager")
LIMITS = {torch.bfloat16: (1.6e-2, 1e-5), torch.float16: (1e-3, 1e-5), torch.float32: (1.3e-6, 1e-5)}
# As read in the kernel's source.
RECIPE = f"{{}},C={CHUNK},sub={CHUNK},scaled_query=fp32,cotangents=fp32,u=fp32"
Results = dict[str, Tensor]


def rows(problem: Problem, operator: str) -> dict[str, Tensor]:
    """The inputs in float32, a row a head: [H, T, .]."""
    out = {}
    for n, t in problem.tensors.items():
        y = t.float()[0].movedim(1, 0)
        out[n] = y if y.dim() == 3 else y[..., None]
    if operator == "retention":
        H, T = out["q"].shape[:2]
        gamma = 1 - torch.exp2(-5.0 - torch.arange(H, dtype=torch.float64))
        out["g"] = gamma.log().float()[:, None, None].expand(H, T, 1).contiguous()
    return out


def kernel(problem: Problem, operator: str, fmt: str, fault: str = "", *, eager: torch.dtype | None = None) -> Results:
    """What the kernel returns, in the dtypes it should; with `eager`, what the plain recurrence in that dtype returns."""
    x = rows(problem, operator)
    assert problem.initial_state is not None
    leaves = {n: t.clone().to(eager or torch.float32).requires_grad_() for n, t in x.items()}
    state = problem.initial_state[0].to(eager or torch.float32).requires_grad_()
    scale = float(x["q"].shape[-1]) ** -0.5
    o, final = stepped(leaves, state, scale) if eager else chunked(leaves, state, scale, fmt, fault)
    do, ds = problem.cotangents["o"][0].movedim(1, 0), problem.cotangents["state"][0]
    names = [n for n in leaves if n in problem.tensors]
    grads = torch.autograd.grad(
        [o, final], [*(leaves[n] for n in names), state], [do.to(o.dtype), ds.to(final.dtype)], allow_unused=True
    )

    def back(y: Tensor, like: Tensor) -> Tensor:
        y = y.movedim(0, 1)[None]
        return (y if like.dim() == 4 else y[..., 0]).to(like.dtype)

    results = {"o": back(o.detach(), problem.tensors["v"]), "state": final.detach()[None].float()}
    for n, g in zip(names, grads[:-1], strict=True):
        results[f"d{n}"] = back(torch.zeros_like(leaves[n]) if g is None else g, problem.tensors[n])
    results["dinitial_state"] = grads[-1][None].float()
    return results


def after(results: Results, answer: Answer, seed: int) -> Iterator[tuple[str, Results]]:
    """Faults of what comes back: (name, the tensors that change)."""
    g = torch.Generator().manual_seed(seed)
    o, dv, dk = (results[n] for n in ("o", "dv", "dk"))
    _, T, H, V = o.shape
    t, h, d = (int(torch.randint(n, (1,), generator=g)) for n in (T, H, V))

    def put(x: Tensor, index: Any, value: Any) -> Tensor:
        y = x.clone()
        y[index] = value
        return y

    yield "last token 1 %", {"o": put(o, (0, -1), (o[0, -1].double() * 1.01).to(o.dtype))}
    yield "one element x2", {"o": put(o, (0, t, h, d), o[0, t, h, d] * 2)}
    yield "one element of dk x2", {"dk": put(dk, (0, t, h, 0), dk[0, t, h, 0] * 2)}
    yield "a stale row", {"o": put(o, (0, t, h), o[0, t - 1, h])}
    yield "a stale tile", {"o": put(o, (0, slice(16, 32), h, slice(0, 16)), o[0, 0:16, h, 0:16])}
    yield "a zero tile of dv", {"dv": put(dv, (0, slice(16, 32), h, slice(0, 16)), 0)}
    yield "scale left out of dq", {"dq": results["dq"] * o.new_tensor(results["dq"].shape[-1] ** 0.5).to(o.dtype)}
    if "dg" in results:
        end = answer.reference["state"] * answer.problem.cotangents["state"].double()
        dg = results["dg"]
        missing = end.sum((2, 3)) if dg.dim() == 3 else end.sum(3)
        yield "dg without final-state term", {"dg": (dg.double() - missing[:, None]).to(dg.dtype)}
        yield "dg one token late", {"dg": torch.cat([dg[:, 1:], dg[:, -1:]], 1)}


def alarms(judge: Judge, answer: Answer, tensors: Results, eager: Results, precision: str) -> dict[str, bool]:
    """Which rules object to any of these tensors."""
    recipe = built(RECIPE.format(precision), "fp32" if precision == "tf32" else precision, precision)
    found = dict.fromkeys(RULES, False)
    left = residuals(judge.operator, Observed(answer, tensors), recipe)
    found["explained"] = any(share > math.exp(MATCH) for share in left.values())
    for n, value in tensors.items():
        ref = answer.reference[n]
        found["declared"] |= judge.score(answer, n, value, precision, recipe).outcome == "reject"
        found["generic"] |= judge.score(answer, n, value, precision).outcome == "reject"
        limit = 0.02 if n in ("dg", "dbeta") else 0.005
        found["rms ratio"] |= rms_ratio(value, ref, limit)
        found["allclose"] |= not_close(value, ref, *LIMITS[value.dtype])
        found["1e-2"] |= not_close(value, ref, 1e-2, 1e-2)
        found["2x eager"] |= beyond_twice(value, ref, eager[n])
    return found


def run(operator_name: str, precision: str, T: int, seed: int) -> dict[str, Any]:
    """One correct kernel and all faults in it."""
    operator, start = registry.operator(operator_name), perf_counter()
    dtype = "fp32" if precision == "tf32" else precision
    gate = ("mild", "production")[seed % 2] if operator.gated else "none"
    case = Case(
        *(operator_name, 1, T, 2, 32, 24),
        dtype=dtype,
        gate=gate,
        state="normal",
        final_state=True,
        cotangent="both",
        seed=seed,
    )
    problem = draw.problem(case, operator)
    judge = Judge(operator, "cpu")
    answer = judge.answer(problem)
    eager = kernel(problem, operator_name, precision, eager=problem.tensors["v"].dtype)
    clean = kernel(problem, operator_name, precision)
    by_tensor = {n: alarms(judge, answer, {n: v}, eager, precision) for n, v in clean.items()}
    wolf = {r: any(a[r] for a in by_tensor.values()) for r in RULES}
    found: dict[str, dict[str, bool]] = {}

    def caught(tensors: Results) -> dict[str, bool]:
        # an alarm on a tensor that alarms when it is right tells nothing
        seen = dict.fromkeys(RULES, False)
        for n, v in tensors.items():
            for rule, alarm in alarms(judge, answer, {n: v}, eager, precision).items():
                seen[rule] |= alarm and not by_tensor[n][rule]
        return seen

    for fault, only in INSIDE.items():
        if (not only or operator_name in only) and not (precision == "bf16" and fault == "scores in bf16"):
            tensors = kernel(problem, operator_name, precision, fault)
            if any(not torch.equal(tensors[n], clean[n]) for n in clean):
                found[fault] = caught(tensors)
    for fault, tensors in after(clean, answer, seed):
        found[fault] = caught(tensors)
    return {
        "operator": operator_name,
        "precision": precision,
        "T": T,
        "seed": seed,
        "wolf": wolf,
        "found": found,
        "seconds": round(perf_counter() - start, 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    out = []
    for precision in (*PRECISIONS, "all"):
        some = [d for d in lines if precision in (d["precision"], "all")]
        if not some:
            continue
        out += [f"\n### {precision}: {len(some)} kernels\n", "| fault | n | " + " | ".join(RULES) + " |"]
        out.append("| --- | --- |" + " --- |" * len(RULES))
        wolf = [f"{sum(d['wolf'][r] for d in some) / len(some):.2f}" for r in RULES]
        out.append(f"| (none: false alarms) | {len(some)} | " + " | ".join(wolf) + " |")
        for fault in dict.fromkeys(f for d in some for f in d["found"]):
            hits = [d["found"][fault] for d in some if fault in d["found"]]
            cells = " | ".join(f"{sum(h[r] for h in hits) / len(hits):.2f}" for r in RULES)
            out.append(f"| {fault} | {len(hits)} | {cells} |")
    return "\n".join(out)


def main() -> None:
    """Run what is missing, a line each; or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
        return
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    have = {(d["operator"], d["precision"], d["T"], d["seed"]) for d in done}
    asked = [
        key
        for seed, T, operator, precision in product(given.seeds.split(","), (100, 65), OPERATORS, PRECISIONS)
        if (key := (operator, precision, T, int(seed))) not in have
    ]
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("fork")) as pool, given.out.open("a") as file:
        for finished in as_completed([pool.submit(run, *key) for key in asked]):
            found = finished.result()
            file.write(json.dumps(found) + "\n")
            file.flush()
            missed = [f for f, h in found["found"].items() if not h["generic"]]
            wolf = [r for r, a in found["wolf"].items() if a]
            what = f"{found['seconds']} s; false: {wolf}; missed: {missed}"
            print(*(found[n] for n in ("operator", "precision", "T", "seed")), what, flush=True)


if __name__ == "__main__":
    main()
