"""Cumulative forms of the gate gradient: sums of q dq - k dk (- b db + a da) over tokens, as published kernels take them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from linverify.carried import Carried
from linverify.chunks import effective_chunk
from linverify.model import Trace
from linverify.noise import U32, Noise
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

    The first sums from the end; the second takes prefix sums from the total, which leaves the total's rounding everywhere. A
    recipe that says so sums from the end of each chunk, where what is left of the state and the chunk's writes stand for all
    that comes later.

    Args:
        x: leaves by role.
        d: their gradients.
        trace: states.
        inner: gradients of trace.ends but the last, then of trace.outgoing, where the recipe sums by chunks.
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
        both = both + _CANCELLATION * U32 * noise.random(both.shape, normal=True) * energy.sqrt()

    def tail(state: Tensor, cotangent: Tensor | None) -> Tensor:
        return torch.zeros_like(x.q[:, :1]) if cotangent is None else (state.detach() * cotangent).sum(2)[:, None]

    if noise.structure.gate_gradient == "chunk":
        size, n = effective_chunk(noise.structure.chunk, both.shape[1], noise.structure.sub), len(trace.ends)
        later_on = [tail(s, c) for s, c in zip(trace.kept, (*inner[: n - 1], dstate), strict=True)]
        written = [
            (w.detach() * g).sum(2, keepdim=True)
            for w, g in zip(trace.outgoing, inner[n - 1 :], strict=True)
            if g is not None
        ]
        parts = [p.flip(1).cumsum(1).flip(1) for p in both.split(size, 1)]
        forms = [
            torch.cat(
                [p + t + sum(w[:, i] for w in written) for i, (p, t) in enumerate(zip(parts, later_on, strict=True))], 1
            )
            - after
        ]
    else:
        reverse = both.flip(1).cumsum(1).flip(1)
        end = tail(trace.ends[-1], dstate)
        if carried is not None:
            end = carried.after(reverse[:, :1], end)
        forms = [reverse - after + end]
        if carried is None:
            prefix = noise.running_sum(both, 1)
            total = noise.running_sum(both.flip(1), 1)[
                :, -1:
            ]  # a sum of its own, in another order: they do not cancel exactly
            forms.append(total - prefix + both - after + end)
    scalar = x.log_decay.shape[-1] == 1
    return [f.sum(-1, keepdim=True) if scalar else f for f in forms]
