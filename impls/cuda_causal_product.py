"""Causal product in CUDA C++, by each of its two classic mappings and by the one that fits the number of heads.

Layout [B, H, T, .], nothing scaled, nothing normalised, no state: the contract of fast-transformers, which takes float32
alone. Here float16, bfloat16 (float32 inside) and float64 are taken too. On the CPU the same source runs as C++.

Source: Katharopoulos et al. 2020, arXiv:2006.16236; github.com/idiap/fast-transformers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linverify.implementation import kernel
from linverify.impls._compiled import Unit, absent, launch
from linverify.impls._operands import narrow_enough, one_dtype, shaped

# Below this many heads the GPU is not full of blocks: the threshold of fast-transformers.
FEW_HEADS = 40
_WARPS, _COLUMNS = 4, 128  # the second as in causal_product.cu

_CLAIMS = {"fp32": "ieee", "deterministic": "true"}


def _product(mapping: str, a: Tensor, b: Tensor, c: Tensor, *, backwards: bool = False) -> Tensor:
    """Sum (a_t . b_j) c_j over j up to t, or from t on: [B, H, T, columns]."""
    heads, T, columns = c.shape[0] * c.shape[1], c.shape[2], c.shape[3]
    unit = Unit("causal_product.cu", c.dtype, (("WIDTH", a.shape[3]),))
    if mapping == "one_block":
        grid, threads = (heads, 1), min(_COLUMNS, -(-columns // 32) * 32)
    else:
        grid, threads = (heads, -(-columns // _WARPS)), _WARPS * 32
    out = torch.empty_like(c)
    launch(unit, mapping, c.device, grid, threads, a, b, c, out, T, columns, int(backwards))
    return out


class _CausalProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mapping: str, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        ctx.mapping = mapping
        ctx.save_for_backward(Q, K, V)
        return _product(mapping, Q, K, V)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        Q, K, V = ctx.saved_tensors
        grad = grad.contiguous()
        return (
            None,
            _product(ctx.mapping, grad, V, K),
            _product(ctx.mapping, V, grad, Q, backwards=True),
            _product(ctx.mapping, K, Q, grad, backwards=True),
        )


def _run(mapping: str, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    sizes = shaped("causal_product", {"Q": (Q, "BHTK"), "K": (K, "BHTK"), "V": (V, "BHTV")})
    narrow_enough("causal_product", K=sizes["K"], V=sizes["V"])
    o: Tensor = _CausalProduct.apply(mapping, *(x.contiguous() for x in one_dtype(Q, K, V)))
    return o.to(V.dtype)


@kernel("causal_product", form="recurrent", backend="cuda", claims=_CLAIMS, absent=absent())
def one_block_per_head(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    """Causal product, a block for each head and a thread for each column of V.

    Args:
        Q: [B, H, T, K].
        K: [B, H, T, K].
        V: [B, H, T, V].

    Returns:
        [B, H, T, V] in V's dtype.
    """
    return _run("one_block", Q, K, V)


@kernel("causal_product", form="recurrent", backend="cuda", claims=_CLAIMS, absent=absent())
def low_occupancy(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    """Causal product, a warp for each column of V; arguments and result as of ``one_block_per_head``."""
    return _run("low_occupancy", Q, K, V)


@kernel("causal_product", form="recurrent", backend="cuda", claims=_CLAIMS, absent=absent())
def causal_product(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    """Causal product by the mapping that fits B * H; arguments and result as of ``one_block_per_head``."""
    return _run("low_occupancy" if Q.shape[0] * Q.shape[1] < FEW_HEADS else "one_block", Q, K, V)
