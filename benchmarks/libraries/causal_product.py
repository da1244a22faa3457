"""pytorch-fast-transformers' causal_dot_product and the attention made of it, from its unpacked source distribution.

Its two extensions are built here, for the GPU at hand, and put where the package imports them from.
"""

import importlib.util
import sys
import types
from pathlib import Path

import torch
from torch.utils.cpp_extension import load

FOLDER = Path(importlib.util.find_spec("fast_transformers").submodule_search_locations[0]) / "causal_product"


def build(_=""):
    """Build what is not there yet."""
    threads = ["-fopenmp"]
    for device, suffix, flags in (("cpu", ".cpp", threads), ("cuda", ".cu", [])):
        name = f"causal_product_{device}"
        where = f"fast_transformers.causal_product.{name}"
        if where not in sys.modules and (device == "cpu" or torch.cuda.is_available()):
            source = str(FOLDER / f"{name}{suffix}")
            sys.modules[where] = load(name=name, sources=[source], extra_cflags=["-O3", *flags], extra_ldflags=flags)


def causal_dot_product(Q, K, V):
    """Heads before tokens, as the operator has them."""
    build()
    from fast_transformers.causal_product import causal_dot_product as library_function

    return library_function(Q, K, V)


def causal_linear_attention(q, k, v, scale=None):
    """CausalLinearAttention as normalized_linear_attention: it has no scale, which divides its eps instead."""
    build()
    # the package of attentions imports others, whose extensions are not built here
    attention = types.ModuleType("fast_transformers.attention")
    attention.__path__ = [str(FOLDER.parent / "attention")]
    sys.modules.setdefault(attention.__name__, attention)
    from fast_transformers.attention.causal_linear_attention import CausalLinearAttention
    from fast_transformers.masking import LengthMask, TriangularCausalMask

    B, T, _, K = q.shape
    scale = K**-0.5 if scale is None else scale
    lengths = LengthMask(torch.full((B,), T, dtype=torch.int64, device=q.device), max_len=T)
    return CausalLinearAttention(K, eps=1e-6 / scale)(q, k, v, TriangularCausalMask(T, q.device), lengths, lengths)
