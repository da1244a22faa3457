"""Passes over squared values: variances that rounded products leave, chunk by chunk, in units of one rounding's variance.

For `linverify.analytic`, which says what is written and what reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.dtype import FP32, TF32, Format
from linverify.recipe import power_of_two
from linverify.reference.chunkwise import CHUNK, split
from linverify.reference.question import Question

# Terms of a chunk of 64 that a float32 accumulator takes one by one: half of them, each partial sum rounded.
_WALK = 32.0


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What reads the state.

    Attributes:
        key: [N, n, C, K]: what it multiplies the state with.
        decay: [N, n, C, K or 1] since the chunk began.
        pairs: [N, n, C, C, K or 1]: decay between a write and this read, 0 where it does not see the write.
        cotangent: [N, n, C, V], or None where no gradient comes back.
    """

    key: Tensor
    decay: Tensor
    pairs: Tensor
    cotangent: Tensor | None

    @property
    def into(self) -> Tensor:
        """The key with its decay."""
        return self.key * self.decay


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """What is written: key [N, n, C, K], its decay to the end of the chunk [N, n, C, K or 1], value [N, n, C, V].

    A value that was solved for is rounded before it is used.
    """

    key: Tensor
    decay: Tensor
    value: Tensor
    solved: bool

    @property
    def left(self) -> Tensor:
        """The key with its decay."""
        return self.key * self.decay


def _scores(read: Read, write: Write) -> Tensor:
    """Decayed scores [N, n, C, C]."""
    if read.pairs.shape[-1] == 1:
        return (read.key @ write.key.mT) * read.pairs[..., 0]
    return torch.einsum("...id,...jd,...ijd->...ij", read.key, write.key, read.pairs)


def _through(weights: Tensor, x: Tensor, pairs: Tensor) -> Tensor:
    """Sum over j of weights_ij^2 pairs_ijd^2 x_jd^2: [N, n, C, K]."""
    if pairs.shape[-1] == 1:
        return (weights * pairs[..., 0]).square() @ x.square()
    return torch.einsum("...ij,...jd,...ijd->...id", weights.square(), x.square(), pairs.square())


class Passes:
    """The recurrence with its writes given, chunk by chunk, and the variances that its roundings leave."""

    def __init__(self, question: Question, fmt: Format) -> None:
        rows, memory = question.rows, fmt is TF32
        self.float32 = (FP32.unit_roundoff / fmt.unit_roundoff) ** 2
        self.length = rows.q.shape[1]
        g = None if rows.log_decay is None else split(rows.log_decay.detach(), CHUNK)
        self.until = None if g is None else g.cumsum(2)
        self.before = None if g is None or self.until is None else self.until - g
        index = torch.arange(CHUNK, device=rows.q.device)
        self.inclusive = index[:, None] >= index[None, :]
        self.strict = index[:, None] > index[None, :]
        self.n = split(rows.q, CHUNK).shape[1]
        # Inside a sub-chunk a gate per channel leaves no product of scores to round, unless a triangle is solved there; it leaves
        # sums of float32.
        self.inside = memory or fmt is FP32 or rows.beta is not None or g is None or g.shape[-1] == 1
        self.rounds = memory or g is not None  # a decay in an operand is rounded
        self.scaled = not power_of_two(question.scale)  # and a scale that changes digits

    def read(self, key: Tensor, cotangent: Tensor | None, *, own: bool, decayed: bool) -> Read:
        """A read after (own) or before the write of its token, after (decayed) or before the decay."""
        at, mask = self.until if decayed else self.before, self.inclusive if own else self.strict
        key = split(key.detach(), CHUNK)
        cotangent = None if cotangent is None else split(cotangent, CHUNK)
        if at is None or self.until is None:
            return Read(key, torch.ones_like(key[..., :1]), mask[None, None, ..., None].to(key.dtype), cotangent)
        gap = (at[..., :, None, :] - self.until[..., None, :, :]).masked_fill(~mask[..., None], -torch.inf)
        return Read(key, at.exp(), gap.exp(), cotangent)

    def write(self, key: Tensor, value: Tensor, *, solved: bool = False) -> Write:
        """What keys and values write; `solved` values come out of a triangular system."""
        key, value = split(key.detach(), CHUNK), split(value.detach(), CHUNK)
        decay = torch.ones_like(key[..., :1]) if self.until is None else (self.until[:, :, -1:] - self.until).exp()
        return Write(key, decay, value, solved)

    def kept(self, i: int) -> Tensor | float:
        """Decay of a whole chunk, [N, K or 1, 1]."""
        return 1.0 if self.until is None else self.until[:, i, -1, :, None].exp()

    def weight(self, solved: bool) -> float:
        """What a term's rounding counts; a product of operands from memory is exact, and its sum float32's own."""
        return 1.0 if self.rounds or solved else min(1.0, _WALK * self.float32)

    def rows(self, x: Tensor) -> Tensor:
        """[N, n, C, D] back to [N, L, D]."""
        return x.reshape(x.shape[0], -1, x.shape[-1])[:, : self.length]

    def states(self, start: Tensor, writes: Sequence[Write]) -> tuple[Tensor, Tensor, Tensor]:
        """States and their variances before each chunk [N, n, K, V]; variance of the last."""
        state, variance = start.detach(), torch.zeros_like(start)
        found, spread = [], []
        for i in range(self.n):
            found.append(state)
            spread.append(variance)
            kept = self.kept(i)
            state = kept * state + sum(w.left[:, i].mT @ w.value[:, i] for w in writes)
            new = [(w.left[:, i].mT.square() @ w.value[:, i].square()) * self.weight(w.solved) for w in writes]
            variance = kept * kept * variance + sum(new) + self.float32 * state.square()
        return torch.stack(found, 1), torch.stack(spread, 1), variance

    def costates(self, end: Tensor, reads: Sequence[Read]) -> tuple[Tensor, Tensor, Tensor]:
        """Cotangents of the state after each chunk and their variances; variance of the first state's."""
        state, variance = end, torch.zeros_like(end)
        found, spread = [], []
        for i in reversed(range(self.n)):
            found.append(state)
            spread.append(variance)
            kept, asked = self.kept(i), [(r.into[:, i], r.cotangent[:, i]) for r in reads if r.cotangent is not None]
            given = [r.mT @ c for r, c in asked]
            state = kept * state + sum(given)
            weight = self.weight(self.scaled or len(reads) > 1)
            # what a chunk gives is rounded where it is stored for the other gradients
            new = [(r.mT.square() @ c.square() + x.square()) * weight for (r, c), x in zip(asked, given, strict=True)]
            variance = kept * kept * variance + sum(new) + self.float32 * state.square()
        return torch.stack(found[::-1], 1), torch.stack(spread[::-1], 1), variance


def _twice(x: Read | Write) -> float:
    """Roundings of a product with the state: of the state, and of a key that carries a decay of each channel."""
    return 1.0 if x.decay.shape[-1] == 1 else 2.0


def forward(read: Read, writes: Sequence[Write], states: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Variance of what is read, [N, n, C, V]."""
    state, spread, _ = states
    found = read.into.square() @ (_twice(read) * state.square() + spread)
    for w in writes:
        found = found + _scores(read, w).square() @ w.value.square()
    return found


def reader(read: Read, writes: Sequence[Write], states: tuple[Tensor, Tensor, Tensor], *, inside: bool) -> Tensor:
    """Variance of a reader's gradient, [N, n, C, K]; `inside` its chunk, too."""
    assert read.cotangent is not None
    state, spread, _ = states
    found = read.decay.square() * (read.cotangent.square() @ (state.square() + spread).mT)
    for w in writes if inside else ():
        found = found + _through(read.cotangent @ w.value.mT, w.key, read.pairs)
    return found


def writer(
    write: Write, reads: Sequence[Read], costates: tuple[Tensor, Tensor, Tensor], *, inside: bool
) -> tuple[Tensor, Tensor]:
    """Variances of the gradients of a write's key [N, n, C, K] and value [N, n, C, V]."""
    state, spread, _ = costates
    key = write.decay.square() * (write.value.square() @ (state.square() + spread).mT)
    value = write.left.square() @ (_twice(write) * state.square() + spread)
    for r in reads:
        if r.cotangent is not None:
            if inside:
                key = key + _through(write.value @ r.cotangent.mT, r.key, r.pairs.transpose(-3, -2))
            value = value + _scores(r, write).mT.square() @ r.cotangent.square()
    return key, value
