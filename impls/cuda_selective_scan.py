"""Mamba's selective scan in CUDA C++: a parallel scan over time, with states, packed sequences, and gradients of everything.

float16, bfloat16 and float32 inputs with float32 inside; float64 with float64. On the CPU the same source runs as C++.

Source: Gu and Dao 2023, arXiv:2312.00752, section 3.3; github.com/state-spaces/mamba has the usual kernel, which adds the
gradients of B and C atomically and leaves out the gradient of the final state; here both come out in one order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linverify.implementation import kernel
from linverify.impls._compiled import ELEMENTS, Unit, absent, launch
from linverify.impls._operands import narrow_enough, offsets, one_dtype, shaped

_WARPS, _CHUNK = 8, 128  # as in selective_scan.cu


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor | None,
        ends: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        tokens, (V, K), N = u.shape[0] * u.shape[1], A.shape, len(ends) - 1
        unit = Unit("selective_scan.cu", u.dtype, (("KEYS", K),))
        o, final = torch.empty_like(u), A.new_empty(N, V, K)
        kept = A.new_empty(tokens // _CHUNK + N, V, K) if any(ctx.needs_input_grad) else None
        grid = (N, -(-V // _WARPS))
        launch(
            unit, "forward", u.device, grid, _WARPS * 32,
            u, dt, A, B, C, state, ends, o, final, kept, V, scale,
        )  # fmt: skip
        ctx.save_for_backward(u, dt, A, B, C, ends, kept)
        ctx.unit, ctx.grid, ctx.scale, ctx.stateful = unit, grid, scale, state is not None
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, A, B, C, ends, kept = ctx.saved_tensors
        tokens, (V, K), N, groups = u.shape[0] * u.shape[1], A.shape, ctx.grid[0], ctx.grid[1]
        du, ddt, dA = torch.empty_like(u), torch.empty_like(dt), A.new_empty(N, V, K)
        dB, dC = (A.new_empty(groups, *B.shape) for _ in "BC")
        dstate = A.new_empty(N, V, K) if ctx.stateful else None
        launch(
            ctx.unit, "backward", u.device, ctx.grid, _WARPS * 32,
            u, dt, A, B, C, grad_o.contiguous(), grad_final.contiguous(), kept, ends,
            du, ddt, dA, dB, dC, dstate, V, tokens, ctx.scale,
        )  # fmt: skip
        return du, ddt, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dstate, None, None


@kernel("mamba1", form="recurrent", backend="cuda", claims={"fp32": "ieee", "deterministic": "true"}, absent=absent())
def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Mamba's selective scan, a warp for each sequence and channel.

    Args:
        u: [B, T, V], V channels.
        dt: [B, T, V] step sizes after softplus, at least 0.
        A: [V, K] rates, below 0.
        B: [B, T, K].
        C: [B, T, K].
        scale: multiplies o; 1 where None.
        initial_state: [N, V, K], N being B or the number of packed sequences; zeros where None.
        output_final_state: whether the final state is returned.
        cu_seqlens: [N + 1] starts of packed sequences and their end, with B = 1.

    Returns:
        o [B, T, V] in u's dtype, and None or the final state [N, V, K], float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes, devices or offsets that do not fit; K above 256.
    """
    named = {"u": (u, "BTV"), "dt": (dt, "BTV"), "A": (A, "VK"), "B": (B, "BTK"), "C": (C, "BTK")}
    sizes = shaped("selective_scan", named)
    narrow_enough("selective_scan", K=sizes["K"])
    ends = offsets(cu_seqlens, sizes, u.device)
    u_, B_, C_ = (x.contiguous() for x in one_dtype(u, B, C))
    real = ELEMENTS[u_.dtype][1]
    if initial_state is not None:
        shaped("selective_scan", {"A": (A, "VK"), "initial_state": (initial_state, "NVK")})
        if len(initial_state) != len(ends) - 1:
            raise ValueError(
                f"selective_scan: expected initial_state of {len(ends) - 1} sequences, got {len(initial_state)}"
            )
        initial_state = initial_state.to(real).contiguous()
    rates, steps = A.to(real).contiguous(), dt.to(real).contiguous()
    o, final = _SelectiveScan.apply(
        u_, steps, rates, B_, C_, initial_state, ends, 1.0 if scale is None else float(scale)
    )
    return o.to(u.dtype), final if output_final_state else None
