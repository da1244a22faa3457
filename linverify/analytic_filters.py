"""How far matched filters of a correct kernel's errors may reach: errors that a whole row or column of a result shares.

A filter sums a row's errors with weights y, as if they were independent. But the error of one score goes into all columns of
its row, o_i = sum_j P_ij v_j, so the sum has the variance of that score times (y_i . v_j)^2, as many times as large as there
are columns. So it is with what weighs keys in a gradient, with a decay that all channels of a key share, and, in columns of a
state, with a rounded value. Here are the variances of these sums, in units of one rounding's, for `linverify.analytic`.

What several tokens of a result share is left out: so a sum is no larger here than realisations show it to be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.analytic_passes import Passes
from linverify.analytic_sides import Read, Write
from linverify.analytic_states import States
from linverify.analytic_system import System
from linverify.reference.batched import cut
from linverify.reference.chunkwise import CHUNK


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Variances of weighted sums of errors, over each row, each column and each head of a result.

    Attributes:
        rows: [N, rows].
        columns: [N, columns].
        heads: [N].
    """

    rows: Tensor
    columns: Tensor
    heads: Tensor


def by_rows(rows: Tensor, columns: int) -> Sums:
    """Sums of a result whose rows err independently, and whose columns share nothing."""
    return Sums(rows, rows.new_zeros(rows.shape[0], columns), rows.sum(1))


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What the analytic variances were made of.

    Attributes:
        passes: the recurrence, chunk by chunk.
        system: what is written and what reads.
        states: before each chunk.
        costates: cotangents of the state after each chunk; None where they are not known.
    """

    passes: Passes
    system: System
    states: States
    costates: States | None

    def of_tokens(self, term: str, y: Tensor) -> Tensor | None:
        """Variance of sums over rows [N, L] of o ("o") or of a term's gradient; None where that is not known.

        Args:
            term: of the rows.
            y: weights [N, L, K or V].
        """
        y, (query, *low), (own, *other) = cut(y, CHUNK), self.system.reads, self.system.writes
        delta, known = self.system.offset is not None, self.costates is not None
        if term == "o":
            found = self._of_read(y)
        elif term == "q" and query.cotangent is not None:
            found = self._of_reader(query, y)
        elif term == "k" and known:
            found = self._of_key(own, y)
            if delta:
                found = found + self._of_reader(low[0], y)
        elif term == "v" and known:
            y = y if self.system.strength is None else y * cut(self.system.strength, CHUNK)
            found = self._of_value(own, y)
        elif term == "a" and known and low:
            found = self._of_reader(low[0], y)
        elif term == "b" and known and other:
            found = self._of_key(other[0], y)
        else:
            return None
        return self.passes.rows(found[..., None])[..., 0]

    def of_state(self, which: str, y: Tensor) -> Sums | None:
        """Variances of sums over the last state, or over the cotangent of the first; None where that is not known.

        Args:
            which: "last" or "first".
            y: weights [N, K, V].
        """
        if which == "last":
            return self._last(
                [(w.decayed, w.value, w.energy, w.solved, w.slip) for w in self.system.writes], self.states, y
            )
        if self.costates is None:
            return None
        added = [
            (r.decayed, r.cotangent, r.energy, r.low, r.slip) for r in self.system.reads if r.cotangent is not None
        ]
        return self._last(added, self.costates, y, back=True)

    def _of_read(self, y: Tensor) -> Tensor:
        """Variance of sums over rows of what queries read [M, C]; weights [M, C, V]."""
        read = self.system.reads[0]
        found = self._stored(read, self.states, y)
        for w in self.system.writes:
            found = found + (self.passes.scores(read, w) * torch.bmm(y, w.value.mT).square()).sum(-1)
        return found

    def _of_value(self, write: Write, y: Tensor) -> Tensor:
        """The same of a written value's gradient."""
        assert self.costates is not None
        found = self._stored(write, self.costates, y)
        for r in self.system.reads:
            if r.cotangent is not None:
                found = found + (self.passes.scores(r, write).mT * torch.bmm(y, r.cotangent.mT).square()).sum(-1)
        return found

    def _of_reader(self, read: Read, y: Tensor) -> Tensor:
        """Variance of sums over rows of a reader's gradient [M, C]; weights [M, C, K]."""
        assert read.cotangent is not None
        found = self._key(read, read.cotangent, self.states, y)
        for w in self.system.writes:
            found = found + self.passes.through_rows(read, w, y, back=False)
        return found

    def _of_key(self, write: Write, y: Tensor) -> Tensor:
        """The same of a written key's gradient."""
        assert self.costates is not None
        found = self._key(write, write.value, self.costates, y)
        for r in self.system.reads:
            if r.cotangent is not None:
                found = found + self.passes.through_rows(r, write, y, back=True)
        return found

    def _stored(self, of: Read | Write, states: States, y: Tensor) -> Tensor:
        """Of decayed keys [M, C, K] times what is stored: a key is rounded if its channels decay apart."""
        if of.apart:
            weights = self.passes.operand if of.slip is None else self.passes.operand + of.slip
            return (of.decayed_squares * torch.bmm(y, states.stored.mT).square() * weights).sum(-1)
        if of.slip is None:
            return torch.zeros_like(y[..., 0])
        return of.slip[..., 0] * (y * states.met(of)).sum(-1).square()

    def _key(self, of: Read | Write, x: Tensor, states: States, y: Tensor) -> Tensor:
        """Of x @ stored^T with its decay: x is rounded with a decay that all channels share, and what it lost they share."""
        if of.apart or of.decay is None or not self.passes.operand:
            return torch.zeros_like(x[..., 0])
        onto = torch.bmm(y * of.decay, states.stored)
        found = (of.energy * onto.square()).sum(-1) * self.passes.operand
        return found if of.slip is None else torch.addcmul(found, of.slip[..., 0], (x * onto).sum(-1).square())

    def _last(
        self,
        added: Sequence[tuple[Tensor, Tensor, Tensor, bool, Tensor | None]],
        states: States,
        y: Tensor,
        *,
        back: bool = False,
    ) -> Sums:
        """Of what was added chunk by chunk: keys, values, their energies, whether they were solved for, and slips.

        A key is rounded if its channels decay apart, a value if they share a decay or if it was solved for. What a decay
        lost, all have that it decays: the state that enters a chunk, above all.
        """
        passes, kept = self.passes, self.passes.kept
        y = y[:, None]
        if kept is not None:  # what is left at the end of what leaves a chunk
            rest = kept.cumsum(1) - kept if back else kept.sum(1, keepdim=True) - kept.cumsum(1)
            y = y * rest.exp()[..., None]
        rows, columns = torch.zeros_like(y[:, 0, :, 0]), torch.zeros_like(y[:, 0, 0])
        apart = kept is not None and kept.shape[-1] > 1
        for *given, solved, slips in added:
            key, value, energy = (passes.each(x) for x in given)
            if apart:
                weights = passes.operand if slips is None else passes.operand + passes.each(slips)
                rows = rows + (key.square() * (value @ y.mT).square() * weights).sum((1, 2))
            if solved or (passes.operand and not apart):
                columns = columns + (energy * (key @ y).square()).sum((1, 2)) * (1.0 if solved else passes.operand)
        heads = rows.sum(1) + columns.sum(1)
        if passes.slips is not None and kept is not None:
            held = passes.each(states.stored) * kept.exp()[..., None] * y
            by_row, slip = held.sum(-1), passes.slips.kept[..., 0]
            if apart:
                slipped = (slip * by_row.square()).sum(1)
                rows, heads = rows + slipped, heads + slipped.sum(1)
            else:
                rows = rows + (slip * by_row.square()).sum(1)
                columns = columns + (slip * held.sum(-2).square()).sum(1)
                heads = heads + (slip * held.sum((-2, -1), keepdim=True)[..., 0].square())[..., 0].sum(1)
        return Sums(rows, columns, heads)
