"""Triton kernels that tell what configuration they run with, or break the device; the tests of the worker run them."""

import torch
import triton
import triton.language as tl


def _second(configs, nargs, **kwargs):
    return configs[1:]


@triton.autotune(configs=[triton.Config({"BLOCK": 32}), triton.Config({"BLOCK": 64})], key=["n"])
@triton.jit
def _write_block(out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.zeros([BLOCK], tl.float32) + BLOCK, mask=i < n)


@triton.autotune(
    configs=[triton.Config({"BLOCK": 32}), triton.Config({"BLOCK": 64})],
    key=["n"],
    prune_configs_by={"early_config_prune": _second},
)
@triton.jit
def _write_pruned_block(out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.zeros([BLOCK], tl.float32) + BLOCK, mask=i < n)


@triton.jit
def _write_first_half(out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.zeros([BLOCK], tl.float32), mask=i < n // 2)


@triton.jit
def _write_far_away(out):
    far = tl.load(out).to(tl.int64) * 0 + (1 << 46)
    tl.store(out + far, 1.0)


@triton.autotune(
    configs=[triton.Config({"SIDE": 256}, num_stages=4), triton.Config({"SIDE": 16}, num_stages=1)], key=["n"]
)
@triton.jit
def _multiply(out, x, n, SIDE: tl.constexpr):
    i = tl.arange(0, SIDE)
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for start in range(0, n, SIDE):
        left = tl.load(x + (start + i)[:, None] * SIDE + i[None, :])
        right = tl.load(x + i[:, None] * SIDE + (start + i)[None, :])
        total += tl.dot(left, right)
    tl.store(out, tl.sum(tl.sum(total, 1), 0) * 0 + SIDE)


def _blocks(kernel, v):
    out = torch.empty_like(v)
    kernel[lambda meta: (triton.cdiv(out.numel(), meta["BLOCK"]),)](out, out.numel())
    return out


def block(q, k, v):
    return _blocks(_write_block, v)


def pruned_block(q, k, v):
    return _blocks(_write_pruned_block, v)


def half_written(q, k, v):
    out = torch.empty_like(v)
    _write_first_half[(triton.cdiv(out.numel(), 32),)](out, out.numel(), BLOCK=32)
    return out


def far_away(q, k, v):
    out = torch.zeros_like(v)
    _write_far_away[(1,)](out)
    return out


def side(q, k, v):
    out = torch.zeros_like(v)
    _multiply[(1,)](out, torch.ones(1 << 18, device=v.device), 512)
    return out


def too_much_memory(q, k, v):
    return v + torch.empty(1 << 40, device=v.device).sum()


def eight_gib(q, k, v):
    return v + torch.empty(1 << 33, dtype=torch.uint8, device=v.device)[0].to(v.dtype) * 0


def bad_launch(q, k, v):
    _write_first_half[(1, 1 << 20, 1)](torch.empty_like(v), 4, BLOCK=32)
    return v


def no_triton(q, k, v):
    return v
