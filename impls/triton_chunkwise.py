"""The chunkwise form of the decay family in Triton: chunks of 64 tokens, quadratic inside, a state between them.

The states are carried from chunk to chunk (the one sequential step), then all chunks are read in parallel: what a token reads
of earlier chunks, exp(G) q S, and what it reads of its own, A v, with the scores A of its chunk. Lightning attention's split
into intra and inter is this, its decay being a constant of the head. Backward carries the state's gradient the other way round,
and the gradients of all chunks follow in parallel.

Gates are summed inside chunks, in float32. No exponent is above 0: with one gate for all channels the difference of two sums is
masked before exp; a gate per channel takes secondary chunks of 16 tokens.

Matrix products take bf16 operands as bf16, fp16 ones as tf32 (which holds fp16 and does not overflow in a state), fp32 ones as
tf32 on a GPU. States between chunks are kept for backward, in bf16 where the operands are; the final state is float32.

One configuration, not tuned: tiles of 64 by 64 (by 128 for o and dv, 64 by 32 for states), four warps, two stages (three for
states).

Source: Yang et al. 2023 (arXiv 2312.06635), section 4.3; Qin et al. 2024 (arXiv 2401.04658), algorithms 1 and 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linverify.impls._backend import absent
from linverify.impls._functions import functions
from linverify.operator import Canonical, Operator, Sizes

CHUNK = 64
SUB_CHUNK = 16
STAGES = 2  # of loads in flight; more do not fit where operands are float32
SERVED = ("linear_attention", "retention", "lightning_attention", "simple_gla", "gla")


@dataclass(frozen=True, slots=True)
class Plan:
    """How one call is cut up.

    Attributes:
        starts: [N + 1] int64, where a sequence's tokens start.
        slots: [N + 1] int64, where its chunks start.
        chunks: [chunks, 2] int64, a chunk's first token and its length.
        scale: of the query.
        channels: numbers a gate has: 0 no decay, 1 one for all channels, 2 one a channel.
        constant: the decay is a number of the head, and no input.
        kind: how matrix products take operands; see `_triton_chunks`.
    """

    starts: Tensor
    slots: Tensor
    chunks: Tensor
    scale: float
    channels: int
    constant: bool
    kind: str

    @property
    def precise(self) -> str:
        """How products inside a chunk of gated channels take operands that a decay has made float32."""
        return "fp32" if self.kind == "bf16" else self.kind


class _Chunks(torch.autograd.Function):
    """q, k [tokens, H, K], v [tokens, H, V], g None, [H], [tokens, H] or [tokens, H, K], initial [N, H, K, V]."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, initial: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return o [tokens, H, V], in the dtype of v, and the final states."""
        from linverify.impls import _triton_chunks as common
        from linverify.impls import _triton_scores as shaped

        ctx.plan = plan
        if not q.numel():  # empty sequences alone
            ctx.save_for_backward(q, k, v, g)
            return torch.empty_like(v), initial.clone()
        H, K, V = q.shape[1], q.shape[2], v.shape[2]
        NC, BK = len(plan.chunks), _block(K)
        G = None if g is None else g.new_empty(q.shape[: 1 + plan.channels])
        if g is not None and G is not None:
            D = G[0].numel()
            common.sums[NC, -(-D // 64)](g, G, plan.chunks, D, CONSTANT=plan.constant, BT=CHUNK, BD=64)
        kept = torch.empty(NC, H, K, V, dtype=_kept(plan), device=q.device)
        A = torch.empty(*q.shape[:2], CHUNK, dtype=_kept(plan), device=q.device)
        o, final = torch.empty_like(v), torch.empty_like(initial)
        _carry(plan, k, v, G, initial, kept, final, 1.0, back=False)
        if plan.channels == 2:
            shaped.channel_scores[NC, H, CHUNK // SUB_CHUNK](
                q,
                k,
                G,
                A,
                plan.chunks,
                plan.scale,
                H,
                K,
                KIND=plan.precise,
                BT=CHUNK,
                BC=SUB_CHUNK,
                BK=BK,
                num_stages=STAGES,
            )
        else:
            shaped.scores[NC, H](
                q,
                k,
                G,
                A,
                plan.chunks,
                plan.scale,
                H,
                K,
                CHANNELS=plan.channels,
                KIND=plan.kind,
                BT=CHUNK,
                BK=BK,
                num_stages=STAGES,
            )
        wide = _block(V, 128)
        common.outputs[NC, H, -(-V // wide)](
            q, v, G, A, kept, plan.chunks, o, plan.scale, H, K, V,
            CHANNELS=plan.channels, KIND=plan.kind, BT=CHUNK, BK=BK, BV=wide, num_stages=STAGES,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, G, A, kept)
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        from linverify.impls import _triton_chunks as common
        from linverify.impls import _triton_scores as shaped

        plan: Plan = ctx.plan
        if not ctx.saved_tensors[0].numel():
            return None, *(None if x is None else torch.zeros_like(x) for x in ctx.saved_tensors), dfinal
        q, k, v, G, A, kept = ctx.saved_tensors
        H, K, V = q.shape[1], q.shape[2], v.shape[2]
        NC, BK, BV = len(plan.chunks), _block(K), _block(V)
        do, gated = do.contiguous(), plan.channels > 0 and not plan.constant
        dkept, dinitial = torch.empty_like(kept), torch.empty_like(dfinal)
        _carry(plan, q, do, G, dfinal.contiguous(), dkept, dinitial, plan.scale, back=True)
        wide, dv = _block(V, 128), torch.empty_like(v)
        common.value_gradients[NC, H, -(-V // wide)](
            k, G, A, dkept, do, plan.chunks, dv, H, K, V,
            CHANNELS=plan.channels, KIND=plan.kind, BT=CHUNK, BK=BK, BV=wide, num_stages=STAGES,
        )  # fmt: skip
        dA = torch.empty(A.shape, dtype=torch.float32, device=A.device)
        common.score_gradients[NC, H](
            v, do, plan.chunks, dA, plan.scale, H, V, KIND=plan.kind, BT=CHUNK, BV=BV, num_stages=STAGES
        )
        inner = [None, None]
        parts = -(-K // BK)
        if plan.channels == 2:
            inner = [torch.empty_like(q, dtype=torch.float32) for _ in range(2)]
            shaped.channel_gradients[NC, H, CHUNK // SUB_CHUNK * parts](
                q,
                k,
                G,
                dA,
                plan.chunks,
                *inner,
                H,
                K,
                KIND=plan.precise,
                BT=CHUNK,
                BC=SUB_CHUNK,
                BK=BK,
                num_stages=STAGES,
            )
        dq, dk = torch.empty_like(q), torch.empty_like(k)
        dg = None
        if gated:
            dg = G.new_empty(G.shape if plan.channels == 2 else (parts, *G.shape))
        shaped.gradients[NC, H, parts](
            q, k, v, G, dA, *inner, kept, dkept, do, plan.chunks, dq, dk, dg, plan.scale, H, q.shape[0], K, V,
            CHANNELS=plan.channels, GATES=gated, KIND=plan.kind, BT=CHUNK, BK=BK, BV=BV,
            num_stages=STAGES,
        )  # fmt: skip
        return None, dq, dk, dv, dg.sum(0) if dg is not None and plan.channels == 1 else dg, dinitial


def _carry(
    plan: Plan, x: Tensor, y: Tensor, G: Tensor | None, initial: Tensor, kept: Tensor, final: Tensor, scale: float,
    *, back: bool,
) -> None:  # fmt: skip
    """Carry states forwards, or their gradients back."""
    from linverify.impls import _triton_chunks as common

    N, H, K, V = initial.shape
    BK, BV = _block(K), _block(V, 32)
    common.states[N, H, -(-K // BK) * -(-V // BV)](
        x, y, G, plan.starts, plan.slots, initial, kept, final, scale, H, K, V,
        BACK=back, CHANNELS=plan.channels, KIND=plan.kind, BT=CHUNK, BK=BK, BV=BV,
    )  # fmt: skip


def _block(size: int, most: int = 64) -> int:
    """A power of two that holds the axis or a part of it; a matrix product takes 16 at least."""
    return max(16, min(most, 1 << (size - 1).bit_length()))


def _kept(plan: Plan) -> torch.dtype:
    return torch.bfloat16 if plan.kind == "bf16" else torch.float32


def _kind(v: Tensor) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "tf32"}.get(v.dtype, "fp32")


def in_their_dtype(operator: Operator, inputs: Mapping[str, Tensor], sizes: Sizes) -> Canonical:
    """The terms with q, k and v in their common dtype, at most float32, and log gates in float32."""
    names = [i.name for i in operator.of_kind("query", "key", "value")]
    common = torch.float16 if all(inputs[n].dtype == torch.float16 for n in names) else torch.float32
    common = torch.bfloat16 if all(inputs[n].dtype == torch.bfloat16 for n in names) else common
    wide = {n: x.to(common if n in names else torch.float32) for n, x in inputs.items()}
    found = operator.recurrence(wide, sizes)
    if operator.gated or found.log_decay is None:
        return found
    # A decay that no input sets: in float32, from inputs without tokens.
    constant = operator.recurrence({n: x[:, :0].float() for n, x in wide.items()}, sizes).log_decay
    return Canonical(q=found.q, k=found.k, v=found.v, log_decay=constant)


@lru_cache(maxsize=16)
def _cut(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where sequences of these lengths start, where their chunks start, and the chunks; kept, since calls repeat."""
    counts = [-(-n // CHUNK) for n in lengths]
    starts, slots = ([0, *accumulate(n)] for n in (lengths, counts))
    chunks = [
        x
        for start, length, count in zip(starts, lengths, counts, strict=False)
        for i in range(count)
        for x in (start + CHUNK * i, min(CHUNK, length - CHUNK * i))
    ]
    table = torch.tensor([*starts, *slots, *chunks], dtype=torch.int64).to(device)
    at = table.split([len(starts), len(slots), len(chunks)])
    return at[0], at[1], at[2].view(-1, 2)


def chunkwise(c: Canonical, scale: float, lengths: Sequence[int], initial: Tensor) -> tuple[Tensor, Tensor]:
    """Run the terms, [B, T, H, .], from the initial states [N, H, K, V]."""
    g, channels, constant = c.log_decay, 0, False
    if g is not None:
        channels, constant = 1 if g.shape[3] == 1 else 2, g.shape[:2] != c.q.shape[:2]  # constant: [1, 1, H, 1]
        g = g.flatten() if constant else g.flatten(0, 1).contiguous()
        g = g.squeeze(-1) if channels == 1 and not constant else g
    plan = Plan(*_cut(tuple(lengths), c.q.device), float(scale), channels, constant, _kind(c.v))
    q, k, v = (x.flatten(0, 1).contiguous() for x in (c.q, c.k, c.v))
    o, final = _Chunks.apply(plan, q, k, v, g, initial.float().contiguous())
    return o.view(c.v.shape), final


globals().update(
    functions(
        __name__,
        form="chunkwise",
        run=chunkwise,
        terms_of=in_their_dtype,
        of=lambda operator: operator.name in SERVED,
        backend="triton",
        absent=absent("triton"),
    )
)
