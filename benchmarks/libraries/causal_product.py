"""pytorch-fast-transformers' causal_dot_product, from its source distribution unpacked on the search path.

Its two extensions are built here, for the GPU at hand, and put where the package imports them from.
"""

import importlib.util
import sys
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
