"""Passes over squared values: variances that rounded products leave, chunk by chunk, in units of one rounding's variance.

For `linverify.analytic`, which says what is written and what reads it. M = N n counts the n chunks of all N rows.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from linverify.analytic_sides import Read, Write
from linverify.analytic_states import States, accumulated
from linverify.dtype import FP32, TF32, Format
from linverify.gate_slips import Slips, slips
from linverify.recipe import power_of_two
from linverify.reference.batched import cut
from linverify.reference.chunkwise import CHUNK
from linverify.reference.question import Question

# Terms of a chunk of 64 that a float32 accumulator takes one by one: half of them, each partial sum rounded.
_WALK = 32.0
# Boundaries of sub-chunks lie at multiples of the smallest tile of a tensor core (PTX ISA, mma.m16n8k8).
_TILE = 8
# Roundings in float32 of a term of a sub-chunk that no tensor core forms: of its decay, of two products, of the sum.
_SINGLE = 4.0


@lru_cache(maxsize=8)
def _masks(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk's pairs: the later one and itself, the later one alone, and 1.0 for those in different tiles."""
    index = torch.arange(CHUNK, device=device)
    later, earlier = index[:, None], index[None, :]
    return later >= earlier, later > earlier, (later // _TILE != earlier // _TILE).double()


def _slipped(squares: Tensor, slips: Tensor | None) -> Tensor:
    return squares if slips is None else torch.addcmul(squares, squares, slips)


class Passes:
    """The recurrence with its writes given, chunk by chunk, and the variances that its roundings leave."""

    def __init__(self, question: Question, fmt: Format) -> None:
        rows, memory = question.rows, fmt is TF32
        self.float32 = (FP32.unit_roundoff / fmt.unit_roundoff) ** 2
        self.sequences, self.length = rows.q.shape[:2]
        g = None if rows.log_decay is None else cut(rows.log_decay.detach(), CHUNK)
        self.until = None if g is None else g.cumsum(1)
        self.kept = None if self.until is None else self.each(self.until[:, -1])
        self.before = None if g is None or self.until is None else self.until - g
        self.inclusive, self.strict, apart = _masks(rows.q.device)
        self.rounds = memory or g is not None  # a decay in an operand is rounded
        self.scaled = not power_of_two(question.scale)  # and a scale that changes digits
        # Inside a sub-chunk a gate per channel leaves no product to round; sums in float32 it leaves.
        self.inside: Tensor | None = None
        if g is not None and g.shape[-1] > 1 and not memory and fmt is not FP32:
            self.inside = apart.clamp(min=min(1.0, _SINGLE * self.float32))[..., None]
        # Shares of a product's variance that go with its square, and with the squares of its terms: a float32 sum of n terms x
        # has n/2 sum x^2 + n/3 (sum x)^2, and two of its operands, of n + 2 units. Operands from memory that are truncated err
        # term by term, which is half of what TF32 does: the product, and what it meets, are truncated as well.
        n = min(rows.state.shape[-2:])
        # Of a sum's units, those of an operand that carries a decay.
        self.operand = 0.0 if g is None else 2 / (n + 2) if fmt is FP32 else 1.0
        self.walk = ((n / 3 + 2) / (n + 2), n / 2 / (n + 2)) if fmt is FP32 else (0.5, 0.5) if memory else None
        self._scores: dict[tuple[Read, Write], Tensor] = {}
        self._apart: dict[Read, Tensor] = {}
        self._weights: dict[tuple[Read, Write], tuple[Tensor, Tensor]] = {}
        self.slips: Slips | None = None
        if fmt is FP32 and rows.log_decay is not None:
            self.slips = slips(rows.log_decay.detach(), CHUNK, n + 2)

    def read(
        self,
        key: Tensor,
        cotangent: Tensor | None,
        *,
        own: bool,
        decayed: bool,
        low: bool = False,
        spread: Tensor | None = None,
    ) -> Read:
        """A read after (own) or before the write of its token, after (decayed) or before the decay."""
        at, mask = self.until if decayed else self.before, self.inclusive if own else self.strict
        key = cut(key.detach(), CHUNK)
        cotangent, spread = (None if x is None else cut(x, CHUNK) for x in (cotangent, spread))
        if at is None or self.until is None:
            pairs = mask[None, ..., None].to(key.dtype)
            return Read(key, None, pairs, cotangent, low, spread=spread)
        gap = (at[:, :, None] - self.until[:, None]).masked_fill(~mask[..., None], -torch.inf)
        slips = None if self.slips is None else self.slips.read(decayed=decayed)
        return Read(key, at.exp(), gap.exp(), cotangent, low, slips, spread)

    def write(self, key: Tensor, value: Tensor, *, solved: bool = False, spread: Tensor | None = None) -> Write:
        """What keys and values write; `solved` values come out of a triangular system."""
        spread = None if spread is None else cut(spread, CHUNK)
        key, value = cut(key.detach(), CHUNK), cut(value.detach(), CHUNK)
        decay = None if self.until is None else (self.until[:, -1:] - self.until).exp()
        return Write(key, decay, value, solved, None if self.slips is None else self.slips.written, spread)

    def weight(self, solved: bool) -> float:
        """What a term's rounding counts; a product of operands from memory is exact, and its sum float32's own."""
        return 1.0 if self.rounds or solved else min(1.0, _WALK * self.float32)

    def each(self, x: Tensor) -> Tensor:
        """[M, ...] to [N, n, ...]."""
        return x.view(self.sequences, -1, *x.shape[1:])

    def rows(self, x: Tensor) -> Tensor:
        """[M, C, D] back to [N, L, D]."""
        return x.reshape(self.sequences, -1, x.shape[-1])[:, : self.length]

    def both(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same of two, which may be one."""
        first = self.rows(x[0])
        return first, first if x[0] is x[1] else self.rows(x[1])

    def states(self, start: Tensor, writes: Sequence[Write]) -> States:
        """States and their variances before each chunk; variance of the last."""
        added = [torch.bmm(w.decayed.mT, w.value) for w in writes]
        new = [torch.bmm(_slipped(w.decayed_squares, w.slip).mT, w.energy).mul_(self.weight(w.solved)) for w in writes]
        return self._stored(start.detach(), sum(added[1:], added[0]), sum(new[1:], new[0]), back=False)

    def costates(self, end: Tensor, reads: Sequence[Read]) -> States:
        """Cotangents of the state after each chunk and their variances; variance of the first state's."""
        weight, given, new = self.weight(self.scaled or len(reads) > 1), [], []
        for r in reads:
            if r.cotangent is not None:
                product = torch.bmm(r.decayed.mT, r.cotangent)
                spread = torch.bmm(_slipped(r.decayed_squares, r.slip).mT, r.energy)
                # what a chunk gives is rounded where it is stored for the other gradients
                given.append(product)
                new.append(spread.addcmul_(product, product).mul_(weight))
        if not given:
            given, new = ([end.new_zeros(len(reads[0].key), *end.shape[1:])] for _ in range(2))
        return self._stored(end, sum(given[1:], given[0]), sum(new[1:], new[0]), back=True)

    def _stored(self, start: Tensor, added: Tensor, new: Tensor, *, back: bool) -> States:
        """What is stored from chunk to chunk, and its variance, of what each chunk adds [M, K, V]; `new` is used up."""
        kept, new = self.kept, self.each(new)
        found = accumulated(kept, start, self.each(added), back=back)
        earlier, later = found[:, :-1], found[:, 1:]
        before, after = (later, earlier) if back else (earlier, later)
        new.addcmul_(after, after, value=self.float32)
        if self.slips is not None and kept is not None:
            new.addcmul_(before.square(), self.slips.kept * (2 * kept).exp()[..., None])
        spread = accumulated(None if kept is None else 2 * kept, torch.zeros_like(start), new, back=back)
        met, last = (slice(1, None), 0) if back else (slice(-1), -1)
        return States(found[:, met].flatten(0, 1), spread[:, met].flatten(0, 1), spread[:, last])

    def scores(self, read: Read, write: Write) -> Tensor:
        """Variance of decayed scores, [M, C, C]; computed once."""
        key = read, write
        if key not in self._scores:
            self._scores[key] = self._scored(read, write)
        return self._scores[key]

    def _scored(self, read: Read, write: Write) -> Tensor:
        if read.pairs.shape[-1] == 1:
            found = torch.bmm(read.key, write.key.mT).square()
            spread = found if self.walk is None else self._summed(found, read.key_squares, write.key_squares)
            if read.slips is not None:
                spread = torch.addcmul(spread, found, read.slips[1][..., 0])
            return spread * read.pair_squares[..., 0]
        found = torch.einsum("...id,...jd,...ijd->...ij", read.key, write.key, read.pairs).square()
        if self.walk is None:
            return found
        same, terms = self.walk
        squares = read.pair_squares * (terms if read.slips is None else terms + read.slips[1])
        return found * same + torch.einsum("...id,...jd,...ijd->...ij", read.key_squares, write.key_squares, squares)

    def _summed(self, squares: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Variance of a product whose squares and whose operands' squares are given, but for its operands' own."""
        assert self.walk is not None
        same, terms = self.walk
        return torch.baddbmm(squares, a, b.mT, beta=same, alpha=terms)

    def _weighed(self, read: Read, write: Write) -> tuple[Tensor, Tensor]:
        """Squares of cotangents times values, and their variance, [M, C, C]; computed once."""
        key = read, write
        if key not in self._weights:
            assert read.cotangent is not None
            squares = torch.bmm(read.cotangent, write.value.mT).square()
            weights = squares if self.walk is None else self._summed(squares, read.squares, write.squares)
            if read.spread is not None:
                weights = torch.baddbmm(weights, read.spread, write.squares.mT)
            if write.spread is not None:
                weights = torch.baddbmm(weights, read.squares, write.spread.mT)
            self._weights[key] = squares, weights
        return self._weights[key]

    def through(self, read: Read, write: Write, *, back: bool) -> tuple[Tensor, Tensor]:
        """Variance that cotangents times values leave in a reader's gradient [M, C, K], or (back) in a written key's.

        Twice: all of it, and what does not come of slips.
        """
        squares, weights = self._weighed(read, write)
        decays, keys = self._rounded(read, write), (read if back else write).key_squares
        if decays.shape[-1] == 1:

            def weighed(x: Tensor) -> Tensor:
                x = x * decays[..., 0]
                return torch.bmm(x.mT if back else x, keys)

            steady = weighed(weights)
            return steady if read.slips is None else steady + weighed(squares * read.slips[1][..., 0]), steady
        equation = "...ij,...id,...ijd->...jd" if back else "...ij,...jd,...ijd->...id"
        steady = torch.einsum(equation, weights, keys, decays)
        if read.slips is None:
            return steady, steady
        return steady + torch.einsum(equation, squares, keys, decays * read.slips[1]), steady

    def _rounded(self, read: Read, write: Write) -> Tensor:
        """Squares of the decays between them, where something is rounded."""
        if self.inside is None or write.solved or read.low:
            return read.pair_squares
        if read not in self._apart:
            self._apart[read] = read.pair_squares * self.inside
        return self._apart[read]

    def through_rows(self, read: Read, write: Write, y: Tensor, *, back: bool) -> Tensor:
        """Variance of sums over rows of the same gradients, [M, C]: an error of a weight is one of its whole row.

        Args:
            read: what reads.
            write: what it reads.
            y: weights of the sums, [M, C, K].
            back: as in `through`.
        """
        squares, weights = self._weighed(read, write)
        q, k, pairs = (read.key, y, read.pairs) if back else (y, write.key, read.pairs)
        if pairs.shape[-1] == 1:
            onto = torch.bmm(q, k.mT).square() * read.pair_squares[..., 0]
            if read.slips is not None:
                weights = torch.addcmul(weights, squares, read.slips[1][..., 0])
        else:
            onto = torch.einsum("...id,...jd,...ijd->...ij", q, k, pairs).square()
        if self.inside is not None and not (write.solved or read.low):
            onto = onto * self.inside[..., 0]
        return (weights * onto).sum(-2 if back else -1)


def _stored_product(of: Read | Write, states: States) -> Tensor:
    """Variance of a product of decayed keys [M, C, K] with what is stored [M, K, V]: [M, C, V].

    What is stored is rounded, and a key that carries a decay of each channel; one that all channels share slips as a whole.
    """
    found = torch.bmm(of.decayed_squares, states.energy)
    if of.apart:
        return torch.baddbmm(found, _slipped(of.decayed_squares, of.slip), states.squares)
    return found if of.slip is None else torch.addcmul(found, of.slip, states.met(of).square())


def _key_gradient(of: Read | Write, x: Tensor, states: States) -> tuple[Tensor, Tensor]:
    """Variance of x @ stored^T with its decay, [M, C, K], and what does not come of slips.

    x is the read's cotangent or the value written. What is stored owes its own variance to slips, where there are any.
    """
    found = torch.bmm(of.energy, states.energy.mT)
    if of.slip is None:
        found = of.fading(found)
        return found, found
    found = torch.addcmul(found, of.slip, torch.bmm(x, states.stored.mT).square())
    return of.fading(found), of.fading(torch.bmm(of.energy, states.squares.mT))


def _plus(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of two pairs, taken once where both parts are one."""
    first = a[0] + b[0]
    return first, first if a[0] is a[1] and b[0] is b[1] else a[1] + b[1]


def forward(passes: Passes, read: Read, writes: Sequence[Write], states: States) -> Tensor:
    """Variance of what is read, [M, C, V]."""
    found = _stored_product(read, states)
    for w in writes:
        found = torch.baddbmm(found, passes.scores(read, w), w.energy)
    return found


def reader(passes: Passes, read: Read, writes: Sequence[Write], states: States) -> tuple[Tensor, Tensor]:
    """Variance of a reader's gradient, [M, C, K], and what does not come of slips."""
    assert read.cotangent is not None
    found, steady = _key_gradient(read, read.cotangent, states)
    for w in writes:
        found, steady = _plus((found, steady), passes.through(read, w, back=False))
    return found, steady


def writer(passes: Passes, write: Write, reads: Sequence[Read], costates: States) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of gradients: of a write's key [M, C, K], what of it does not come of slips, of its value [M, C, V]."""
    key, steady = _key_gradient(write, write.value, costates)
    value = _stored_product(write, costates)
    for r in reads:
        if r.cotangent is not None:
            key, steady = _plus((key, steady), passes.through(r, write, back=True))
            value = torch.baddbmm(value, passes.scores(r, write).mT, r.energy)
    return key, steady, value
