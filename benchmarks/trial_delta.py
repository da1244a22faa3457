# ruff: noqa: D103, F841, B905, E731, D101, C901, B023, PTH100, PTH109, PTH123, SIM115
"""A GPU trial of the Triton kernels of the delta family and of attention (scratch: deleted once its output has been read)."""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

OPERATORS = ("delta_rule", "gated_delta_rule", "kda", "softmax_attention")
START = time.time()


def say(*words):
    print(*words, flush=True)


def function(name):
    module = "triton_attention" if name == "softmax_attention" else "triton_delta"
    return getattr(importlib.import_module(f"linverify.impls.{module}"), name)


def correct(name, dtype, device="cuda:0"):
    import torch

    from linverify import draw
    from linverify.case import Case
    from linverify.judge import Judge
    from linverify.registry import operator

    torch.set_num_threads(1)
    attention = name == "softmax_attention"
    sizes = [(200, (), 128, 128), (150, (70, 0, 1, 79), 100, 40), (70, (), 256, 64), (129, (), 64, 256)]
    worst = {}
    for T, lengths, K, V in sizes:
        for gate in ("mild", "strong", "reset") if name in ("gated_delta_rule", "kda") else ("none",):
            for params in ({}, {"causal": False, "window": 5}) if attention else ({},):
                what = f"{name} {dtype} T={T}{lengths} K={K} V={V} {gate} {params or ''}"
                try:
                    op = operator(name)
                    op = op.rebuild(**params) if params else op
                    extra = (
                        {"cotangent": "o"}
                        if attention
                        else {"state": "normal", "final_state": True, "cotangent": "both"}
                    )
                    case = Case(
                        name,
                        B=1 if lengths else 2,
                        T=T,
                        H=2,
                        K=K,
                        V=V,
                        dtype=dtype,
                        gate=gate,
                        seed=T,
                        lengths=lengths,
                        **extra,
                    )
                    p, judge = draw.problem(case, op), Judge(op, device)
                    given = {n: t.to(device).requires_grad_(n in p.wrt) for n, t in p.tensors.items()}
                    if p.initial_state is not None:
                        given["initial_state"] = p.initial_state.to(device).requires_grad_()
                    ends = torch.tensor([0, *p.lengths]).cumsum(0).to(device) if p.lengths else None
                    t0 = time.time()
                    out = function(name)(
                        **given,
                        scale=p.scale,
                        cu_seqlens=ends,
                        **({"output_final_state": True} if not attention else params),
                    )
                    found = {"o": out} if attention else dict(zip(("o", "state"), out))
                    grads = torch.autograd.grad(
                        [found[n] for n in p.cotangents],
                        [given[n] for n in p.wrt],
                        [c.to(device) for c in p.cotangents.values()],
                    )
                    torch.cuda.synchronize()
                    t1 = time.time()
                    got = {**found, **{f"d{n}": g for n, g in zip(p.wrt, grads)}}
                    answer = judge.answer(p)
                    scores = {
                        n: judge.score(answer, n, x.detach().cpu(), "tf32" if dtype == "fp32" else dtype)
                        for n, x in got.items()
                    }
                    say(
                        "OK " if all(s.outcome == "pass" for s in scores.values()) else "BAD",
                        what,
                        f"[{t1 - t0:.0f}+{time.time() - t1:.0f}s]",
                        " ".join(f"{n}:{s.share:.2f}" for n, s in scores.items()),
                    )
                except Exception:
                    say(f"BAD {what}\n{traceback.format_exc()[-1500:]}")


def inputs(name, B=2, T=4096, H=8, K=128, V=128, dtype="bfloat16"):
    import torch

    torch.manual_seed(0)
    kind = {"device": "cuda", "dtype": getattr(torch, dtype)}
    q, k, v = torch.randn(B, T, H, K, **kind), torch.randn(B, T, H, K, **kind), torch.randn(B, T, H, V, **kind)
    if name == "softmax_attention":
        return {"q": q, "k": k, "v": v}
    given = {"q": q, "k": torch.nn.functional.normalize(k, dim=-1), "v": v}
    if name in ("gated_delta_rule", "kda"):
        shape = (B, T, H, K) if name == "kda" else (B, T, H)
        given["g"] = torch.nn.functional.logsigmoid(torch.randn(shape, device="cuda") + 2)
    given["beta"] = torch.rand(B, T, H, **kind)
    return given


def timed(call, given, label):
    import torch
    from triton.testing import do_bench

    given = {n: x.clone().requires_grad_() for n, x in given.items()}
    first = lambda out: out[0] if isinstance(out, tuple) else out
    t0 = time.time()
    do = torch.randn_like(first(call(**given)))

    def both():
        first(call(**given)).backward(do)

    both()
    torch.cuda.synchronize()
    warm = time.time() - t0
    with torch.no_grad():
        forward = do_bench(lambda: call(**given), warmup=20, rep=100, return_mode="median")
    whole = do_bench(both, warmup=20, rep=100, grad_to_none=list(given.values()), return_mode="median")
    say(f"SPEED {label}: forward {forward:.3f} ms, both {whole:.3f} ms (first {warm:.0f} s)")
    return both


def speed():
    import torch

    for name in ("delta_rule", "gated_delta_rule", "kda", "softmax_attention"):
        try:
            both = timed(function(name), inputs(name), f"ours {name}")
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(5):
                    both()
                torch.cuda.synchronize()
            events = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)[:14]
            say("   ", ", ".join(f"{e.key[:40]} {e.self_device_time_total / 5:.0f}us" for e in events))
        except Exception:
            say(f"BAD speed {name}\n{traceback.format_exc()[-1500:]}")
    try:
        given = inputs("softmax_attention")

        def sdpa(q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
            )

        timed(sdpa, given, "torch sdpa")
    except Exception:
        say(traceback.format_exc()[-600:])


class Recorder:
    def __init__(self, kernel, calls):
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.calls[self.kernel.fn.__name__] = (self.kernel, grid, args, kwargs)
            return self.kernel[grid](*args, **kwargs)

        return launch


def sweep(bench):
    """Every kernel with other warps and stages, and the walks with other blocks of values."""
    import torch
    from triton.testing import do_bench

    from linverify.impls import _triton_attention, _triton_attention_gradients, _triton_delta

    calls = {}
    for module in (
        _triton_delta.across,
        _triton_delta.channels,
        _triton_delta.gates,
        _triton_delta.within,
        _triton_delta.triangle,
        _triton_attention,
        _triton_attention_gradients,
    ):
        for name, value in list(vars(module).items()):
            if (
                type(value).__name__ == "JITFunction"
                and value.fn.__module__ == module.__name__
                and name
                not in ("decayed", "coupling", "scalar_decays", "row_of", "decay_between", "weights_and_gradient")
            ):
                setattr(module, name, Recorder(value, calls))
    for name in ("gated_delta_rule", "kda", "softmax_attention"):
        given = {n: x.requires_grad_() for n, x in inputs(name).items()}
        out = function(name)(**given)
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    torch.cuda.synchronize()
    for name, (kernel, grid, args, kwargs) in calls.items():
        found = []
        variants = {
            "carry": [(4, n, b) for b in (16, 32, 64) for n in (1, 2, 3)],
            "carry_back": [(w, n, b) for w in (4, 8) for b in (16, 32, 64) for n in (1, 2)],
            "invert": [(w, 1, None) for w in (1, 2, 4)],
            "channel_score_gradients": [(w, 1, b) for w in (1, 2, 4) for b in (32, 64, 128)],
            "channel_scores": [(w, 1, None) for w in (2, 4, 8)],
        }.get(name, [(w, n, None) for w in (4, 8) for n in (1, 2)])
        for w, s, b in variants:
            if time.time() - START > (58 if not bench else 12):
                break
            grid_, args_ = grid, args
            if b:
                grid_, args_ = (*grid[:2], -(-128 // b)), (*args[:-1], b)
            kw = {**kwargs, "num_warps": w, "num_stages": s}
            try:
                kernel[grid_](*args_, **kw)
                torch.cuda.synchronize()
                if bench:
                    ms = do_bench(lambda: kernel[grid_](*args_, **kw), warmup=3, rep=10, return_mode="median")
                    found.append((ms * 1000, f"w{w}s{s}" + (f"b{b}" if b else "")))
            except Exception as e:
                found.append((1e9, f"w{w}s{s}b{b}:{type(e).__name__}"))
        if bench:
            say(
                f"SWEEP {name} now {kwargs}:",
                " ".join(f"{label}={us:.0f}" for us, label in sorted(found)[:7]),
                "| worst",
                f"{max(found)[1]}={max(found)[0]:.0f}",
            )


def main():
    me = [sys.executable, os.path.abspath(__file__)]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    folder = tempfile.mkdtemp()
    running = []

    def start(label, command, limit):
        out = open(f"{folder}/{len(running)}.txt", "w")
        running.append(
            (
                label,
                out.name,
                time.time() + limit,
                subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True),
            )
        )

    def finish():
        for label, path, until, process in running:
            try:
                process.wait(max(0.1, until - time.time()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                say(f"(stopped: {label})")
            say(f"=== {label} [{time.time() - START:.0f} s]")
            text = open(path).read()
            say(text if len(text) < 9000 else text[:4500] + "\n...\n" + text[-4500:])
        running.clear()

    for dtype in ("bf16", "fp32", "fp16"):
        for name in OPERATORS:
            start(f"correct {name} {dtype}", [*me, "correct", name, dtype], 62)
    start("sweep compiling", [*me, "sweep"], 62)
    finish()
    start("speed", [*me, "speed"], 22)
    finish()
    start("sweep", [*me, "sweep", "bench"], 97 - (time.time() - START))
    finish()


if __name__ == "__main__":
    {"correct": correct, "speed": speed, "sweep": lambda b="": sweep(bool(b))}[sys.argv[1]](*sys.argv[2:]) if len(
        sys.argv
    ) > 1 else main()
