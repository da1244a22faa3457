"""Check every built-in torch form of every operator at several seeds: correct kernels, so every alarm is a false one.

    python benchmarks/no_false_alarm.py --out FILE.jsonl [--profile standard] [--seeds 0,1,2,3,4] [--jobs 2] [--only gla,kda]
                                        [--laws linearity,gate_limits]

One session an operator and seed; its forms share references. Resumable: what FILE holds of the same laws
is not run again.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

FORMS = ("torch_naive", "torch_recurrent", "torch_chunkwise")


def session(operator: str, seed: int, profile: str, laws: tuple[str, ...]) -> dict[str, Any]:
    """Check the forms of one operator; return counts, times and what was not a pass."""
    import torch

    from linverify import registry
    from linverify.session import Plan, Shared, check
    from linverify.silence import Silence

    torch.set_num_threads(1)
    shared, start, forms = Shared(), time.perf_counter(), {}
    have = {f"torch_{f}" for f in registry.operator(operator).form_names}
    for form in (f for f in FORMS if f in have):
        plan = Plan(f"linverify.impls.{form}:{operator}", device="cpu", profile=profile, seed=seed, properties=laws)
        (result,) = check(plan, Silence(), shared)
        forms[form] = {
            "verdict": result.verdict,
            "cases": result.cases,
            "judged": sum(p.cases for p in result.properties),
            "worst": max((p.worst_budget_fraction or 0.0 for p in result.properties if p.required), default=0.0),
            "alarms": [
                (p.name, p.status, p.failure.case_id, p.failure.diagnosis)
                for p in result.properties
                if p.required and p.failure is not None
            ],
            "not_asked": [p.name for p in result.properties if p.required and p.status in ("unchecked", "refused")],
        }
    return {
        "operator": operator,
        "seed": seed,
        "profile": profile,
        "laws": laws,
        "seconds": round(time.perf_counter() - start, 1),
        "forms": forms,
    }


def main() -> None:
    """Run what is missing, a line each."""
    from linverify import registry

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default=",".join(registry.operators()))
    parser.add_argument("--laws", default="", help="these alone; default: all")
    given = parser.parse_args()
    laws = tuple(filter(None, given.laws.split(",")))
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    have = {(d["operator"], d["seed"], d["profile"], tuple(d.get("laws", ()))) for d in done}
    wanted = [(o, int(s), given.profile, laws) for s in given.seeds.split(",") for o in given.only.split(",")]
    with ProcessPoolExecutor(given.jobs) as pool:
        runs = [pool.submit(session, *run) for run in wanted if run not in have]
        for run in as_completed(runs):
            found = run.result()
            with given.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            worst = {f: f"{v['worst']:.2f}" for f, v in found["forms"].items()}
            alarms = [a for v in found["forms"].values() for a in v["alarms"]]
            print(found["operator"], found["seed"], f"{found['seconds']} s", worst, alarms or "no alarm", flush=True)


if __name__ == "__main__":
    main()
