"""Two autotuned Triton kernels that compute linear attention; one configuration of the second gives wrong results."""

import torch
import triton
import triton.language as tl

from linverify import kernel


@triton.autotune(configs=[triton.Config({"BLOCK": 32}), triton.Config({"BLOCK": 64})], key=["n"])
@triton.jit
def _scaled(q, out, scale, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(q + i, mask=i < n) * scale, mask=i < n)


@triton.autotune(
    configs=[triton.Config({"STEP": 16}), triton.Config({"STEP": 32}), triton.Config({"STEP": 64})], key=["T"]
)
@triton.jit
def _attended(q, k, v, o, T, K: tl.constexpr, V: tl.constexpr, KS: tl.constexpr, VS: tl.constexpr, STEP: tl.constexpr):
    t, row = tl.program_id(0), tl.program_id(1)
    a, b = tl.arange(0, KS), tl.arange(0, VS)
    query = tl.load(q + (row * T + t) * K + a, mask=a < K, other=0.0)
    total = tl.zeros([VS], tl.float32)
    for start in range(0, T, STEP):
        s = start + tl.arange(0, STEP)
        seen = (s <= t) & (s < T)
        if STEP == 32:
            seen = (s < t) & (s < T)  # the fault: a token does not see itself
        keys = tl.load(k + (row * T + s[:, None]) * K + a[None, :], mask=seen[:, None] & (a < K)[None, :], other=0.0)
        values = tl.load(v + (row * T + s[:, None]) * V + b[None, :], mask=seen[:, None] & (b < V)[None, :], other=0.0)
        total += tl.sum(tl.sum(keys * query[None, :], 1)[:, None] * values, 0)
    tl.store(o + (row * T + t) * V + b, total, mask=b < V)


@kernel("linear_attention", backend="triton")
def attention(q, k, v, scale=None):
    B, T, H, K = q.shape
    V = v.shape[-1]
    q, k, v = (x.detach().transpose(1, 2).contiguous() for x in (q, k, v))
    scaled, o = torch.empty_like(q), torch.empty_like(v)
    _scaled[lambda meta: (triton.cdiv(q.numel(), meta["BLOCK"]),)](
        q, scaled, K**-0.5 if scale is None else scale, q.numel()
    )
    wide = triton.next_power_of_2(K), triton.next_power_of_2(V)
    _attended[(T, B * H)](scaled, k, v, o, T, K, V, *wide)
    return o.transpose(1, 2).contiguous()
