"""Fold an operator's recurrence into rows: one row per (sequence, head), all of one length.

Packed sequences become rows of their own, filled up with null tokens (zero operands, zero log decay), which leave the state
unchanged; so one engine serves dense and packed inputs. Folding is differentiable.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.operator import Canonical


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The terms of the recurrence, row by row; absent terms are None.

    Attributes:
        q, k, v: [N, L, K], [N, L, K], [N, L, V].
        log_decay: [N, L, 1] or [N, L, K].
        beta: [N, L, 1].
        a, b: [N, L, K].
        bonus: [N, K].
        state: [N, K, V], initial.
        undecayed: the low-rank term reads the undecayed state.
        exclusive: the read-out excludes the write of its own token.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    beta: Tensor | None
    a: Tensor | None
    b: Tensor | None
    bonus: Tensor | None
    state: Tensor
    undecayed: bool
    exclusive: bool

    @property
    def gate(self) -> str:
        """The decay: "scalar", "channel", or "" where there is none."""
        if self.log_decay is None:
            return ""
        return "scalar" if self.log_decay.shape[-1] == 1 else "channel"

    def terms(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        names = ("q", "k", "v", "log_decay", "beta", "a", "b", "bonus", "state")
        return {n: t for n in names if (t := getattr(self, n)) is not None}


@dataclass(frozen=True, slots=True)
class Folding:
    """How [B, T, H, .] becomes rows, and back.

    Attributes:
        B, T, H: sizes.
        lengths: of packed sequences, in steps; () for a dense batch.
    """

    B: int
    T: int
    H: int
    lengths: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        """L: length of a row."""
        return max(self.lengths) if self.lengths else self.T

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(self.lengths) or self.B

    def _positions(self) -> tuple[list[int], list[int]]:
        """Token of each (sequence, step), T for a null token; and (sequence, step) of each token."""
        gather, scatter, start = [], [], 0
        for s, n in enumerate(self.lengths):
            gather += [start + i if i < n else self.T for i in range(self.longest)]
            scatter += [s * self.longest + i for i in range(n)]
            start += n
        return gather, scatter

    def tokens(self, x: Tensor) -> Tensor:
        """[B, T, H, D] to [N, L, D]; a size-1 B, T or H is broadcast."""
        x = x.expand(self.B, self.T, self.H, x.shape[-1])
        if self.lengths:
            gather, _ = self._positions()
            padded = torch.cat([x[0], x.new_zeros(1, self.H, x.shape[-1])])
            x = padded[torch.tensor(gather, device=x.device)].reshape(self.sequences, self.longest, self.H, -1)
        return x.transpose(1, 2).reshape(self.sequences * self.H, self.longest, -1)

    def untokens(self, rows: Tensor) -> Tensor:
        """[..., N, L, D] back to [..., B, T, H, D]."""
        lead = rows.shape[:-3]
        x = rows.reshape(*lead, self.sequences, self.H, self.longest, -1).transpose(-3, -2)
        if self.lengths:
            _, scatter = self._positions()
            flat = x.reshape(*lead, self.sequences * self.longest, self.H, x.shape[-1])
            x = flat[..., torch.tensor(scatter, device=x.device, dtype=torch.long), :, :].unsqueeze(-4)
        return x

    def heads(self, x: Tensor) -> Tensor:
        """[H, D] to [N, D]."""
        return x.expand(self.sequences, self.H, x.shape[-1]).reshape(self.sequences * self.H, -1)

    def states(self, x: Tensor, K: int, V: int) -> Tensor:
        """[sequences, H, K, V], or what the operator makes of it (axes of length one left out), to [N, K, V]."""
        return x.reshape(self.sequences * self.H, K, V)

    def unstates(self, rows: Tensor) -> Tensor:
        """[..., N, K, V] back to [..., sequences, H, K, V]."""
        return rows.reshape(*rows.shape[:-3], self.sequences, self.H, *rows.shape[-2:])

    def rows(self, c: Canonical, state: Tensor | None) -> Rows:
        """Fold a canonical recurrence; an absent initial state is zero."""
        if state is None:
            state = c.q.new_zeros(self.sequences, self.H, c.q.shape[-1], c.v.shape[-1])
        t = self.tokens
        return Rows(
            q=t(c.q),
            k=t(c.k),
            v=t(c.v),
            log_decay=None if c.log_decay is None else t(c.log_decay),
            beta=None if c.beta is None else t(c.beta),
            a=None if c.a is None else t(c.a),
            b=None if c.b is None else t(c.b),
            bonus=None if c.bonus is None else self.heads(c.bonus),
            state=self.states(state, c.q.shape[-1], c.v.shape[-1]),
            undecayed=c.low_rank_on == "undecayed",
            exclusive=c.read == "exclusive",
        )
