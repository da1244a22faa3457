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


def correct(name, dtype, device="cuda"):
    import torch

    from linverify import draw
    from linverify.case import Case
    from linverify.reference import stepwise
    from linverify.registry import operator

    torch.set_num_threads(1)
    sizes = [(200, (), 128, 128), (150, (70, 0, 1, 79), 100, 40), (129, (), 64, 256), (70, (), 256, 64)]
    attention = name == "softmax_attention"
    for T, lengths, K, V in sizes:
        for gate in ("mild", "strong") if name in ("gated_delta_rule", "kda") else ("none",):
            for params in ({}, {"causal": False, "window": 5}, {"causal": True, "window": 70}) if attention else ({},):
                what = f"{name} {dtype} T={T}{lengths} K={K} V={V} {gate} {params or ''}"
                try:
                    op = operator(name)
                    op = op.rebuild(**params) if params else op
                    state = {} if attention else {"state": "normal", "final_state": True, "cotangent": "both"}
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
                        **({"cotangent": "o"} if attention else {}),
                        **state,
                    )
                    p = draw.problem(case, op)
                    expected = stepwise(p, op) if not attention else None
                    given = {n: t.to(device).requires_grad_(n in p.wrt) for n, t in p.tensors.items()}
                    if p.initial_state is not None:
                        given["initial_state"] = p.initial_state.to(device).requires_grad_()
                    ends = torch.tensor([0, *p.lengths]).cumsum(0).to(device) if p.lengths else None
                    t0 = time.time()
                    if attention:
                        o = function(name)(**given, scale=p.scale, cu_seqlens=ends, **params)
                        found, cots = {"o": o}, [c.to(device) for c in p.cotangents.values()]
                        wide = {n: t.detach().double().cpu().requires_grad_() for n, t in given.items()}
                        outs, start = [], 0
                        for n in lengths or (T,):
                            if n:
                                part = {m: x[:, start : start + n] for m, x in wide.items()}
                                outs.append(
                                    op.forms["naive"](
                                        part,
                                        {"B": o.shape[0], "T": n, "H": 2, "G": wide["k"].shape[2], "K": K, "V": V},
                                        K**-0.5 if p.scale is None else p.scale,
                                    )
                                )
                            start += n
                        e = torch.cat(outs, 1)
                        ge = torch.autograd.grad(e, [wide[n] for n in p.wrt], [c.double().cpu() for c in cots])
                        expected = {"o": e.detach(), **{f"d{n}": g for n, g in zip(p.wrt, ge)}}
                    else:
                        o, s = function(name)(**given, scale=p.scale, output_final_state=True, cu_seqlens=ends)
                        found, cots = {"o": o, "state": s}, [c.to(device) for c in p.cotangents.values()]
                    torch.cuda.synchronize()
                    t1 = time.time()
                    got = {n: x.detach() for n, x in found.items()}
                    grads = torch.autograd.grad([found[n] for n in p.cotangents], [given[n] for n in p.wrt], cots)
                    torch.cuda.synchronize()
                    got.update({f"d{n}": g for n, g in zip(p.wrt, grads)})
                    t2 = time.time()
                    errors = " ".join(
                        f"{n}:{float((got[n].double().cpu() - x).norm() / x.norm().clamp(min=1e-30)):.0e}/{float((got[n].double().cpu() - x).abs().max() / x.abs().max().clamp(min=1e-30)):.0e}"
                        for n, x in expected.items()
                    )
                    say(f"OK  {what} [{t1 - t0:.0f}+{t2 - t1:.0f}s] {errors}")
                except Exception:
                    say(f"BAD {what}\n{traceback.format_exc()[-1800:]}")


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
                and name not in ("decayed", "inverse", "row_of", "decay_between", "weights_and_gradient")
            ):
                setattr(module, name, Recorder(value, calls))
    for name in ("gated_delta_rule", "kda", "softmax_attention"):
        given = {n: x.requires_grad_() for n, x in inputs(name).items()}
        out = function(name)(**given)
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    torch.cuda.synchronize()
    for name, (kernel, grid, args, kwargs) in calls.items():
        found = []
        variants = [(w, s, None) for w in (2, 4, 8) for s in (1, 2, 3)]
        if name in ("carry", "carry_back"):
            variants = [(w, s, b) for b in (16, 32, 64) for w in (4, 8) for s in (1, 2, 3)]
        if name in ("decays", "scores", "score_gradients", "gate_gradients"):
            variants = [(w, 1, None) for w in (2, 4, 8)]
        for w, s, b in variants:
            if time.time() - START > (48 if not bench else 25):
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


def fla():
    from linverify import autotune

    autotune.install("pin")
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.kda import chunk_kda

    for name, call in (
        ("delta_rule", chunk_delta_rule),
        ("gated_delta_rule", chunk_gated_delta_rule),
        ("kda", chunk_kda),
    ):
        try:
            timed(call, inputs(name), f"fla (pinned) {name}")
        except Exception:
            say(f"BAD fla {name}\n{traceback.format_exc()[-800:]}")


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

    for name in OPERATORS:
        for dtype in ("bf16", "fp32", "fp16") if name in ("kda", "softmax_attention") else ("bf16", "fp32"):
            start(f"correct {name} {dtype}", [*me, "correct", name, dtype], 56)
    start("fla compiling", [*me, "fla"], 56)
    start("sweep compiling", [*me, "sweep"], 56)
    for name, dtype in (("kda", "bf16"), ("gated_delta_rule", "fp16"), ("gated_delta_product", "bf16")):
        start(
            f"check {name} {dtype}",
            [
                sys.executable,
                "-m",
                "linverify",
                "check",
                f"linverify.impls.triton_delta:{name}",
                "--profile",
                "quick",
                "--dtype",
                dtype,
                "--time",
                "48",
                "--property",
                "agreement",
                "--property",
                "gradients",
                "--property",
                "packed",
                "--property",
                "state_passing",
            ],
            58,
        )
    finish()
    start("speed", [*me, "speed"], 40)
    finish()
    start("fla", [*me, "fla"], 30)
    finish()
    start("sweep", [*me, "sweep", "bench"], 98 - (time.time() - START))
    finish()


if __name__ == "__main__":
    {"correct": correct, "speed": speed, "sweep": lambda b="": sweep(bool(b)), "fla": fla}[sys.argv[1]](
        *sys.argv[2:]
    ) if len(sys.argv) > 1 else main()
