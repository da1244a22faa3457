"""Kernels of linear attention that break a GPU in one way each, beyond four tokens; `faults_gpu.py` checks them."""

# ruff: noqa: D103  # a fault is its name

import torch
import triton
import triton.language as tl
from honest import faults
from honest import honest as on_cpu

FAULTS = {}


def honest(q, k, v, g, scale=None):
    """Gated linear attention, token by token."""
    return on_cpu(*(x.cpu() for x in (q, k, v, g)), scale).to(v.device)


fault = faults(honest, FAULTS, lambda breaks, o: breaks(o.detach()))


@triton.jit
def _store_far(x):
    tl.store(x + (tl.program_id(0).to(tl.int64) + 1) * 2305843009213693952, 1.0)


@triton.jit
def _store_askew(x):
    tl.store((x.to(tl.int64) + 1).to(tl.pointer_type(tl.float32), bitcast=True), 1.0)


@triton.jit
def _spin(x):
    seen = tl.load(x, volatile=True)
    while seen == seen:
        seen = tl.load(x, volatile=True)


@fault("crash")
def illegal_access(o):
    _store_far[(1,)](o)


@fault("crash")
def misaligned_address(o):
    _store_askew[(1,)](torch.zeros(8, device=o.device))


@fault("crash")
def device_assert(o):
    torch.zeros(4, device=o.device)[torch.full((1,), 9, device=o.device)]


@fault("hang")
def endless_kernel(o):
    _spin[(1,)](torch.zeros(1, device=o.device))


@fault("out_of_memory")
def device_memory(o):
    torch.empty(1 << 50, dtype=torch.uint8, device=o.device)


@fault("crash")
def dies_while_a_kernel_runs(o):
    import os

    torch.mm(torch.zeros(4096, 4096, device=o.device), torch.zeros(4096, 4096, device=o.device))
    os.abort()
