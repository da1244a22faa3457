"""The recurrent form in Triton: one fused kernel for the whole canonical recurrence, and one for its gradients.

The step is the definition's, token after token, with the state in registers, so there is no chunk, no product of decays and no
matrix product: fp32 is IEEE fp32 but for exp, which a GPU takes as a power of two of a rounded product. (On an H100 decays of
mild gates cost up to 2.1 times the budget of IEEE fp32, so that is not claimed.) Every operator that is a recurrence comes from
the one pair of kernels; torch code with autograd lies between its arguments and the terms.

The gradients are the adjoint recurrence, which needs the states in reverse. Forward keeps one state every 32 tokens; backward
computes those between two of them anew. Sequences of any length, the empty one included, lie one after the other.

One configuration, not tuned: a tile of at most 2048 numbers of the state (all of K, what fits of V), four warps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linverify.impls._backend import absent
from linverify.impls._functions import functions
from linverify.operator import Canonical

EVERY = 32
TILE = 2048


@dataclass(frozen=True, slots=True)
class Launch:
    """What the two kernels are started with.

    Attributes:
        starts: [N + 1] int64, where a sequence's tokens start.
        slots: [N + 1] int64, where its checkpoints start.
        checkpoints: how many there are.
        grid: (N, H, programs along V).
        sizes: H, K, V.
        held: states that backward holds at a time: as many as lie between two checkpoints, or the longest sequence has.
        flags: the compile-time constants.
    """

    starts: Tensor
    slots: Tensor
    checkpoints: int
    grid: tuple[int, int, int]
    sizes: tuple[int, int, int]
    held: int
    flags: dict[str, Any]


class _Recurrence(torch.autograd.Function):
    """Terms [tokens, H, .] or None, in the order of the kernels' arguments; results in their dtype."""

    @staticmethod
    def forward(ctx: Any, launch: Launch, initial: Tensor, *terms: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return o [tokens, H, V] and the final states."""
        from linverify.impls import _triton_recurrent as kernels

        v = terms[2]
        assert v is not None
        save = any(ctx.needs_input_grad)
        o, final = torch.empty_like(v), torch.empty_like(initial)
        kept = initial.new_empty(launch.checkpoints if save else 0, *initial.shape[1:])
        kernels.forward[launch.grid](
            *terms, launch.starts, launch.slots, initial, o, final, kept, *launch.sizes, SAVE=save, **launch.flags
        )
        ctx.save_for_backward(kept, *terms)
        ctx.launch, ctx.states = launch, initial.shape
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments; what sums over V comes in parts."""
        from linverify.impls import _triton_recurrent as kernels

        kept, *terms = ctx.saved_tensors
        launch: Launch = ctx.launch
        N, H, parts = launch.grid
        flags = launch.flags
        v = terms[2]
        tile = flags["BK"] * flags["BV"]
        scratch = v.new_empty(parts * H * N * launch.held * tile)
        q, k, _, g, a, b, beta, u = (None if x is None else x.new_empty(parts, *x.shape) for x in terms)
        if flags["DELTA"]:
            a = None  # the key, whose gradient has both
        if u is not None:
            u = u.new_empty(parts, N, *u.shape[1:])
        dv, dinitial = torch.empty_like(v), v.new_empty(ctx.states)
        gradients = (q, k, dv, g, a, b, beta, u, dinitial)
        kernels.backward[launch.grid](
            *terms, launch.starts, launch.slots, kept, scratch, do.contiguous(), dfinal.contiguous(), *gradients,
            *launch.sizes, v.shape[0], launch.held, **flags,
        )  # fmt: skip
        summed = [None if x is None else x.sum(0) for x in (g, a, b, beta)]
        return None, dinitial, q.sum(0), k.sum(0), dv, *summed, None if u is None else u.sum((0, 1))


def recurrent(c: Canonical, scale: float, lengths: Sequence[int], initial: Tensor) -> tuple[Tensor, Tensor]:
    """Run the terms, [B, T, H, .], from the initial states [N, H, K, V]."""
    q = c.q * scale
    H, K, V = q.shape[2], q.shape[3], c.v.shape[3]
    rows = {"k": c.k, "v": c.v, "g": c.log_decay, "a": c.k if c.beta is not None else c.a, "b": c.b, "beta": c.beta}
    # A decay that is constant in time comes as [1, 1, H, 1].
    flat = {n: None if x is None else x.expand(*q.shape[:3], -1).flatten(0, 1).contiguous() for n, x in rows.items()}
    BK = 1 << (K - 1).bit_length()
    BV = min(1 << (V - 1).bit_length(), max(1, TILE // BK))
    flags = {
        "EVERY": EVERY,
        "CHANNELS": 0 if c.log_decay is None else 1 if c.log_decay.shape[3] == 1 else 2,
        "LOW": flat["a"] is not None,
        "DELTA": c.beta is not None,
        "UNDECAYED": c.low_rank_on == "undecayed",
        "EXCLUSIVE": c.read == "exclusive",
        "BONUS": c.bonus is not None,
        "BK": BK,
        "BV": BV,
        "num_warps": 4,
        "num_stages": 1,  # loads of scratch must not move ahead of its stores
    }
    starts, slots = ([0, *accumulate(n)] for n in (lengths, [-(-n // EVERY) for n in lengths]))
    at = torch.tensor([starts, slots], dtype=torch.int64).to(q.device, non_blocking=True)
    held = min(EVERY, max(lengths, default=0))
    launch = Launch(at[0], at[1], slots[-1], (len(lengths), H, -(-V // BV)), (H, K, V), held, flags)
    bonus = None if c.bonus is None else c.bonus.contiguous()
    terms = (q.flatten(0, 1).contiguous(), *flat.values(), bonus)
    o, final = _Recurrence.apply(launch, initial.contiguous(), *terms)
    return o.view(c.v.shape), final


globals().update(
    functions(
        __name__,
        form="recurrent",
        run=recurrent,
        of=lambda operator: operator.canonical is not None,
        backend="triton",
        absent=absent("triton"),
    )
)
