"""Correct low-precision kernels of any folded recurrence, with the choices that careful published kernels make.

Written apart from linverify's rounding model, whose recipes round elsewhere: operands are rounded where a product reads them
and nowhere else, sums run in the CPU's own float32, and the choices below are not among the generic rule's recipes. Where a
choice comes from stands beside it. What would lose digits is left out: exp(G_i) and exp(-G_j) as factors of a whole chunk
(they overflow), a Neumann series for the triangle's inverse (it loses all digits where keys repeat), decays and sums of gates
in 16 bits, gradients that are summed in 16 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from subtle_kernels import cut_tf32
from torch import Tensor

LOG2E = 1.4426950408889634
# Gates of minus infinity are not asked; a masked exponent is.
NEVER = -torch.inf


def _nearest_tf32(x: Tensor) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda x: x,
    "tf32": cut_tf32,
    "tf32rn": _nearest_tf32,
    "bf16": lambda x: x.bfloat16().float(),
    "fp16": lambda x: x.half().float(),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel does where kernels differ.

    Attributes:
        form: recurrent, chunkwise or quadratic.
        operands: format of the operands of products.
        chunk: tokens of a chunk; 0 for all of them.
        sub: tokens of a sub-chunk, where a gate per channel needs them.
        blocks: format of the products between sub-chunks. Operands' (Yang et al. 2023, arXiv:2312.06635, section 4.3) or
            tf32 (flash-linear-attention, gla/chunk.py: exponentials are float32).
        anchor: sub-chunks meet at the first token of the later one (flash-linear-attention) or the last of the earlier.
        values: format of the products of scores and solved values with what they multiply; tf32 where a kernel loads
            everything as float32 (Lightning Attention, github.com/OpenNLPLab/lightning-attention).
        scale: multiplies the query (rounded with its decay), the query as it is rounded before its decay (both in
            flash-linear-attention), or the products with the query, in float32.
        scores: rounded once, after the decay, or before it as well (MiniMax-01 in huggingface/transformers).
        write: a scalar decay goes to values (flash-linear-attention, common/chunk_h.py) or keys (mamba_ssm, _chunk_state_fwd).
        read: a scalar decay goes to the product with the state (mamba_ssm) or to the query (MiniMax-01).
        sums: order in which products are summed: whole, reversed, or split into parts of 16 terms that are added up (blocks
            of K and V in flash-linear-attention).
        first: whether the state's part or the chunk's own is the accumulator that the other is added to.
        exponential: exp, or exp2 of gates times log2(e) (flash-linear-attention, utils/cumsum.py).
        gaps: log decays between two tokens as differences of sums, or summed segment by segment (mamba_ssm, ssd_minimal.py).
        solver: library, substitution row by row and blocked inverses (flash-linear-attention, utils/solve_tril.py), or
            direct, which forms no inverse.
        solve: format of the products that merge blocked inverses.
        strength: multiplies what is solved for, or the inverse's columns (Yang et al. 2024, arXiv:2406.06484, section 3.2).
        stored: format in which what one kernel leaves for the next lies in memory; "fp32" where one kernel does it all.
        gate: the log gate's gradient: by the decays that it enters (autograd), or as the sum of q dq - k dk over later
            tokens, from the end of the row (fused_recurrent in flash-linear-attention) or of each chunk (its chunk kernels).
        bonus: in the scores' diagonal (flash-linear-attention), as a weight of its own, or in the state (RWKV-CUDA).
    """

    form: str
    operands: str
    chunk: int = 64
    sub: int = 16
    blocks: str = "fp32"
    anchor: str = "first"
    values: str = "fp32"
    scale: str = "query"
    scores: str = "once"
    write: str = "values"
    read: str = "result"
    sums: str = "whole"
    first: str = "state"
    exponential: str = "exp"
    gaps: str = "differences"
    solver: str = "library"
    solve: str = "fp32"
    strength: str = "right"
    stored: str = "fp32"
    gate: str = "autograd"
    bonus: str = "weight"

    @property
    def exp(self) -> Callable[[Tensor], Tensor]:
        """Exponential of a log decay in the unit of `unit`."""
        return torch.exp2 if self.exponential == "exp2" else torch.exp

    @property
    def unit(self) -> float:
        """What log gates are multiplied with on the way in."""
        return LOG2E if self.exponential == "exp2" else 1.0


def _summed(a: Tensor, b: Tensor, sums: str, start: Tensor | None) -> Tensor:
    """A @ b in some order, perhaps into an accumulator."""
    if sums == "reversed":
        a, b = a.flip(-1), b.flip(-2)
    if sums != "split":
        return a @ b if start is None else start + a @ b
    for x, y in zip(a.split(16, -1), b.split(16, -2), strict=True):
        start = x @ y if start is None else start + x @ y
    assert start is not None
    return start


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor | None, fmt: str, sums: str, factor: float) -> Tensor:
        a, b = ROUNDING[fmt](a), ROUNDING[fmt](b)
        ctx.save_for_backward(a, b)
        ctx.fmt, ctx.sums, ctx.factor = fmt, sums, factor
        return _summed(a, b, sums, start) if factor == 1.0 else factor * _summed(a, b, sums, start)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        g = ROUNDING[ctx.fmt](grads[0])
        start = grads[0] if ctx.needs_input_grad[2] else None
        da, db = _summed(g, b.mT, ctx.sums, None), _summed(a.mT, g, ctx.sums, None)
        return da * ctx.factor, db * ctx.factor, start, None, None, None


class _Stored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: str, back: str) -> Tensor:
        ctx.back = back
        return ROUNDING[fmt](x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ROUNDING[ctx.back](grads[0]), None, None


def stored(x: Tensor, fmt: str, back: str | None = None) -> Tensor:
    """X as it is read again from memory; its cotangent goes through memory, too, or (back="fp32") stays where it is."""
    return x if fmt == "fp32" else _Stored.apply(x, fmt, back or fmt)  # type: ignore[no-any-return, no-untyped-call]  # torch's own


def weight(x: dict[str, Tensor], scale: float) -> Tensor | None:
    """What the bonus makes of a token's own value, [N, L, 1]."""
    return (x["bonus_q"] * scale * x["bonus"][:, None] * x["bonus_k"]).sum(-1, keepdim=True) if "bonus" in x else None


class Chunked:
    """One run of the chunkwise (or quadratic) form.

    Args:
        x: terms by role: q, k, v, state; perhaps log_decay, beta with reading (the key that the removal reads), a, b, bonus
            with bonus_q and bonus_k; float32, a row a head and sequence.
        scale: factor on o.
        kernel: its choices.
        exclusive: the read-out excludes the write of its own token.
        undecayed: a reads the state before its decay.
    """

    def __init__(self, x: dict[str, Tensor], scale: float, kernel: Kernel, *, exclusive: bool, undecayed: bool) -> None:
        self.x, self.kernel, self.scale = x, kernel, scale
        self.factor = scale if kernel.scale == "result" else 1.0
        self.length = x["q"].shape[1]
        self.C = min(kernel.chunk or self.length, self.length)
        index = torch.arange(self.C)
        self.strict = index[:, None] > index[None]
        self.mask = self.strict if exclusive else index[:, None] >= index[None]
        gate = x.get("log_decay")
        self.channel = gate is not None and gate.shape[-1] > 1
        self.until: Tensor | None = None
        if gate is not None:
            self.g = self.cut(gate * kernel.unit)
            self.until = self.g.cumsum(2)
            before = self.until - self.g
            self.read_at, self.low_at = before if exclusive else self.until, before if undecayed else self.until
            self.left = kernel.exp(self.until[:, :, -1:] - self.until)
            self.kept = kernel.exp(self.until[:, :, -1:]).mT

    def cut(self, x: Tensor) -> Tensor:
        """[N, L, D] to [N, n, C, D]."""
        n = -(-self.length // self.C)
        return torch.nn.functional.pad(x, (0, 0, 0, n * self.C - self.length)).unflatten(1, (n, self.C))

    def mm(self, a: Tensor, b: Tensor, fmt: str = "", start: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """A @ b of rounded operands, added to `start` or times a factor, forward and backward."""
        fmt = fmt or self.kernel.operands
        return _Product.apply(a, b, start, fmt, self.kernel.sums, factor)  # type: ignore[no-any-return, no-untyped-call]  # torch's own

    def scores(self, x: Tensor, y: Tensor, low: bool, mask: Tensor) -> Tensor:
        """Decayed scores of readers x (the low-rank term's, or queries) and writers y, [N, n, C, C]."""
        factor = 1.0 if low else self.factor
        if self.channel:
            found = self._by_channel(x, y, self.low_at if low else self.read_at, mask, factor)
            return found.masked_fill(~mask, 0.0)
        found = self.mm(x, y.mT, factor=factor)
        if self.until is None:
            return found.masked_fill(~mask, 0.0)
        if self.kernel.scores == "twice" and not low:
            found = stored(found, self.kernel.operands)
        if self.kernel.gaps == "segments":
            gap = (self.g * self.strict).cumsum(2)
        else:
            gap = (self.low_at if low else self.read_at) - self.until.mT
        return found * self.kernel.exp(gap.masked_fill(~mask, NEVER))

    def _by_channel(self, x: Tensor, y: Tensor, at: Tensor, mask: Tensor, factor: float) -> Tensor:
        """Sub-chunk by sub-chunk: a product with earlier ones, pair by pair inside."""
        assert self.until is not None
        exp, rows = self.kernel.exp, []
        for i in range(0, self.C, self.kernel.sub):
            here, end = slice(i, i + self.kernel.sub), min(i + self.kernel.sub, self.C)
            xi, ri, ui = x[:, :, here], at[:, :, here], self.until[:, :, here]
            gap = (ri[..., :, None, :] - ui[..., None, :, :]).masked_fill(~mask[here, here, None], NEVER)
            parts = [factor * (xi[..., :, None, :] * exp(gap) * y[:, :, None, here]).sum(-1)]
            if i:
                anchor = at[:, :, i : i + 1] if self.kernel.anchor == "first" else self.until[:, :, i - 1 : i]
                far = y[:, :, :i] * exp(anchor - self.until[:, :, :i])
                parts.insert(0, self.mm(xi * exp(ri - anchor), far.mT, self.kernel.blocks, factor=factor))
            rows.append(torch.nn.functional.pad(torch.cat(parts, -1), (0, self.C - end)))
        return torch.cat(rows, -2)

    def inverse(self, matrix: Tensor) -> Tensor:
        """Inverse of unit lower triangular matrices."""
        size = matrix.shape[-1]
        eye = torch.eye(size).expand_as(matrix)
        if self.kernel.solver == "substitution":
            rows = [eye[..., :1, :]]
            for i in range(1, size):
                rows.append(eye[..., i : i + 1, :] - matrix[..., i : i + 1, :i] @ torch.cat(rows, -2))
            return torch.cat(rows, -2)
        if self.kernel.solver == "blocked" and size > 16:
            half = -(-size // 32) * 16
            top, end = self.inverse(matrix[..., :half, :half]), self.inverse(matrix[..., half:, half:])
            merged = -self.mm(end, self.mm(matrix[..., half:, :half], top, self.kernel.solve), self.kernel.solve)
            wide = torch.nn.functional.pad(top, (0, size - half))
            return torch.cat([wide, torch.cat([merged, end], -1)], -2)
        return torch.linalg.solve_triangular(matrix, eye, upper=False, unitriangular=True)

    def solved(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the low-rank term writes is u + w @ (the entering state), through these writers: (u, w, writers)."""
        x, kernel, eye = self.x, self.kernel, torch.eye(self.C)
        into = 1.0 if self.until is None else kernel.exp(self.low_at)
        v, k = self.cut(x["v"]), self.cut(x["k"])
        if "beta" in x:
            beta, reading = self.cut(x["beta"]), self.cut(x["reading"])
            matrix, writers = eye + beta * self.scores(reading, k, True, self.strict), k
            inside = kernel.strength == "inverse" and kernel.solver != "direct"
            right = [v, -reading * into] if inside else [beta * v, -beta * reading * into]
        else:
            a, writers = self.cut(x["a"]), self.cut(x["b"])
            matrix = eye - self.scores(a, writers, True, self.strict)
            right = [self.mm(self.scores(a, k, True, self.strict), v, kernel.values), a * into]
        if kernel.solver == "direct":
            whole = torch.linalg.solve_triangular(matrix, torch.cat(right, -1), upper=False, unitriangular=True)
            found = list(whole.split([v.shape[-1], k.shape[-1]], -1))
        else:
            inverse = stored(self.inverse(matrix), kernel.stored)
            if "beta" in x and kernel.strength == "inverse":
                inverse = inverse * self.cut(x["beta"]).mT
            found = [self.mm(inverse, r, kernel.values) for r in right]
        u, w = (stored(y, kernel.stored) for y in found)
        return u, w, writers

    def written(self, writers: Tensor, values: Tensor, i: int | slice, start: Tensor | None) -> Tensor:
        """What values add to the state."""
        if self.until is not None and (self.channel or self.kernel.write == "keys"):
            writers = writers * self.left[:, i]
        elif self.until is not None:
            values = values * self.left[:, i]
        if self.kernel.first == "state" or start is None:
            return self.mm(writers.mT, values, "", start)
        return self.mm(writers.mT, values) + start

    def __call__(self) -> tuple[Tensor, list[Tensor]]:
        """O [N, L, V], and the state at the end of each chunk."""
        x, kernel = self.x, self.kernel
        q, k, v = (self.cut(x[n]) for n in "qkv")
        if kernel.scale != "result":
            q = q * self.scale
        if kernel.scale == "stored":
            q = stored(q, kernel.operands, "fp32")
        bonus = weight(x, self.scale)
        low = self.solved() if "beta" in x or "a" in x else None
        plain = "beta" not in x  # a delta operator writes what it solved for, and nothing else
        added = self.written(k, v, slice(None), None) if plain else None
        state, entering, ends, values = x["state"], [], [], []
        for i in range(q.shape[1]):
            entering.append(state)
            kept = state if self.until is None else state * self.kept[:, i]
            if low is not None:
                u, w, writers = low
                new = self.mm(w[:, i], state, kernel.values, u[:, i])
                values.append(stored(new, kernel.stored))
                kept = self.written(writers[:, i], values[-1], i, kept)
            state = kept if added is None else kept + added[:, i]
            ends.append(state)
        inner = []
        if plain:
            scores = self.scores(q, k, False, self.mask)
            if bonus is not None and kernel.bonus == "scores":
                scores, bonus = scores + torch.diag_embed(self.cut(bonus)[..., 0]), None
            inner.append((scores, v))
        if low is not None:
            inner.append((self.scores(q, low[2], False, self.mask), torch.stack(values, 1)))
        o = self._read(q, torch.stack(entering, 1), inner)
        o = o.flatten(1, 2)[:, : self.length]
        return o if bonus is None else o + bonus * x["v"], ends

    def _read(self, q: Tensor, states: Tensor, inner: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What the queries read from the entering states and from their own chunks."""
        kernel, decay = self.kernel, None
        if self.until is not None and (self.channel or kernel.read == "query"):
            q = q * kernel.exp(self.read_at)
        elif self.until is not None:
            decay = kernel.exp(self.read_at)
        if kernel.first == "state" or decay is not None or self.factor != 1.0:
            found = self.mm(q, states, factor=self.factor)
            found = found if decay is None else found * decay
            for scores, values in inner:
                found = self.mm(scores, values, kernel.values, found)
            return found
        total: Tensor | None = None
        for scores, values in inner:
            total = self.mm(scores, values, kernel.values, total)
        return self.mm(q, states, start=total)
