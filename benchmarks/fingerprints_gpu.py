"""Fingerprints of kernels on a GPU, beside the recipes that their sources say: flash-linear-attention's and this project's own.

    python benchmarks/fingerprints_gpu.py [--jobs 12] [--seconds 60] [--only fla:chunk_gla,triton:gla] [--markdown FILE]

A process a kernel and dtype, so that one that is lost (an illegal access, a hang) costs its own row only: it runs the kernel on
one case of 100 tokens, and searches on the CPU with `seconds` to spend.
`right` means what it does in fingerprints.py: the recipe that is named leaves as little of the error as the source's does, or
less; and that the source's explains it at all. Exit code 1 where a fingerprint is not right.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from captured import KERNELS
from torch import Tensor

from linverify import autotune, draw, registry
from linverify.binding import bind
from linverify.case import Case
from linverify.describe import load
from linverify.fingerprinting import BY_SIZE, GAP, Observed, Search, built, mean_log, residuals
from linverify.judge import Judge
from linverify.recipe import precision_class

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
DTYPES = ("bf16", "fp16", "fp32")
# Seconds that importing, compiling and running a kernel may take beside the search.
BESIDE = 150.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is fingerprinted.

    Attributes:
        module, function: where it is.
        operator: what it computes.
        source: its recipe as its source says, in the words of a declaration.
        dtypes: that it takes.
    """

    module: str
    function: str
    operator: str
    source: str
    dtypes: tuple[str, ...] = DTYPES


def _fla(kernel: str) -> str:
    return KERNELS[kernel][1]


# Products of this project's chunkwise kernels take bf16 operands as bf16, fp16 ones as TF32 rounded to nearest, and leave
# float32 to the tensor core, which truncates; in bf16 a gate per channel leaves the blocks of a chunk's scores in float32,
# which it truncates, too (impls/triton_chunkwise.py).
_OWN = "tf32,backward=separate"
_OWN_CHUNKS = f"bf16:bf16,backward=separate;fp16:tf32rn,backward=separate;fp32:{_OWN}"
_OWN_CHANNELS = (
    f"bf16:bf16,backward=separate,blocks=tf32;fp16:tf32rn,backward=separate,blocks=tf32rn;fp32:{_OWN},blocks=tf32"
)
GUARDED = "fla_guard_lifted"  # fla refuses two backward passes on Hopper; the guard is lifted there

ALL = {
    "fla:chunk_gla": Kernel("fla.ops.gla", "chunk_gla", "gla", _fla("diag")),
    "fla:fused_recurrent_gla": Kernel("fla.ops.gla", "fused_recurrent_gla", "gla", _fla("diagrec")),
    "fla:chunk_simple_gla": Kernel(GUARDED, "chunk_simple_gla", "simple_gla", _fla("scalar")),
    "fla:chunk_delta_rule": Kernel(
        "fla.ops.delta_rule", "chunk_delta_rule", "delta_rule", _fla("delta"), ("bf16", "fp16")
    ),
    "fla:chunk_gated_delta_rule": Kernel(GUARDED, "chunk_gated_delta_rule", "gated_delta_rule", _fla("gdelta")),
    "triton:linear_attention": Kernel(
        "linverify.impls.triton_chunkwise", "linear_attention", "linear_attention", _OWN_CHUNKS
    ),
    "triton:simple_gla": Kernel("linverify.impls.triton_chunkwise", "simple_gla", "simple_gla", _OWN_CHUNKS),
    "triton:gla": Kernel("linverify.impls.triton_chunkwise", "gla", "gla", _OWN_CHANNELS),
    "triton:recurrent gla": Kernel("linverify.impls.triton_recurrent", "gla", "gla", "fp32,recurrent"),
}


def results(kernel: Kernel, problem: Any) -> dict[str, Tensor]:
    """Call the kernel on the device, forward and backward; results on the CPU."""
    functions, description = load("module", kernel.module, kernel.function)
    binding = bind(registry.operator(kernel.operator), description.functions[0])
    given = {n: t.to(DEVICE).requires_grad_() for n, t in problem.tensors.items()}
    given["initial_state"] = problem.initial_state.to(DEVICE).requires_grad_()
    flags = {"scale": problem.scale, "output_final_state": True}
    keywords = {binding.names[n]: x for n, x in (given | flags).items()}
    o, state = functions[kernel.function](**keywords, **binding.settings)
    upstream = [problem.cotangents["o"].to(DEVICE), problem.cotangents["state"].to(DEVICE)]
    grads = torch.autograd.grad([o, state], list(given.values()), upstream)
    found = {"o": o, "state": state} | {f"d{n}": g for n, g in zip(given, grads, strict=True)}
    return {n: t.detach().cpu() for n, t in found.items()}


def fingerprinted(label: str, dtype: str, seconds: float) -> dict[str, Any]:
    """What the fingerprint of one kernel says, beside what its source says."""
    torch.set_num_threads(1)
    autotune.install("pin")  # before Triton is imported
    kernel, start = ALL[label], time.perf_counter()
    operator = registry.operator(kernel.operator)
    gate = "production" if operator.gated else "none"
    case = Case(
        *(kernel.operator, 1, 100, 2, 64, 64),
        dtype=dtype,
        gate=gate,
        state="normal",
        final_state=True,
        cotangent="both",
        seed=1,
    )
    problem = replace(draw.problem(case, operator), scale=0.125)
    got = results(kernel, problem)
    ran = time.perf_counter() - start
    precision = precision_class(dtype, "cuda", {})
    observed = Observed(Judge(operator, "cpu").answer(problem), got)
    match = Search(operator, dtype, precision, (observed,), seconds).run()
    source = mean_log(list(residuals(operator, observed, built(kernel.source, dtype, precision)).values()))
    return {
        "kernel": label,
        "dtype": dtype,
        "named": match.name,
        "score": match.score,
        "source": kernel.source,
        "source_score": source,
        "ties": len(match.ties),
        "right": bool(match.name) and match.score <= source + GAP and source < BY_SIZE,
        "seconds": (round(ran), round(time.perf_counter() - start - ran)),
    }


def apart(label: str, dtype: str, seconds: float) -> dict[str, Any]:
    """The same in a process of its own.

    Raises:
        RuntimeError: it died, or gave no answer in time; the message says how.
    """
    command = [sys.executable, __file__, "--seconds", str(seconds), "--one", label, dtype]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + BESIDE)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer after {seconds + BESIDE:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise RuntimeError(f"ended with {done.returncode}: {said[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(d: dict[str, Any]) -> str:
    cells = [
        *(f"`{d['kernel']}`", d["dtype"], "yes" if d["right"] else "NO"),
        *(f"`{d['named'] or 'none'}`", f"{d['score']:.2f}", f"`{d['source']}`", f"{d['source_score']:.2f}"),
        *(str(d["ties"]), "{} + {} s".format(*d["seconds"])),
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| kernel | dtype | right | found | score | what its source says | score of that | ties | kernel + search |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> int:
    """Print a row a kernel and dtype as it comes; 1 where one is not right or could not be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(ALL))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("KERNEL", "DTYPE"), help="in this process; prints JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(fingerprinted(*given.one, given.seconds)))
        return 0
    asked = [(n, d) for n in given.only.split(",") for d in ALL[n].dtypes if d in given.dtypes.split(",")]
    rows, failed = [], 0
    print(HEAD, flush=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(apart, n, d, given.seconds): (n, d) for n, d in asked}
        for done in as_completed(running):
            try:
                found = done.result()
            except RuntimeError as error:
                failed += 1
                print(f"{' '.join(running[done])} could not be run: {error}", flush=True)
                continue
            failed += not found["right"]
            rows.append(_row(found))
            print(rows[-1], flush=True)
    if given.markdown:
        given.markdown.write_text("\n".join([HEAD, *sorted(rows)]) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
