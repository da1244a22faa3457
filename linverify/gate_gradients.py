"""Cumulative forms of the gate gradient: sums of q dq - k dk (- b db + a da) over tokens, as published kernels take them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from linverify.carried import Carried
from linverify.chunks import effective_chunk
from linverify.dtype import BF16, FP16
from linverify.model import Trace
from linverify.noise import U32, Noise
from linverify.recipe import FEW
from linverify.roles import Roles

# Units of each cancelling term: four roundings lie between a kernel's float32 accumulators and the term.
_CANCELLATION = 4.0


def gate_gradients(
    x: Roles,
    d: Mapping[str, Tensor],
    trace: Trace,
    inner: Sequence[Tensor | None],
    dstate: Tensor | None,
    noise: Noise,
    *,
    exclusive: bool,
    undecayed: bool,
    carried: Carried | None,
) -> list[Tensor]:
    """Cumulative forms of the log decay's gradient, from the other gradients: readers gain, writers lose.

    The first sums from the end; the second takes prefix sums from the total, which leaves the total's rounding everywhere; the
    third sums from the end of each chunk (`by_chunks`), and is the only one of a recipe that says so.

    Args:
        x: leaves by role.
        d: their gradients.
        trace: states.
        inner: gradients of trace.ends but the last, then of trace.outgoing; () where no sums are taken by chunks.
        dstate: upstream gradient of the final state.
        noise: of the run.
        exclusive: the read-out excludes the write of its own token.
        undecayed: the low-rank term reads the undecayed state.
        carried: of a segment: the sum from the end begins with what later segments gathered. Prefix sums would need the total
            first, so a segment does without them.
    """

    def term(role: Tensor | None, name: str) -> Tensor:
        return torch.zeros_like(x.q) if role is None else role.detach() * d[name]

    now = [term(x.reading, "reading"), -term(x.written, "written"), -term(x.k, "k"), -term(x.b, "b")]
    later = [torch.zeros_like(x.q)]
    (later if exclusive else now).append(term(x.q, "q"))
    (later if undecayed else now).append(term(x.a, "a"))
    both, after = sum(now + later), sum(later)
    assert isinstance(both, Tensor)
    assert x.log_decay is not None
    if noise.dither and noise.errs("accumulation"):
        # float32 products and gradients that cancel in the sum: a few units of each term, whatever is left of them
        energy = torch.stack(now + later).square().sum(0)
        both = both + _CANCELLATION * U32 * noise.random(both, normal=True) * energy.sqrt()

    forms = []
    if noise.structure.gate_gradient != "chunk":
        reverse = both.flip(1).cumsum(1).flip(1)
        end = tail(trace.ends[-1], dstate, both)
        if carried is not None:
            end = carried.after(reverse[:, :1], end)
        forms = [reverse - after + end]
        if carried is None:
            prefix = noise.running_sum(both, 1)
            # a sum of its own, in another order: they do not cancel exactly
            total = noise.running_sum(both.flip(1), 1)[:, -1:]
            forms.append(total - prefix + both - after + end)
    if inner:
        forms.append(_in_chunks(both, trace, inner, dstate, noise) - after)
    scalar = x.log_decay.shape[-1] == 1
    return [f.sum(-1, keepdim=True) if scalar else f for f in forms]


def by_chunks(noise: Noise, tokens: int, *, whole: bool) -> bool:
    """Whether gate gradients are summed chunk by chunk, too: as the recipe says, or of few tokens between states in 16 bits.

    Some kernels keep the states of chunks, and their cotangents, in the inputs' 16 bits, and multiply those where a chunk's
    gates lose by what is left of the state (flash-linear-attention, ops/common/chunk_delta_h.py); others, and those that
    declare such sums, keep float32. Of a token between two states that term may be all of the gradient, and nothing else errs.
    In longer rows other errors are as large; there this one would cover what is a real loss: sums of gates' gradients in 16
    bits, as captured from an H100 (tests/data).

    Args:
        noise: of the run.
        tokens: of a row.
        whole: whether the rows are whole sequences, and no segments.
    """
    declared = noise.structure.gate_gradient
    stored = noise.structure.chunk > 0 and noise.structure.format("state") in (BF16, FP16)
    return declared == "chunk" or (not declared and stored and whole and tokens <= FEW)


def tail(state: Tensor, cotangent: Tensor | None, like: Tensor) -> Tensor:
    """What gates lose by a state, [N, 1, K]."""
    return torch.zeros_like(like[:, :1]) if cotangent is None else (state.detach() * cotangent).sum(2)[:, None]


def _in_chunks(
    both: Tensor, trace: Trace, inner: Sequence[Tensor | None], dstate: Tensor | None, noise: Noise
) -> Tensor:
    """Sums from the end of each chunk; what is left of the state and the chunk's writes stand for all that comes later.

    Of a kernel that declares nothing, states and their cotangents are rounded first; see `by_chunks`.
    """
    size, n = effective_chunk(noise.structure.chunk, both.shape[1], noise.structure.sub), len(trace.ends)

    def kept(x: Tensor) -> Tensor:
        return x if noise.structure.gate_gradient else noise.round(x.detach(), "state")

    left = [kept(s) * k for s, k in zip(trace.entering, trace.keeps, strict=True)]
    cotangents = [None if c is None else kept(c) for c in (*inner[: n - 1], dstate)]
    later = [tail(s, c, both) for s, c in zip(left, cotangents, strict=True)]
    written = [
        (w.detach() * g).sum(2, keepdim=True)
        for w, g in zip(trace.outgoing, inner[n - 1 :], strict=True)
        if g is not None
    ]
    parts = [p.flip(1).cumsum(1).flip(1) for p in both.split(size, 1)]
    whole = [p + t + sum(w[:, i] for w in written) for i, (p, t) in enumerate(zip(parts, later, strict=True))]
    return torch.cat(whole, 1)
