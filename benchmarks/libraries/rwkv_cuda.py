"""RWKV's CUDA kernels from flash-rwkv and rwkv, built on demand: heads of 64 channels, values first in states, no scale.

Narrower heads are padded with zeros, which changes nothing; the scale goes into r; a log decay w is passed as log(-w), since
the kernels take exp(-exp(.)) of what they get.
"""

import importlib.util
import sys
import types
from pathlib import Path

import torch
from torch.nn.functional import pad
from torch.utils.cpp_extension import load

N = 64
FLAGS = ["--use_fast_math", "-O3", "-Xptxas", "-O3", "--extra-device-vectorization", f"-D_N_={N}"]


def build(function):
    """Build what a function needs."""
    if function == "flash_rwkv6":
        _flash()
    else:
        _rwkv(int(function[-1]))


def _flash():
    """flash-rwkv's RWKV-6 module without its package, whose import builds RWKV-5, too."""
    if "flash_rwkv" not in sys.modules:
        package = types.ModuleType("flash_rwkv")
        package.__path__ = list(importlib.util.find_spec("flash_rwkv").submodule_search_locations)
        sys.modules["flash_rwkv"] = package
    return importlib.import_module("flash_rwkv.rwkv6.wkv6_op")


def _wide(x):
    if x.shape[-1] > N:
        raise ValueError(f"the kernel has heads of {N} channels, got {x.shape[-1]}")
    return pad(x, (0, N - x.shape[-1]))


def _rows(*tensors):
    """[B, T, H, D] to [B, T, H * 64]."""
    return [_wide(x).flatten(2).contiguous() for x in tensors]


def _state(initial, like):
    B, _, H, _ = like.shape
    if initial is None:
        return torch.zeros(B, H, N, N, device=like.device)
    return pad(_wide(initial.transpose(-1, -2).float()), (0, 0, 0, N - initial.shape[-1])).contiguous()


def _results(o, state, v, K, output_final_state):
    V = v.shape[-1]
    o = o.reshape(*v.shape[:3], N)[..., :V]
    return (o, state[:, :, :V, :K].transpose(-1, -2)) if output_final_state else o


def flash_rwkv6(q, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    """flash-rwkv's rwkv6_cuda_linear_attention."""
    K = q.shape[-1]
    r, *rest = _rows(q * (K**-0.5 if scale is None else scale), k, v, (-w.float()).log())
    found = _flash().rwkv6_cuda_linear_attention(r, *rest, _wide(u).contiguous(), _state(initial_state, v))
    return _results(*found, v, K, output_final_state)


def _rwkv(version):
    """The sources that the package rwkv ships, with its flags."""
    folder = Path(importlib.util.find_spec("rwkv").origin).parent / "cuda"
    sources = [str(folder / f"rwkv{version}_op.cpp"), str(folder / f"rwkv{version}.cu")]
    name = "rwkv6" if version == 6 else "wkv7s"
    load(name=name, sources=sources, is_python_module=False, extra_cuda_cflags=[*FLAGS, "-D_T_=4096"])
    return getattr(torch.ops, name)


def _kernel(library, dtype):
    return getattr(
        library, {torch.float32: "forward_fp32", torch.bfloat16: "forward_bf16", torch.float16: "forward_fp16"}[dtype]
    )


def rwkv6(q, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    """The package rwkv's RWKV-6 kernel, row by row: it says itself that it is wrong for more than one."""
    kernel, K = _kernel(_rwkv(6), v.dtype), q.shape[-1]
    B, T, H, _ = v.shape
    r, k, x, w = _rows(q * (K**-0.5 if scale is None else scale), k, v, w.float().exp())
    u, state, o = _wide(u).contiguous(), _state(initial_state, v), torch.empty_like(x)
    for b in range(B):
        kernel(1, T, H * N, H, state[b], r[b], k[b], x[b], w[b], u, o[b])
    return _results(o, state, v, K, output_final_state)


def rwkv7(q, w, k, v, a, b, scale=None, initial_state=None, output_final_state=False):
    """The package rwkv's RWKV-7 kernel, row by row, as it asserts."""
    kernel, K = _kernel(_rwkv(7), v.dtype), q.shape[-1]
    B, T, H, _ = v.shape
    r, w, k, x, a, b = _rows(q if scale is None else q * scale, (-w).log(), k, v, a, b)
    state, o = _state(initial_state, v), torch.empty_like(x)
    for i in range(B):
        kernel(1, T, H * N, H, state[i], r[i], w[i], k[i], x[i], a[i], b[i], o[i])
    return _results(o, state, v, K, output_final_state)
