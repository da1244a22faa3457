"""Attempts at the defects that flash-linear-attention's threads report, each at the thread's own sizes, dtype and flags.

An attempt returns what it found. Where the function computes an operator of ours, linverify's judge decides; elsewhere the
thread's own measure does. ``benchmarks/fla_defects.py`` has them made by a crew of processes.
"""

from importlib import import_module
from typing import Any

import torch
from crew import Finding
from direct import DEVICE, judged, offsets, poison, rms_ratio, told
from torch import Tensor

from linverify import describe, draw, registry
from linverify.binding import bind
from linverify.case import parse_case

REPEATS = 25


def tuner(kernel: Any) -> Any:
    """The autotuner within a kernel's decorators."""
    while not hasattr(kernel, "configs"):
        kernel = kernel.fn
    return kernel


def configure(kernel: Any, warps: int, stages: int, **sizes: int) -> None:
    """Leave an autotuned kernel this one configuration."""
    inner = tuner(kernel)
    inner.configs = [type(inner.configs[0])(sizes, num_warps=warps, num_stages=stages)]
    inner.cache.clear()
    inner.__dict__.pop("_linverify_chosen", None)


def operator_case(case_id: str, module: str, name: str, **settings: Any) -> Finding:
    """Judge a library function on a case."""
    functions, description = describe.load("module", module, name)
    operator = registry.operator(parse_case(case_id).operator)
    names = bind(operator, description.functions[0], settings=settings).names

    def called(**given: Any) -> Any:
        return functions[name](**{names.get(n, n): x for n, x in given.items()}, **settings)

    return told(judged(case_id, called))


def issue_1262(case_id: str, module: str, name: str) -> Finding:
    """Writes outside of shared memory where scale is the integer 1, for which Triton specialises."""
    function = getattr(import_module(module), name)
    return told(judged(case_id, lambda **given: function(**{**given, "scale": 1})))


def unnormalised(**given: Any) -> tuple[Tensor, Tensor]:
    """Linear attention without a normaliser."""
    from fla.ops.linear_attn import chunk_linear_attn

    found: tuple[Tensor, Tensor] = chunk_linear_attn(**given, normalize=False)
    return found


def issue_640(dtype: str, K: int, V: int, tile: int, warps: int) -> Finding:
    """Wrong dg and dbeta of the gated chunk_bwd_dqkwg on Hopper; fla's guard lifted, one configuration forced."""
    import fla_guard_lifted
    from fla.ops.common import chunk_o
    from guard_sweep import room_for

    configure(chunk_o.chunk_bwd_kernel_dqkwg, warps, 3)
    with room_for(tile):
        return told(
            judged(
                f"gated_delta_rule/B1.T1024.H4.K{K}.V{V}/{dtype}/gate=mild/state=normal/final_state=1/cotangent=both",
                fla_guard_lifted.chunk_gated_delta_rule,
            )
        )


def issue_984(dtype: str, T: int, K: int, warps: int, stages: int) -> Finding:
    """Wrong dk and dbeta of prepare_wy_repr_bwd with 4 warps and chunks of 64 on Hopper; as shipped it has 2 warps there."""
    from fla.ops.delta_rule import chunk_delta_rule, wy_fast

    if warps:
        configure(wy_fast.prepare_wy_repr_bwd_kernel, warps, stages)
    return told(judged(f"delta_rule/B1.T{T}.H2.K{K}.V{K}/{dtype}/cotangent=o", chunk_delta_rule))


def repeated(module: str, kernel: str, warps: int, stages: int, **sizes: int) -> Finding:
    """Different bits for the same inputs: the forward pass of chunk_gated_delta_rule with one configuration forced."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    configure(getattr(import_module(module), kernel), warps, stages, **sizes)
    torch.manual_seed(0)
    B, T, H, D = 1, 8192, 32, 128
    q, k, v = (torch.randn(B, T, H, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    k = torch.nn.functional.normalize(k.float(), dim=-1).bfloat16()
    g = torch.nn.functional.logsigmoid(torch.randn(B, T, H, device=DEVICE))
    beta = torch.rand(B, T, H, device=DEVICE).bfloat16()
    first, state = chunk_gated_delta_rule(q, k, v, g, beta, output_final_state=True)
    other = 0
    for _ in range(REPEATS - 1):
        o, final = chunk_gated_delta_rule(q, k, v, g, beta, output_final_state=True)
        other += not (torch.equal(o, first) and torch.equal(final, state))
    return Finding.of(other, f"{other} of {REPEATS - 1} repeated calls gave other bits")


def issue_836(dtype: str) -> Finding:
    """Wrong dq of parallel_forgetting_attn for packed sequences at D = 100, beyond 0.5 % of RMS as in its test."""
    from fla.ops.forgetting_attn import parallel_forgetting_attn

    torch.manual_seed(42)
    lengths, H, D = (15, 85, 200, 900, 800), 2, 100
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    T = sum(lengths)
    q, k, v, do = (torch.randn(1, T, H, D, device=DEVICE, dtype=kind) for _ in range(4))
    g = torch.empty(1, T, H, device=DEVICE, dtype=kind).uniform_(-0.1, -0.01)
    leaves = [x.requires_grad_() for x in (q, k, v, g)]
    found = torch.autograd.grad(parallel_forgetting_attn(*leaves, cu_seqlens=offsets(lengths)), leaves, do)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    parts, start = [], 0
    for n in lengths:
        parts.append(_forgetting(*(x[:, start : start + n] for x in wide)))
        start += n
    expected = torch.autograd.grad(torch.cat(parts, 1), wide, do.double())
    ratios = {n: rms_ratio(e, x) for n, e, x in zip(("dq", "dk", "dv", "dg"), expected, found, strict=True)}
    return Finding.of(
        not ratios["dq"] < 0.005, "RMS error over RMS value: " + ", ".join(f"{n} {r:.2g}" for n, r in ratios.items())
    )


def _forgetting(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Softmax attention with the sum of the log gates between the two tokens added to a score."""
    scores = torch.einsum("bihd,bjhd->bhij", q * q.shape[-1] ** -0.5, k)
    total = g.cumsum(1).transpose(1, 2)
    scores = scores + total[..., None] - total[:, :, None]
    later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(later, -torch.inf).softmax(-1), v)


def issue_1187(scale: float) -> Finding:
    """NaN of MesaNet, whose states were float16: values that are not normalised, as in training."""
    from fla.ops.mesa_net import chunk_mesa_net

    torch.manual_seed(0)
    B, T, H, D = 1, 2048, 4, 128
    q, k, v, do = (torch.randn(B, T, H, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(4))
    leaves = [q, k, (v * scale)]
    g = torch.full((B, T, H), -0.001, device=DEVICE)
    beta = torch.rand(B, T, H, device=DEVICE)
    lamb = torch.rand(H, D, device=DEVICE) * 0.75 + 0.25
    leaves = [x.detach().requires_grad_() for x in (*leaves, g, beta, lamb)]
    q, k, v, g, beta, lamb = leaves
    found = chunk_mesa_net(q, k, v, g, beta, lamb, output_final_state=True, use_qk_l2norm_in_kernel=True)
    o, *states = found
    grads = torch.autograd.grad(o, leaves, do)
    named = {
        "o": o,
        **{f"state{i}": s for i, s in enumerate(states)},
        **dict(zip(("dq", "dk", "dv", "dg", "dbeta", "dlamb"), grads, strict=True)),
    }
    bad = {n: int((~torch.isfinite(x)).sum()) for n, x in named.items() if not torch.isfinite(x).all()}
    return Finding.of(bad, f"not finite: {bad or 'nothing'}")


def issue_837() -> Finding:
    """PaTH with cu_seqlens and more than one row: now refused."""
    from fla.ops.path_attn import parallel_path_attn

    B, T, H, D = 2, 128, 2, 64
    q, k, v = (torch.randn(B, T, H, D, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    w = torch.nn.functional.normalize(torch.randn(B, T, H, D, device=DEVICE), dim=-1)
    beta = torch.rand(B, T, H, device=DEVICE)
    try:
        parallel_path_attn(q, k, v, w, beta, cu_seqlens=offsets((T, T)))
    except ValueError as error:
        return Finding("not reproduced", f"refused: {str(error)[:90]}")
    return Finding("reproduced", "two rows together with cu_seqlens are taken without a word")


def issue_892(module: str, name: str, operator: str) -> Finding:
    """More tokens than the last offset says: rows of results and gradients behind it that nobody wrote."""
    function = getattr(import_module(module), name)
    case = parse_case(
        f"{operator}/B1.T256.H2.K64.V64/bf16/cotangent=o" + ("/gate=mild" if operator != "delta_rule" else "")
    )
    problem = draw.problem(case, registry.operator(operator))
    given = {n: t.to(DEVICE).requires_grad_() for n, t in problem.tensors.items()}
    poison()
    o = function(**given, cu_seqlens=offsets((64, 86)))[0]
    do = problem.cotangents["o"].to(DEVICE)
    do[:, 150:] = 0
    poison()
    grads = torch.autograd.grad(o, list(given.values()), do)
    tails = {"o": o, **{f"d{n}": g for n, g in zip(given, grads, strict=True)}}
    bad = {n: int((~torch.isfinite(x[:, 150:])).sum()) for n, x in tails.items()}
    bad = {n: c for n, c in bad.items() if c}
    return Finding.of(bad, f"not finite behind the last offset: {bad or 'nothing'}")


def issue_1274(module: str, name: str, operator: str) -> Finding:
    """Other borders written into the same offsets: chunk indices remembered by the tensor's identity."""
    function = getattr(import_module(module), name)
    base = f"{operator}/B1.T256.H2.K64.V64/bf16" + ("/gate=mild" if operator != "delta_rule" else "")
    borders = offsets((200, 56))
    case = parse_case(f"{base}/lengths=200.56")
    given = {n: t.to(DEVICE) for n, t in draw.problem(case, registry.operator(operator)).tensors.items()}
    function(**given, cu_seqlens=borders)
    borders.copy_(offsets((56, 200)))
    poison()
    return told(judged(f"{base}/lengths=56.200", lambda **x: function(**{**x, "cu_seqlens": borders})))
