"""The terms of a recurrence by role, as leaves of their own: what a rounding model differentiates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.fold import Rows

# exp of this is 0 in float32: a gate of -inf forgets no more
FORGOTTEN = -256.0


@dataclass(frozen=True, slots=True, eq=False)
class Roles:
    """The terms by role, as leaves of their own: a key read by the low-rank term is another leaf than the key written.

    The cumulative forms of the gate gradient need them apart. `written` is the key written inside a chunk's triangular system.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    log_decay: Tensor | None = None
    beta: Tensor | None = None
    reading: Tensor | None = None
    written: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    bonus: Tensor | None = None
    bonus_q: Tensor | None = None
    bonus_k: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The roles that are there."""
        return {n: t for n in self.__slots__ if (t := getattr(self, n)) is not None}


def roles(rows: Rows, copies: int, dtype: torch.dtype, *, grad: bool, split: bool = False) -> Roles:
    """Copy the rows `copies` times along the batch, one fresh leaf a role; `split` gives the triangular system its own."""

    def leaf(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().to(dtype).repeat(copies, *[1] * (x.dim() - 1)).requires_grad_(grad)

    found = {n: leaf(t if n != "log_decay" else t.clamp(min=FORGOTTEN)) for n, t in rows.terms().items()}
    if rows.beta is not None:
        found["reading"] = leaf(rows.k)
        found["written"] = leaf(rows.k) if split else None
    if rows.bonus is not None:
        found["bonus_q"], found["bonus_k"] = leaf(rows.q), leaf(rows.k)
    return Roles(**found)  # type: ignore[arg-type]  # q, k, v, state are always there
