"""The terms of a recurrence by role, as leaves of their own: what a rounding model differentiates."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from linverify.fold import Rows

# exp of this is 0 in float32: a gate of -inf forgets no more
FORGOTTEN = -256.0
# Terms without a time axis.
TOKENLESS = ("state", "bonus")


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


def roles(rows: Rows, copies: int, dtype: torch.dtype, *, grad: bool, split: bool = False, lead: int = 0) -> Roles:
    """Copy the rows `copies` times along the batch, one fresh leaf a role.

    Args:
        rows: terms.
        copies: how many.
        dtype: of the leaves.
        grad: whether they require gradients.
        split: give the triangular system a key of its own.
        lead: null tokens put before the first.
    """

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype).repeat(copies, *[1] * (x.dim() - 1)).requires_grad_(grad)

    terms = {n: t if n in TOKENLESS or not lead else pad(t, (0, 0, lead, 0)) for n, t in rows.terms().items()}
    found = {n: leaf(t if n != "log_decay" else t.clamp(min=FORGOTTEN)) for n, t in terms.items()}
    if rows.beta is not None:
        found["reading"] = leaf(terms["k"])
        if split:
            found["written"] = leaf(terms["k"])
    if rows.bonus is not None:
        found["bonus_q"], found["bonus_k"] = leaf(terms["q"]), leaf(terms["k"])
    return Roles(**found)
