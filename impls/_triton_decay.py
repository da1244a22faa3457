# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The chunkwise decay family of `_triton_decay_*.py`, forward and backward, as one function of canonical terms.

The states are carried from chunk to chunk (the one sequential step), then all chunks are read in parallel: what a token reads
of earlier chunks, exp(G) q S, and what it reads of its own, A v, with the scores A of its chunk. Backward carries the state's
gradient the other way round, and the gradients of all chunks follow in parallel.

Source: Yang et al. 2023 (arXiv 2312.06635), section 4.3; Qin et al. 2024 (arXiv 2401.04658), algorithms 1 and 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from linverify.impls import _triton_decay_scores as shaped
from linverify.impls import _triton_decay_states as common
from linverify.impls._triton_chunks import CHUNK, SUB_CHUNK, Chunks, cut
from linverify.impls._triton_rows import block
from linverify.operator import Canonical

STAGES = 2  # of loads in flight; more do not fit where operands are float32


@dataclass(frozen=True, slots=True)
class Plan:
    """How one call is cut up.

    Attributes:
        chunks: where chunks begin and end.
        scale: of the query.
        channels: numbers a gate has: 0 no decay, 1 one for all channels, 2 one a channel.
        constant: the decay is a number of the head, and no input.
        kind: how matrix products take operands; see `_triton_decay_states`.
    """

    chunks: Chunks
    scale: float
    channels: int
    constant: bool
    kind: str

    @property
    def precise(self) -> str:
        """How products inside a chunk of gated channels take operands that a decay has made float32."""
        return "fp32" if self.kind == "bf16" else self.kind

    @property
    def gated(self) -> bool:
        """Whether a gate has a gradient."""
        return self.channels > 0 and not self.constant

    @property
    def operands(self) -> torch.dtype:
        """The dtype of what only products of matrices read."""
        return torch.bfloat16 if self.kind == "bf16" else torch.float32

    @property
    def states(self) -> torch.dtype:
        """The dtype of states between chunks and of their gradients.

        What a chunk's gates lose by the state is the product of the two, number by number. Of a chunk's last tokens that is
        nearly all of a gate's gradient, and rounded to bf16 before it would leave two digits of it.
        """
        return torch.float32 if self.gated else self.operands

    @property
    def flags(self) -> dict[str, Any]:
        """What most kernels are compiled for."""
        return {"CHANNELS": self.channels, "KIND": self.kind, "BT": CHUNK}


def chunkwise(c: Canonical, scale: float, lengths: Sequence[int], initial: Tensor) -> tuple[Tensor, Tensor]:
    """Run the terms, [B, T, H, .], from the initial states [N, H, K, V]."""
    g, channels, constant = c.log_decay, 0, False
    if g is not None:
        channels, constant = 1 if g.shape[3] == 1 else 2, g.shape[:2] != c.q.shape[:2]  # constant: [1, 1, H, 1]
        g = g.flatten() if constant else g.flatten(0, 1).contiguous()
        g = g.squeeze(-1) if channels == 1 and not constant else g
    kind = {torch.bfloat16: "bf16", torch.float16: "tf32"}.get(c.v.dtype, "fp32")
    plan = Plan(cut(tuple(lengths), c.q.device), float(scale), channels, constant, kind)
    q, k, v = (x.flatten(0, 1).contiguous() for x in (c.q, c.k, c.v))
    # Kernels are launched on the current device; autograd sees to it in the backward.
    with torch.cuda.device_of(v):
        o, final = Decay.apply(plan, q, k, v, g, initial.float().contiguous())
    return o.view(c.v.shape), final


class Decay(torch.autograd.Function):
    """q, k [tokens, H, K], v [tokens, H, V], g None, [H], [tokens, H] or [tokens, H, K], initial [N, H, K, V]."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, initial: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return o [tokens, H, V], in the dtype of v, and the final states."""
        ctx.plan = plan
        if not q.numel():  # empty sequences alone
            ctx.save_for_backward(q, k, v, g)
            return torch.empty_like(v), initial.clone()
        (H, K), V, spans, NC = q.shape[1:], v.shape[2], plan.chunks.spans, plan.chunks.count
        BK, wide = block(K, 64), block(V, 128)
        G = None if g is None else g.new_empty(q.shape[: 1 + plan.channels])
        if g is not None and G is not None:
            D = G[0].numel()
            common.sums[NC, triton.cdiv(D, 64)](g, G, spans, D, CONSTANT=plan.constant, BT=CHUNK, BD=64)
        kept = torch.empty(NC, H, K, V, dtype=plan.states, device=q.device)
        A = torch.empty(*q.shape[:2], CHUNK, dtype=plan.operands, device=q.device)
        o, final = torch.empty_like(v), torch.empty_like(initial)
        _carry(plan, k, v, G, initial, kept, final, 1.0, back=False)
        if plan.channels == 2:
            shaped.channel_scores[NC, H, CHUNK // SUB_CHUNK](
                q, k, G, A, spans, plan.scale, H, K,
                KIND=plan.precise, BT=CHUNK, BC=SUB_CHUNK, BK=BK, num_stages=STAGES,
            )  # fmt: skip
        else:
            shaped.scores[NC, H](q, k, G, A, spans, plan.scale, H, K, **plan.flags, BK=BK, num_stages=STAGES)
        common.outputs[NC, H, triton.cdiv(V, wide)](
            q, v, G, A, kept, spans, o, plan.scale, H, K, V, **plan.flags, BK=BK, BV=wide, num_stages=STAGES
        )
        ctx.save_for_backward(q, k, v, G, A, kept)
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        plan: Plan = ctx.plan
        if not ctx.saved_tensors[0].numel():
            return None, *(None if x is None else torch.zeros_like(x) for x in ctx.saved_tensors), dfinal
        q, k, v, G, A, kept = ctx.saved_tensors
        (H, K), V, spans, NC = q.shape[1:], v.shape[2], plan.chunks.spans, plan.chunks.count
        BK, BV, wide = block(K, 64), block(V, 64), block(V, 128)
        do = do.contiguous()
        dkept, dinitial = torch.empty_like(kept), torch.empty_like(dfinal)
        _carry(plan, q, do, G, dfinal.contiguous(), dkept, dinitial, plan.scale, back=True)
        dv = torch.empty_like(v)
        common.value_gradients[NC, H, triton.cdiv(V, wide)](
            k, G, A, dkept, do, spans, dv, H, K, V, **plan.flags, BK=BK, BV=wide, num_stages=STAGES
        )
        dA = torch.empty(A.shape, dtype=torch.float32, device=A.device)
        common.score_gradients[NC, H](
            v, do, spans, dA, plan.scale, H, V, KIND=plan.kind, BT=CHUNK, BV=BV, num_stages=STAGES
        )
        inner: list[Tensor | None] = [None, None]
        parts = triton.cdiv(K, BK)
        if plan.channels == 2:
            inner = [torch.empty_like(q, dtype=torch.float32) for _ in range(2)]
            shaped.channel_gradients[NC, H, CHUNK // SUB_CHUNK * parts](
                q, k, G, dA, spans, *inner, H, K,
                KIND=plan.precise, BT=CHUNK, BC=SUB_CHUNK, BK=BK, num_stages=STAGES,
            )  # fmt: skip
        dq, dk, dg = torch.empty_like(q), torch.empty_like(k), None
        if plan.gated:
            dg = G.new_empty(G.shape if plan.channels == 2 else (parts, *G.shape))
        shaped.gradients[NC, H, parts](
            q, k, v, G, dA, *inner, kept, dkept, do, spans, dq, dk, dg, plan.scale, H, q.shape[0], K, V,
            GATES=plan.gated, **plan.flags, BK=BK, BV=BV, num_stages=STAGES,
        )  # fmt: skip
        return None, dq, dk, dv, dg.sum(0) if dg is not None and plan.channels == 1 else dg, dinitial


def _carry(
    plan: Plan, x: Tensor, y: Tensor, G: Tensor | None, initial: Tensor, kept: Tensor, final: Tensor, scale: float,
    *, back: bool,
) -> None:  # fmt: skip
    """Carry states forwards, or their gradients back."""
    N, H, K, V = initial.shape
    BK, BV = block(K, 64), block(V, 32)
    common.states[N, H, triton.cdiv(K, BK) * triton.cdiv(V, BV)](
        x, y, G, plan.chunks.starts, plan.chunks.slots, initial, kept, final, scale, H, K, V,
        BACK=back, **plan.flags, BK=BK, BV=BV,
    )  # fmt: skip
