"""The recurrence of one call, laid out in rows and ready for a form.

Compared with `linverify.operator.Canonical`: q carries the scale, a delta operator has its key for `a`, an operator without
decay has log gates of zero, and log gates are float64, because forms add many of them up and then subtract sums that nearly
cancel.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from linverify.impls._layout import Layout
from linverify.operator import Canonical


@dataclass(frozen=True, slots=True)
class Terms:
    """One call's terms, every tensor [rows, H, width, .].

    Attributes:
        q: [.., K], multiplied by the scale.
        k: [.., K] what is written.
        v: [.., V].
        log_decay: [.., 1] or [.., K], float64.
        a: None or [.., K]: reads the state.
        b: None or [.., K]: writes what `a` read.
        beta: None or [.., 1]: of a delta operator, which writes beta (v - a^T Y) in place of v.
        undecayed: whether `a` reads the state before its decay.
        exclusive: whether q reads the state before the step.
        bonus: None or [H, 1, K]: weight of the token's own write in an exclusive read.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    a: Tensor | None
    b: Tensor | None
    beta: Tensor | None
    undecayed: bool
    exclusive: bool
    bonus: Tensor | None


Form = Callable[[Terms, Layout, Tensor], tuple[Tensor, Tensor]]
"""Maps the terms, their layout and the initial states [N, H, K, V] to o [rows, H, width, V] and the final states."""


def terms(canonical: Canonical, scale: float, layout: Layout) -> Terms:
    """Lay out canonical terms [B, T, H, .] and fold the scale into them."""
    c = canonical
    gates = c.q.new_zeros(1, 1, 1, 1) if c.log_decay is None else c.log_decay
    k = layout.gather(c.k)
    a = None if c.a is None else layout.gather(c.a)
    return Terms(
        q=layout.gather(c.q * scale),
        k=k,
        v=layout.gather(c.v),
        # A decay that is constant in time comes as [1, 1, H, 1].
        log_decay=layout.gather(gates.double().expand(*c.q.shape[:3], -1)),
        a=a if c.beta is None else k,
        b=None if c.b is None else layout.gather(c.b),
        beta=None if c.beta is None else layout.gather(c.beta),
        undecayed=c.low_rank_on == "undecayed",
        exclusive=c.read == "exclusive",
        bonus=None if c.bonus is None else c.bonus.unsqueeze(-2),
    )


@dataclass(frozen=True, slots=True)
class Sums:
    """Running sums of the log gates of a row, [.., width, 1 or K], float64.

    A write of token j that is read by token i has decayed by exp(read_i - after_j).

    Attributes:
        before: without the token's own gate.
        after: with it: where its write enters.
        read: one of them: what q has seen.
        low: one of them: what `a` has seen.
        end: [.., 1, 1 or K] the whole row.
    """

    before: Tensor
    after: Tensor
    read: Tensor
    low: Tensor
    end: Tensor


def sums(t: Terms) -> Sums:
    """Add up the log gates."""
    after = t.log_decay.cumsum(-2)
    before = pad(after, (0, 0, 1, 0))[..., :-1, :]
    read, low = before if t.exclusive else after, before if t.undecayed else after
    return Sums(before, after, read, low, after[..., -1:, :])


def decayed(x: Tensor, log_decay: Tensor) -> Tensor:
    """Multiply by exp of a float64 exponent, rounded to the dtype of x before exp."""
    return x * log_decay.to(x.dtype).exp()


def own_write(t: Terms) -> Tensor | float:
    """What an exclusive read adds for the token itself: (q . (bonus * k)) v, [rows, H, width, V]."""
    if t.bonus is None:
        return 0.0
    return (t.q * t.bonus * t.k).sum(-1, keepdim=True) * t.v
