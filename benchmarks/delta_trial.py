# ruff: noqa: C901, D102, D103
"""SCAFFOLDING: which kernel of the delta family a GPU gets wrong, in which configuration (deleted once it has said so).

    PYTHONPATH=. python benchmarks/delta_trial.py [--seconds 150] [--jobs 8] [--ops kda] [--dtypes bf16]

A process an operator, dtype and size. Every launch of a forward and backward runs on the same memory (fresh memory is NaN):
once as a copy whose matrix products take float32 operands, with two warps (no wgmma) and one stage, which is what the other
launches are compared with and what the next kernel reads; then in each configuration. So a fault stays in its kernel. Lines:

    JUDGE  shares of the budget of a whole pass (above 1 is a violation): the safe copy, what is shipped, other chunks
    BAD    kernel, configuration, and each tensor's largest difference over its largest number
    IMA    an illegal access (or another error of CUDA), after which the process is started anew without that launch
    OK     kernel: the configurations that differ from the safe copy by roundings alone, and the largest difference
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())
SIZES = {
    "64x48": {"B": 1, "T": 200, "H": 3, "K": 64, "V": 48, "lengths": (80, 0, 1, 119)},
    "64x64": {"B": 2, "T": 256, "H": 3, "K": 64, "V": 64},
    "128x128": {"B": 2, "T": 200, "H": 2, "K": 128, "V": 128},
    "7x18": {"B": 1, "T": 82, "H": 2, "K": 7, "V": 18, "lengths": (17, 0, 1, 64)},
}
MODULES = ("gates", "scores", "solve", "carry", "channels")
KERNELS = {
    "gates": ("scalar_sums", "channel_sums", "gate_gradients"),
    "scores": ("scores", "score_gradients"),
    "solve": ("invert", "solve", "solve_gradients"),
    "carry": ("carry", "read", "carry_back", "read_gradients"),
    "channels": ("channel_scores", "channel_score_gradients"),
}
# Warps, stages, and whether products take float32 operands.
VARIANTS = [(4, 1, 0), (2, 1, 0), (8, 1, 0)]
MORE = [(4, 2, 0), (2, 2, 0), (8, 2, 0), (4, 3, 0), (4, 2, 1), (1, 1, 0)]  # in the sizes and dtypes seen wrong
DEVICE = "cuda:0" if os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
SAFE: dict[str, Any] = {"num_warps": 2, "num_stages": 1}


def say(*words: object) -> None:
    print(*words, flush=True)


def safe_copies(folder: Path) -> dict[str, Any]:
    """The kernels once more, with products of float32 operands."""
    for name in ("rows", *(f"delta_{m}" for m in MODULES), "chunks"):
        text = (HERE / "impls" / f"_triton_{name}.py").read_text()
        text = text.replace("linverify.impls._triton", "safe_triton")
        text = text.replace("tl.dot(a, b,", "tl.dot(a.to(tl.float32), b.to(tl.float32),")
        (folder / f"safe_triton_{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    return {m: importlib.import_module(f"safe_triton_delta_{m}") for m in MODULES}


class Launcher:
    """Stands for a kernel; `mode` says what a launch does."""

    mode, until, skip, label = "shipped", 0.0, set[str](), ""
    saved, variants = set[str](), VARIANTS

    def __init__(self, name: str, kernel: Any, safe: Any) -> None:
        self.name, self.kernel, self.safe = name, kernel, safe

    def __getitem__(self, grid: Any) -> Any:
        return lambda *a, **k: self.launch(grid, a, k)

    def launch(self, grid: Any, args: Any, given: dict[str, Any]) -> None:
        import torch

        if Launcher.mode == "shipped":
            self.run(self.kernel, grid, args, given, "shipped")
            return
        tensors = {n: x for n, x in zip(self.kernel.arg_names, args, strict=False) if isinstance(x, torch.Tensor)}
        before = {n: x.clone() for n, x in tensors.items()}
        self.run(self.safe, grid, args, {**given, **SAFE}, "safe")
        right = {n: x.clone() for n, x in tensors.items()}
        written = [n for n in tensors if not torch.equal(bits(right[n]), bits(before[n]))]
        fine, worst = [], 0.0
        shipped = (given.get("num_warps", 4), given.get("num_stages", 3), 0)
        others = [v for v in Launcher.variants if v != shipped] if "sums" not in self.name else []
        for variant in [shipped, *others]:
            warps, stages, wide = variant
            text = f"w{warps}s{stages}{'f32' if wide else ''}{'*' if variant == shipped else ''}"
            if f"{self.name}:{text}" in Launcher.skip or time.time() > Launcher.until:
                continue
            for n, x in tensors.items():
                x.copy_(before[n])
            found = self.run(
                self.safe if wide else self.kernel,
                grid,
                args,
                {**given, "num_warps": warps, "num_stages": stages},
                text,
            )
            if found is False:
                continue
            off = {n: distance(x, right[n]) for n, x in tensors.items()}
            bad = {n: d for n, d in off.items() if d > 0.03}
            worst = max(worst, *(d for n, d in off.items() if n not in bad), 0.0)
            if bad:
                where = {n: place(tensors[n], right[n]) for n in bad}
                say("BAD", Launcher.label, self.name, text, {n: f"{d:.3g} at {where[n]}" for n, d in bad.items()})
                self.save(found, text)
            else:
                fine.append(text)
        say("OK ", Launcher.label, self.name, f"writes {','.join(written)};", *fine, f"worst {worst:.2g}")
        for n, x in tensors.items():
            x.copy_(right[n])

    def run(self, kernel: Any, grid: Any, args: Any, given: dict[str, Any], text: str) -> Any:
        say("  >", f"{self.name}:{text}")
        try:
            found = kernel[grid](*args, **given)
            synchronize()
        except Exception as error:
            line = (str(error).splitlines() or [""])[0][:150]
            if "CUDA" in str(error) or "illegal" in str(error):
                say("IMA", Launcher.label, f"{self.name}:{text}", type(error).__name__, line)
                os._exit(99)
            say("NOT", Launcher.label, f"{self.name}:{text}", type(error).__name__, line)
            return False
        return found

    def save(self, found: Any, text: str) -> None:
        """The code of the first bad launch of a kernel in a configuration."""
        name = f"{self.name}_{text.strip('*')}"
        if name not in Launcher.saved and hasattr(found, "asm"):
            Launcher.saved.add(name)
            for kind in ("ttgir", "ptx"):
                file = OUT / f"code_{name}_{Launcher.label.split(maxsplit=1)[0]}.{kind}"
                if kind in found.asm and not file.exists():
                    file.write_text(found.asm[kind])


def synchronize() -> None:
    import torch

    if DEVICE != "cpu":
        torch.cuda.synchronize()


def bits(x: Any) -> Any:
    import torch

    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def distance(x: Any, right: Any) -> float:
    """The largest difference over the largest number; NaN on one side is infinitely far."""
    if not x.is_floating_point() or not x.numel():
        return 0.0
    x, right = x.double(), right.double()
    if bool((x.isfinite() != right.isfinite()).any()):
        return float("inf")
    top = right.nan_to_num(0, 0, 0).abs().max()
    return float((x - right).nan_to_num(0, 0, 0).abs().max() / top.clamp_min(1e-30))


def place(x: Any, right: Any) -> list[int]:
    """Where the largest difference is, and how many elements differ by a hundredth of the largest number."""
    import torch

    x, right = x.double(), right.double()
    off = (x - right).abs().nan_to_num(1e300) * (x.isfinite() | right.isfinite())
    at = torch.unravel_index(off.argmax(), off.shape)
    return [*(int(i) for i in at), int((off > 0.01 * right.nan_to_num(0, 0, 0).abs().max()).sum())]


def child(name: str, dtype: str, size: str, until: float, skip: str) -> None:
    import torch

    from linverify import draw
    from linverify.case import Case
    from linverify.impls import _triton_delta, triton_delta
    from linverify.judge import Judge
    from linverify.registry import operator

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # fresh memory is NaN
    torch.utils.deterministic.fill_uninitialized_memory = True

    def allowed(c: Any, scale: float, lengths: Any, initial: Any) -> Any:
        from linverify.impls import _triton_delta

        return _triton_delta.chunkwise(c, scale, lengths, initial)

    triton_delta.chunkwise.__code__ = allowed.__code__
    Launcher.until, Launcher.skip = until, set(filter(None, skip.split(",")))
    if dtype == "bf16" and size == "64x48" and name != "gated_delta_rule":
        Launcher.variants = VARIANTS + MORE
    Launcher.label = f"{name}/{dtype}/{size}".replace("/", ".") + os.environ.get("TRIAL_ENV", "")
    with tempfile.TemporaryDirectory() as folder:
        safe = safe_copies(Path(folder))
        own = {m: importlib.import_module(f"linverify.impls._triton_delta_{m}") for m in MODULES}
        for m, names in KERNELS.items():
            for n in names:
                setattr(own[m], n, Launcher(n, getattr(own[m], n), getattr(safe[m], n)))
        op = operator(name)
        settled = {"state": "normal", "final_state": True, "cotangent": "both", "seed": 3, **SIZES[size]}
        gate = "none" if name == "delta_rule" else "mild"
        case = Case(name, dtype=dtype, gate=gate, **settled)  # type: ignore[arg-type]
        p, judge = draw.problem(case, op), Judge(op, DEVICE)
        answer = judge.answer(p)
        function = getattr(triton_delta, name)

        def judged(what: str) -> None:
            given = {n: t.to(DEVICE).requires_grad_(n in p.wrt) for n, t in p.tensors.items()}
            assert p.initial_state is not None
            given["initial_state"] = p.initial_state.to(DEVICE).requires_grad_()
            ends = torch.tensor([0, *p.lengths]).cumsum(0).to(DEVICE) if p.lengths else None
            out = function(**given, scale=p.scale, cu_seqlens=ends, output_final_state=True)
            found = dict(zip(("o", "state"), out, strict=True))
            wrt = [given[n] for n in p.wrt]
            up = [c.to(DEVICE) for c in p.cotangents.values()]
            grads = torch.autograd.grad([found[n] for n in p.cotangents], wrt, up)
            synchronize()
            got = {**found, **{f"d{n}": g for n, g in zip(p.wrt, grads, strict=True)}}
            precision = "tf32" if dtype == "fp32" else dtype
            shares = {n: judge.score(answer, n, x.detach().cpu(), precision).share for n, x in got.items()}
            say("JUDGE", Launcher.label, f"{what}:", " ".join(f"{n}={s:.3g}" for n, s in shares.items()))

        def attempt(what: str) -> None:
            if what in Launcher.skip:
                return
            try:
                judged(what)
            except Exception as error:
                say("NOT", Launcher.label, what, traceback.format_exc()[-900:])
                if "CUDA" in str(error):
                    os._exit(99)

        if "shipped" not in Launcher.skip:
            attempt("shipped")
        Launcher.mode = "compare"
        attempt("safe")
        Launcher.mode = "shipped"
        for chunk in (32, 16) if size == "64x48" else ():
            importlib.import_module("linverify.impls._triton_chunks").cut.cache_clear()
            importlib.import_module("linverify.impls._triton_chunks").CHUNK = chunk
            _triton_delta.CHUNK = chunk
            if time.time() < until:
                attempt(f"chunks of {chunk}")
    say("END", Launcher.label)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--ops", default="delta_rule,kda,gated_delta_rule")
    parser.add_argument("--dtypes", default="bf16,fp16,fp32")
    given = parser.parse_args()
    begun = time.time()
    until = begun + given.seconds - 8
    OUT.mkdir(parents=True, exist_ok=True)
    ops, dtypes = given.ops.split(","), given.dtypes.split(",")
    every = [(n, d, s, "") for s in SIZES for d in dtypes for n in ops if d == "bf16" or s in ("64x48", "128x128")]
    # With an assembler that does not optimise, with the machine's own, and without wgmma.
    own = "/usr/local/cuda/bin/ptxas"
    environments = [
        "DISABLE_PTXAS_OPT=1",
        *([f"TRITON_PTXAS_PATH={own}"] if Path(own).exists() else []),
        "DISABLE_MMA_V3=1",
    ]
    others = [(n, "bf16", "64x48", e) for e in environments for n in ops if n != "gated_delta_rule"]
    first = [t for t in every if t[1] == "bf16" and t[2] in ("64x48", "64x64")]
    queue = [(*t, "") for t in (*first, *others, *(t for t in every if t not in first))]
    running: list[Any] = []
    while (queue or running) and time.time() < until + 6:
        for entry in list(running):
            task, log, process = entry
            if process.poll() is None:
                continue
            running.remove(entry)
            text = log.read_text(errors="replace")
            if process.returncode and "END" not in text and time.time() < until - 12:
                launches = [line.split(">")[1].strip() for line in text.splitlines() if line.startswith("  >")]
                last = launches[-1] if launches else ""
                last = "shipped" if last.endswith(":shipped") else last
                if last and not last.endswith(":safe"):
                    queue.insert(0, (*task[:4], f"{task[4]},{last}"))
        while queue and len(running) < given.jobs and time.time() < until - 12:
            task = queue.pop(0)
            name, dtype, size, env, skip = task
            key, _, value = env.partition("=")
            log = OUT / f"delta_{name}_{dtype}_{size}_{key}_{len(skip.split(',')) - 1}.txt"
            cache = str(OUT.parent / f"cache_{key}")
            more = {key: value, "TRITON_CACHE_DIR": cache, "TRIAL_ENV": f".{key}"} if env else {}
            command = [sys.executable, "-u", __file__, "child", name, dtype, size, str(until), skip]
            surroundings = {**os.environ, "PYTHONPATH": str(HERE), "OUT": str(OUT), "PYTHONWARNINGS": "ignore", **more}
            process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=surroundings)
            running.append((task, log, process))
        time.sleep(0.1)
    for _, _, process in running:
        process.kill()
    lines = []
    for log in sorted(OUT.glob("delta_*.txt")):
        text = log.read_text(errors="replace")
        lines += [x for x in text.splitlines() if x.startswith(("JUDGE", "BAD", "IMA", "NOT", "OK"))]
        if "END" not in text:
            tail = [x for x in text.splitlines() if not x.startswith("OK")][-4:]
            lines.append(f"UNENDED {log.name}: {' | '.join(tail)[-500:]}")
    (OUT / "delta_all.txt").write_text("\n".join(lines))
    bad = [x for x in lines if not x.startswith("OK")]
    say("\n".join(x[:330] for x in bad)[:10500])
    say(f"ended after {time.time() - begun:.0f} s, not started: {[t[:4] for t in queue]}; all lines in delta_all.txt")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5]), sys.argv[6])
    else:
        raise SystemExit(main())
