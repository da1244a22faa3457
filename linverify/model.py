"""The rounding model: the recurrence computed as a kernel of a given recipe would, forward and backward.

It serves the budget, not the reference: with rounding switched off it must equal the reference (a test), with rounding on its
errors tell how large a correct kernel's errors are. Everything follows from the folded canonical recurrence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.fold import Rows
from linverify.noise import U32, Noise, product, rounded, running_sum

SUB_CHUNK = 16
# exp of this is 0 in float32: a gate of -inf forgets no more
FORGOTTEN = -256.0


@dataclass(frozen=True, slots=True, eq=False)
class Roles:
    """The terms by role, as leaves of their own: a key read by the low-rank term is another leaf than the key written.

    The cumulative form of the gate gradient needs them apart.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    log_decay: Tensor | None = None
    beta: Tensor | None = None
    reading: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    bonus: Tensor | None = None
    bonus_q: Tensor | None = None
    bonus_k: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The roles that are there."""
        return {n: t for n in self.__slots__ if (t := getattr(self, n)) is not None}


def roles(rows: Rows, copies: int, dtype: torch.dtype, *, grad: bool) -> Roles:
    """Copy the rows `copies` times along the batch, one fresh leaf a role."""

    def leaf(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().to(dtype).repeat(copies, *[1] * (x.dim() - 1)).requires_grad_(grad)

    found = {n: leaf(t if n != "log_decay" else t.clamp(min=FORGOTTEN)) for n, t in rows.terms().items()}
    if rows.beta is not None:
        found["reading"] = leaf(rows.k)
    if rows.bonus is not None:
        found["bonus_q"], found["bonus_k"] = leaf(rows.q), leaf(rows.k)
    return Roles(**found)  # type: ignore[arg-type]  # q, k, v, state are always there


def _split(x: Tensor, chunk: int) -> Tensor:
    n = -(-x.shape[1] // chunk)
    return torch.nn.functional.pad(x, (0, 0, 0, n * chunk - x.shape[1])).reshape(x.shape[0], n, chunk, x.shape[2])


def effective_chunk(chunk: int, length: int) -> int:
    """A row shorter than a chunk is one chunk; kernels round such a chunk's length up to whole sub-chunks."""
    return min(chunk, length if length < SUB_CHUNK else -(-length // SUB_CHUNK) * SUB_CHUNK)


def _channel_scores(x: Tensor, y: Tensor, reader: Tensor, writer: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """sum_d x_id y_jd exp(R_id - G_jd): sub-chunks against a reference point, pairwise on the diagonal; exponents stay <= 0."""
    chunk = x.shape[2]
    blocks = max(1, chunk // SUB_CHUNK)
    size = chunk // blocks
    shape = (*x.shape[:2], blocks, size, x.shape[-1])
    xs, ys, rs, ws = (t.reshape(shape) for t in (x, y, reader, writer))
    tile = mask[:size, :size]
    gap = (rs[..., :, None, :] - ws[..., None, :, :]).masked_fill(~tile[..., None], -torch.inf)
    diagonal = (xs[..., :, None, :] * gap.exp() * ys[..., None, :, :]).sum(-1)
    if blocks == 1:
        return diagonal[:, :, 0]
    first = start.reshape(shape)[..., :1, :]  # log decay accumulated before each block
    index = torch.arange(chunk, device=x.device)
    earlier = index[None, :] < (torch.arange(blocks, device=x.device) * size)[:, None]
    toward = (first - writer[:, :, None]).masked_fill(~earlier[..., None], -torch.inf).exp() * y[:, :, None]
    off = (xs * (rs - first).exp()) @ toward.transpose(-1, -2)
    eye = torch.eye(blocks, dtype=x.dtype, device=x.device)
    full = off.reshape(*off.shape[:3], size, blocks, size) + diagonal[..., None, :] * eye[:, None, :, None]
    return full.reshape(*x.shape[:2], chunk, chunk)


class _Chunks:
    """The terms of one run, split into chunks, with the decays that readers and writers meet through."""

    def __init__(self, x: Roles, scale: float, noise: Noise, *, exclusive: bool, undecayed: bool) -> None:
        chunk = effective_chunk(noise.structure.chunk, x.q.shape[1])
        self.noise = noise
        self.q, self.k, self.v = self.operand(x.q * scale), self.operand(x.k), self.operand(x.v)
        index = torch.arange(chunk, device=x.q.device)
        self.inclusive, self.strict = index[:, None] >= index[None, :], index[:, None] > index[None, :]
        self.read_mask = self.strict if exclusive else self.inclusive
        self.scalar = x.log_decay is not None and x.log_decay.shape[-1] == 1
        self.channel = x.log_decay is not None and not self.scalar
        self.until: Tensor | None = None
        if x.log_decay is not None:
            g = _split(x.log_decay, chunk)
            self.until = running_sum(g, noise, 2)
            self.before = self.until - g
            self.total = self.until[:, :, -1:]
            self.read_at = self.before if exclusive else self.until
            self.low_at = self.before if undecayed else self.until
            self.kept = rounded(self.total.exp(), noise, "decay").transpose(-1, -2)

    def operand(self, x: Tensor) -> Tensor:
        """A term from memory, split into chunks, as a product reads it."""
        chunk = effective_chunk(self.noise.structure.chunk, x.shape[1])
        return (
            rounded(_split(x, chunk), self.noise, "input")
            if self.noise.structure.input is not None
            else _split(x, chunk)
        )

    def use(self, x: Tensor) -> Tensor:
        """One use of a log decay: kernels recompute it, each time with its own float32 error."""
        return rounded(x, self.noise, "gate") if self.noise.dither else x

    def scores(self, x: Tensor, y: Tensor, at: Tensor | None, mask: Tensor) -> Tensor:
        """Decayed scores, before they are rounded as an operand."""
        if self.until is None or at is None:
            return product(x, y.transpose(-1, -2), self.noise, "scores").masked_fill(~mask, 0)
        if self.scalar:
            wide = [*self.until.shape[:3], self.until.shape[2]]
            gap = self.use(at.expand(wide)) - self.use(self.until.transpose(-1, -2).expand(wide))
            return product(x, y.transpose(-1, -2), self.noise, "scores") * gap.masked_fill(~mask, -torch.inf).exp()
        found = _channel_scores(x, y, self.use(at), self.use(self.until), self.before, mask)
        return rounded(found, self.noise, "dot").masked_fill(~mask, 0)

    def decays(self, at: Tensor) -> Tensor:
        """Exp of a log decay, with its float32 error."""
        return rounded(self.use(at).exp(), self.noise, "decay")

    def outgoing(self, x: Tensor) -> Tensor:
        """A writer's operand, decayed to the end of its chunk (a scalar decay goes to the values instead)."""
        if self.until is None or self.scalar:
            return x
        return rounded(x * (self.use(self.total) - self.use(self.until)).exp(), self.noise, "key", "key")

    def values(self, x: Tensor) -> Tensor:
        """A written value, decayed to the end of its chunk where the gate is a scalar."""
        if self.until is None or not self.scalar:
            return x
        return rounded(x * self.decays(self.total - self.until), self.noise, "value", "value")


def _low_rank(c: _Chunks, x: Roles) -> tuple[Tensor, Tensor, Tensor | None]:
    """W and U of the chunk's triangular system, and b as its writes (None for a delta operator, which writes with k)."""
    noise, chunk = c.noise, c.k.shape[2]
    eye = torch.eye(chunk, dtype=c.k.dtype, device=c.k.device)
    at = c.low_at if c.until is not None else None
    if x.beta is not None and x.reading is not None:
        beta, reading = _split(x.beta, chunk), c.operand(x.reading)
        matrix = eye + rounded(c.scores(reading, c.k, at, c.strict) * beta, noise, "dot")
        into = reading * beta if at is None else reading * beta * c.decays(at)
        right, writes = rounded(c.v * beta, noise, "value"), None
        into = rounded(into, noise, "key")
    else:
        assert x.a is not None
        assert x.b is not None
        a, writes = c.operand(x.a), c.operand(x.b)
        matrix = eye - c.scores(a, writes, at, c.strict)
        right = rounded(product(rounded(c.scores(a, c.k, at, c.strict), noise, "scores"), c.v, noise, "u"), noise, "u")
        into = rounded(a if at is None else a * c.use(at).exp(), noise, "query")
    inverse = torch.linalg.solve_triangular(matrix, eye.expand_as(matrix), upper=False, unitriangular=True)
    inverse = rounded(inverse, noise, "inverse", "inverse")
    w = rounded(product(inverse, into, noise, "w"), noise, "w", "w")
    u = product(inverse, right, noise, "u")
    return w, (rounded(u, noise, "u", "u") if writes is None else rounded(u, noise, "dot")), writes


def chunked(x: Roles, scale: float, noise: Noise, *, exclusive: bool, undecayed: bool) -> tuple[Tensor, Tensor]:
    """O [N, L, V] and the final state [N, K, V] as a chunkwise kernel of the stack's recipes computes them."""
    c = _Chunks(x, scale, noise, exclusive=exclusive, undecayed=undecayed)
    gated = c.until is not None
    p = rounded(c.scores(c.q, c.k, c.read_at if gated else None, c.read_mask), noise, "scores")
    low = x.beta is not None or x.a is not None
    if low:
        w, u0, writes = _low_rank(c, x)
        if writes is not None:
            p_b = rounded(c.scores(c.q, writes, c.read_at if gated else None, c.read_mask), noise, "scores")
            b_out = c.outgoing(writes)
    k_out = c.outgoing(c.k)
    state, states, solved = x.state, [], []
    if not (low and writes is None):
        added = product(k_out.transpose(-1, -2), c.values(c.v), noise, "state_cotangent")
    for i in range(c.q.shape[1]):
        operand = rounded(state, noise, "state", "state")
        states.append(operand)
        kept = state * c.kept[:, i] if gated else state
        if low:
            seen = product(w[:, i], operand, noise, "value")
            new = rounded(u0[:, i] - seen if writes is None else u0[:, i] + seen, noise, "value", "value")
            solved.append(new)
            carried = (
                rounded(new * c.decays(c.total - c.until)[:, i], noise, "value", "value")
                if c.scalar and c.until is not None
                else new
            )
            out = k_out if writes is None else b_out
            kept = kept + product(out[:, i].transpose(-1, -2), carried, noise, "state_cotangent")
        state = rounded(kept if low and writes is None else kept + added[:, i], noise, "carry", "carry")
    seen_states = torch.stack(states, 1)
    from_state = _read(c, seen_states)
    if low and writes is None:
        o = from_state + product(p, torch.stack(solved, 1), noise)
    else:
        o = from_state + product(p, c.v, noise)
        if low:
            o = o + product(p_b, torch.stack(solved, 1), noise)
    o = o.reshape(o.shape[0], -1, o.shape[-1])[:, : x.q.shape[1]]
    return o + _bonus(x, scale, noise), state


def _read(c: _Chunks, states: Tensor) -> Tensor:
    """What the queries read from the states that enter their chunks."""
    noise, folded = c.noise, c.noise.structure.folded_query
    if c.channel:
        q = rounded(c.q * c.use(c.read_at).exp(), noise, "query", "query")
        return product(q, states, noise, "query")
    if c.scalar and folded is not None:
        q = rounded(c.q, noise, "folded_query") * c.use(c.read_at).exp()
        return product(rounded(q, noise, "folded_query", "folded_query"), states, noise, "query")
    found = product(c.q, states, noise, "query")
    return found * c.decays(c.read_at) if c.scalar else found


def _bonus(x: Roles, scale: float, noise: Noise) -> Tensor:
    if x.bonus is None or x.bonus_q is None or x.bonus_k is None:
        return x.q.new_zeros(())
    weight = (x.bonus_q * scale * x.bonus[:, None] * x.bonus_k).sum(-1, keepdim=True)
    return rounded(rounded(weight, noise, "scores", "scores") * x.v, noise, "dot", "dot")


def recurrent(x: Roles, scale: float, noise: Noise, *, exclusive: bool, undecayed: bool) -> tuple[Tensor, Tensor]:
    """O [N, L, V] and the final state [N, K, V] as a float32 token-by-token kernel computes them."""

    def rd(y: Tensor) -> Tensor:
        return rounded(y, noise, "dot", "dot")

    decay = None
    if x.log_decay is not None:
        g = x.log_decay
        if (
            noise.dither
        ):  # the hardware exponential: exp2 of g * log2(e), both off by about half an ulp of their argument
            g = g + U32 * (
                2 * noise.random(g.shape, normal=True) + 0.58 * g.detach() * noise.random(g.shape, normal=True)
            )
        decay = g.exp()
    state, seen = x.state, []
    for t in range(x.q.shape[1]):
        old = state
        kept = old if decay is None else rd(old * decay[:, t, :, None])
        value = x.v[:, t, None]
        if x.beta is not None and x.reading is not None:
            value = rd(x.beta[:, t, :, None] * rd(value - product(x.reading[:, t, None], kept, noise)))
        state = kept + x.k[:, t, :, None] * value
        if x.a is not None and x.b is not None:
            read = product(x.a[:, t, None], old if undecayed else kept, noise)
            state = state + x.b[:, t, :, None] * rd(read)
        state = rd(state)
        seen.append(old if exclusive else state)
    o = rd(product(x.q[:, :, None], torch.stack(seen, 1), noise)[:, :, 0] * scale)
    return o + _bonus(x, scale, noise), state
