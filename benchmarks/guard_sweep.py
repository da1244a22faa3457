"""Every configuration of fla's guarded kernel `chunk_bwd_dqkwg`, forced in turn and judged.

An autotuner picks one configuration by time, another one on another GPU. Here each tile size, number of warps and number of
stages runs on the same problem, and its gradients are compared with the float64 reference: the share of linverify's budget, the
largest error relative to the largest element, and whether a second call gives the same bits.

Configurations run in child processes, one for each problem, so that one that crashes or hangs costs itself alone. Needs a GPU.

    python benchmarks/guard_sweep.py --jobs 8 --time 480 --json guard_sweep.json
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SILENCE_SECONDS = 240.0  # importing fla and compiling the other kernels of a call takes a minute or two
FUNCTIONS = {"simple_gla": "chunk_simple_gla", "gated_delta_rule": "chunk_gated_delta_rule"}
# fla offers 2 and 4 warps on Hopper; 8 is what it offers elsewhere.
WARPS, STAGES = (2, 4, 8), (2, 3, 4)


@dataclass(frozen=True)
class Group:
    """One problem, whose configurations share a process."""

    operator: str
    dtype: str
    K: int
    V: int
    gate: str

    @property
    def configurations(self) -> list[tuple[int, int, int]]:
        """(tile, warps, stages); fla takes BK and BV to be K and V, but at most a tile of 128 on Hopper."""
        tiles = [t for t in (128, 64, 32) if t <= max(self.K, self.V)]
        return list(itertools.product(tiles, WARPS, STAGES))


def described(group: Group, tile: int, warps: int, stages: int) -> dict[str, Any]:
    """What a record says of the configuration it is about."""
    sizes = {"BK": min(tile, group.K), "BV": min(tile, group.V)}
    return {**asdict(group), "tile": tile, **sizes, "num_warps": warps, "num_stages": stages}


def measure(group: Group, skip: int) -> Iterator[dict[str, Any]]:
    """In a child: run the group's configurations from number `skip` on, one record each."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from linverify import autotune

    autotune.install("pin")  # the other kernels of the call; before Triton is imported
    import fla_guard_lifted
    import torch
    from fla.ops.common import chunk_o

    from linverify import draw, registry
    from linverify.case import Case
    from linverify.judge import Judge
    from linverify.recipe import precision_class
    from linverify.score import Unjudgeable

    operator = registry.operator(group.operator)
    case = Case(
        group.operator, B=2, T=300, H=2, K=group.K, V=group.V, dtype=group.dtype, gate=group.gate, state="normal",
        final_state=True, cotangent="both", seed=640,
    )  # fmt: skip
    problem = draw.problem(case, operator)
    judge = Judge(operator, "cuda:0")
    answer = judge.answer(problem)
    precision = precision_class(group.dtype, "cuda:0", {})

    function = getattr(fla_guard_lifted, FUNCTIONS[group.operator])
    tuner = chunk_o.chunk_bwd_kernel_dqkwg
    while not hasattr(tuner, "configs"):
        tuner = tuner.fn
    config_class = type(tuner.configs[0])
    offered = {(c.num_warps, c.num_stages) for c in tuner.configs}

    def gradients() -> dict[str, Any]:
        given = {n: t.cuda().requires_grad_() for n, t in problem.tensors.items()}
        state = problem.initial_state.cuda().requires_grad_()
        o, final = function(**given, initial_state=state, output_final_state=True, scale=problem.scale)
        cotangents = [problem.cotangents[n].cuda() for n in ("o", "state")]
        found = torch.autograd.grad([o, final], [*given.values(), state], cotangents)
        torch.cuda.synchronize()
        return {f"d{n}": g for n, g in zip([*given, "initial_state"], found, strict=True)}

    for tile, warps, stages in group.configurations[skip:]:
        tuner.configs = [config_class({}, num_warps=warps, num_stages=stages)]
        tuner.cache.clear()
        tuner.__dict__.pop("_linverify_chosen", None)
        offered_here = (warps, stages) in offered and tile == max(group.configurations)[0]
        record: dict[str, Any] = {**described(group, tile, warps, stages), "offered": offered_here, "error": None}
        try:
            with room_for(tile):
                first, second = gradients(), gradients()
            record["repeats"] = all(torch.equal(first[n], second[n]) for n in first)
            record["results"] = {}
            for name, value in first.items():
                ref = answer.reference[name]
                worst = float((value.double() - ref).abs().nan_to_num(nan=torch.inf).max() / ref.abs().max())
                try:
                    share = judge.score(answer, name, value, precision).share
                except Unjudgeable:
                    share = None
                record["results"][name] = {"share": share, "relative_error": worst}
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
            yield record
            if "CUDA error" in str(error) or "illegal" in str(error):
                return  # the process's context is lost; a fresh one goes on
            continue
        yield record


@contextlib.contextmanager
def room_for(tile: int) -> Iterator[None]:
    """Within it, `chunk_bwd_dqkwg` (and no other function of its module) believes in a GPU with room for this tile."""
    from fla.ops.common import chunk_o

    rooms = {128: ("hopper", "ampere", "ada"), 64: ("ada",), 32: ()}[tile]
    callers = [sys.modules[f"fla.ops.{name}.chunk"] for name in FUNCTIONS]
    original = callers[0].chunk_bwd_dqkwg  # type: ignore[attr-defined]  # both import it by name

    def within(*args: Any, **kwargs: Any) -> Any:
        ask = chunk_o.check_shared_mem
        chunk_o.check_shared_mem = lambda arch="none", *_: arch in rooms
        try:
            return original(*args, **kwargs)
        finally:
            chunk_o.check_shared_mem = ask

    for module in callers:
        module.chunk_bwd_dqkwg = within  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in callers:
            module.chunk_bwd_dqkwg = original  # type: ignore[attr-defined]


def supervise(group: Group, deadline: float) -> list[dict[str, Any]]:
    """In the parent: keep a child on the group until every configuration has a record or time is up."""
    records: list[dict[str, Any]] = []
    while len(records) < len(group.configurations) and time.monotonic() < deadline:
        command = [sys.executable, __file__, "--child", json.dumps(asdict(group)), "--skip", str(len(records))]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stderr is not None
        lines: queue.Queue[str | None] = queue.Queue()
        tail: list[str | None] = []
        readers = [
            threading.Thread(target=_read, args=(child.stdout, lines.put), daemon=True),
            threading.Thread(target=_read, args=(child.stderr, tail.append), daemon=True),
        ]
        for reader in readers:
            reader.start()
        before, why = len(records), ""
        while True:
            try:
                line = lines.get(timeout=max(1.0, min(SILENCE_SECONDS, deadline - time.monotonic())))
            except queue.Empty:
                why = "no answer in time"
                break
            if line is None:
                break
            if line.startswith("{"):
                records.append(json.loads(line))
        child.kill()
        child.wait()
        readers[1].join(timeout=5)
        if len(records) == before:
            # Nothing came: the next configuration killed the child, or kept it busy for too long.
            last = next((line.strip() for line in reversed(tail) if line and line.strip()), "")
            why = why or f"the process ended with code {child.returncode}: {last[:160]}"
            records.append({**described(group, *group.configurations[before]), "offered": None, "error": why})
    return records


def _read(pipe: Iterable[str], hear: Callable[[str | None], object]) -> None:
    """Pass on the lines of a pipe, and None at its end: both pipes must be emptied, or the child stops to write."""
    for line in pipe:
        hear(line)
    hear(None)


def table(records: list[dict[str, Any]]) -> str:
    """Text of all configurations, each problem's worst share first."""
    head = (
        "operator           dtype  gate     K   V |  BK  BV warps stages fla | worst            share  max err  repeats"
    )
    lines = [head, "-" * len(head)]

    def worst(record: dict[str, Any]) -> tuple[float, str, float]:
        results = record.get("results") or {}
        return max(((r["share"] or 0.0, n, r["relative_error"]) for n, r in results.items()), default=(-1.0, "", 0.0))

    for r in sorted(records, key=lambda r: (r["operator"], r["dtype"], r["gate"], r["K"], -worst(r)[0])):
        left = f"{r['operator']:18} {r['dtype']:5}  {r['gate']:6} {r['K']:3} {r['V']:3} | {r['BK']:3} {r['BV']:3} "
        left += f"{r['num_warps']:5} {r['num_stages']:6} {_word(r['offered']):3} | "
        share, name, error = worst(r)
        lines.append(left + (r["error"] or f"{name:14} {share:7.2f} {error:8.1e}  {_word(r['repeats'])}"))
    return "\n".join(lines)


def _word(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[fact]


def main() -> None:
    """Run all groups and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", default=list(FUNCTIONS), choices=list(FUNCTIONS))
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp16", "fp32"])
    parser.add_argument("--gates", nargs="+", default=["mild"])
    parser.add_argument("--heads", nargs="+", default=["64x64", "128x128"], metavar="KxV")
    parser.add_argument("--jobs", type=int, default=8, help="processes at a time; compiling is what takes the time")
    parser.add_argument("--time", type=float, default=540.0, help="seconds after which no configuration is started")
    parser.add_argument("--json", type=Path, default=Path("guard_sweep.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for record in measure(Group(**json.loads(options.child)), options.skip):
            print(json.dumps(record), flush=True)
        return

    import torch

    if not torch.cuda.is_available():
        sys.exit("guard_sweep.py needs a CUDA device and found none")
    heads = [tuple(map(int, h.split("x"))) for h in options.heads]
    groups = [
        Group(o, d, K, V, g) for g in options.gates for K, V in heads for o in options.operators for d in options.dtypes
    ]
    deadline = time.monotonic() + options.time
    with ThreadPoolExecutor(options.jobs) as pool:
        records = list(itertools.chain.from_iterable(pool.map(lambda g: supervise(g, deadline), groups)))
    environment = {
        "gpu": torch.cuda.get_device_name(0),
        **{name: importlib.metadata.version(name) for name in ("torch", "triton", "fla-core")},
    }
    wanted = sum(len(g.configurations) for g in groups)
    options.json.write_text(json.dumps({"environment": environment, "wanted": wanted, "records": records}, indent=1))
    print(environment)
    print(table(records))
    print(
        f"{len(records)} of {wanted} configurations; {sum(r['error'] is not None for r in records)} did not run; {options.json}"
    )


if __name__ == "__main__":
    main()
