"""RWKV-6 in CUDA C++, token by token, with initial and final state, packed sequences, and gradients of everything.

float16, bfloat16 and float32 inputs with float32 inside; float64 with float64. On the CPU the same source runs as C++.

Source: Peng et al. 2024, arXiv:2404.05892, section 4; a thread for a column of the state, as in RWKV's own kernels,
github.com/BlinkDL/RWKV-CUDA.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linverify.implementation import kernel
from linverify.impls._compiled import ELEMENTS, Unit, absent, launch
from linverify.impls._operands import narrow_enough, offsets, one_dtype, shaped

_SEGMENT, _THREADS = 64, 64  # as in rwkv6.cu


def _blocks(width: int) -> tuple[int, int]:
    """How many blocks share `width` columns or rows of a state, and their threads."""
    threads = min(_THREADS, -(-width // 32) * 32)
    return -(-width // threads), threads


class _RWKV6(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        w: Tensor,
        u: Tensor,
        state: Tensor | None,
        ends: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        (B, T, H, K), V, N = q.shape, v.shape[3], len(ends) - 1
        unit = Unit("rwkv6.cu", q.dtype, (("KEYS", K), ("VALUES", V)))
        o, final = torch.empty_like(v), w.new_empty(N, H, K, V)
        kept = w.new_empty(B * T // _SEGMENT + N, H, K, V) if any(ctx.needs_input_grad) else None
        across, threads = _blocks(V)
        launch(
            unit, "forward", q.device, (N * H, across), threads,
            q, k, v, w, u, state, ends, o, final, kept, H, scale,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, w, u, ends, kept)
        ctx.unit, ctx.scale, ctx.stateful = unit, scale, state is not None
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, w, u, ends, kept = ctx.saved_tensors
        H, K, V, N = q.shape[2], q.shape[3], v.shape[3], len(ends) - 1
        grad_o, grad_final = grad_o.contiguous(), grad_final.contiguous()
        dq, dk, dv, dw = (torch.empty_like(x) for x in (q, k, v, w))
        du, dstate = w.new_empty(N, H, K), w.new_empty(N, H, K, V) if ctx.stateful else None
        across, threads = _blocks(V)
        launch(
            ctx.unit, "backward_values", q.device, (N * H, across), threads,
            q, k, w, u, grad_o, grad_final, ends, dv, dstate, H, ctx.scale,
        )  # fmt: skip
        scratch = w.new_empty(N * H, _SEGMENT, V, K)
        across, threads = _blocks(K)
        launch(
            ctx.unit, "backward_keys", q.device, (N * H, across), threads,
            q, k, v, w, u, grad_o, grad_final, kept, ends, dq, dk, dw, du, scratch, H, ctx.scale,
        )  # fmt: skip
        return dq, dk, dv, dw, du.sum(0), dstate, None, None


@kernel("rwkv6", form="recurrent", backend="cuda", claims={"fp32": "ieee", "deterministic": "true"}, absent=absent())
def rwkv6(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """RWKV-6, one block for each sequence and head.

    Args:
        q: [B, T, H, K] receptance.
        k: [B, T, H, K].
        v: [B, T, H, V].
        w: [B, T, H, K] log decay, at most 0.
        u: [H, K] bonus.
        scale: multiplies o; K**-0.5 where None.
        initial_state: [N, H, K, V], N being B or the number of packed sequences; zeros where None.
        output_final_state: whether the final state is returned.
        cu_seqlens: [N + 1] starts of packed sequences and their end, with B = 1.

    Returns:
        o [B, T, H, V] in v's dtype, and None or the final state [N, H, K, V], float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes, devices or offsets that do not fit; K or V above 256.
    """
    sizes = shaped("rwkv6", {"q": (q, "BTHK"), "k": (k, "BTHK"), "v": (v, "BTHV"), "w": (w, "BTHK"), "u": (u, "HK")})
    narrow_enough("rwkv6", K=sizes["K"], V=sizes["V"])
    ends = offsets(cu_seqlens, sizes, q.device)
    operands = [x.contiguous() for x in one_dtype(q, k, v)]
    real = ELEMENTS[operands[0].dtype][1]
    if initial_state is not None:
        shaped("rwkv6", {"q": (q, "BTHK"), "v": (v, "BTHV"), "initial_state": (initial_state, "NHKV")})
        if len(initial_state) != len(ends) - 1:
            raise ValueError(f"rwkv6: expected initial_state of {len(ends) - 1} sequences, got {len(initial_state)}")
        initial_state = initial_state.to(real).contiguous()
    factor = sizes["K"] ** -0.5 if scale is None else float(scale)
    o, final = _RWKV6.apply(*operands, w.to(real).contiguous(), u.to(real).contiguous(), initial_state, ends, factor)
    return o.to(v.dtype), final if output_final_state else None
