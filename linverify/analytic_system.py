"""What a recurrence writes to its state and what reads it, low-rank terms solved: for `linverify.analytic`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from linverify.analytic_passes import Passes
from linverify.analytic_sides import Read, Write
from linverify.fold import Rows
from linverify.reference.chunkwise import solved
from linverify.reference.question import Question


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """What reads the state and what is written to it; readers carry their cotangents.

    Attributes:
        reads: the query first, then what a low-rank term reads.
        writes: keys and values (of a delta operator, what it solved for), then what a general low-rank term writes.
        offset: of a delta operator, what is missing from the state, v - S^T k.
        pulled: of a delta operator, the gradient of v.
        strength: of a delta operator, what it writes with [N, L, 1].
        whole: whether all cotangents are known.
    """

    reads: tuple[Read, ...]
    writes: tuple[Write, ...]
    offset: Tensor | None = None
    pulled: Tensor | None = None
    strength: Tensor | None = None
    whole: bool = True


def system_of(question: Question, reference: Mapping[str, Tensor], passes: Passes) -> System:
    """Reads and writes of a question; `passes` lay them out in chunks."""
    rows = question.rows
    upstream = None if question.do is None else question.scale * question.do
    query = passes.read(rows.q, upstream, own=not rows.exclusive, decayed=not rows.exclusive)
    if rows.beta is None and rows.a is None:
        return System((query,), (passes.write(rows.k, rows.v),))
    low = partial(passes.read, own=False, decayed=not rows.undecayed, low=True)
    seen = question.seen if question.seen is not None else solved(rows, question.scale)[2]
    assert seen is not None
    if rows.beta is not None:
        # What is solved for is the inverse times beta v, less what the state held: the first is rounded before the second is
        # taken from it, and what is left is rounded again. Its cotangent is rounded where keys and values meet it.
        strength, offset = rows.beta.detach(), (rows.v - seen).detach()
        value = strength * offset
        written = passes.write(
            rows.k, value, solved=True, spread=value.square() + (strength * rows.v.detach()).square()
        )
        if "dv" not in reference:
            return System((query, low(rows.k, None)), (written,), whole=False)
        dv = question.folding.tokens(reference["dv"])
        return System((query, low(rows.k, -dv, spread=dv.square())), (written,), offset, dv, strength)
    assert rows.a is not None
    assert rows.b is not None
    into = pulled_through(rows, upstream, question.dstate) if question.problem.cotangents else None
    writes = passes.write(rows.k, rows.v), passes.write(rows.b, seen, solved=True, spread=seen.detach().square())
    return System((query, low(rows.a, into, spread=None if into is None else into.square())), writes)


def pulled_through(rows: Rows, upstream: Tensor | None, dstate: Tensor | None) -> Tensor:
    """Cotangent [N, L, V] of what a general low-rank term's a read: b^T dS, with dS the cotangent of the state after the token.

    The adjoint is a recurrence of the same kind, backwards: dS before a token is D dS + a (b^T dS), where a is decayed if it
    read the decayed state; and queries write their cotangents.
    """
    back = torch.zeros_like(rows.v) if upstream is None else upstream
    g, a, b, q = rows.log_decay, rows.a, rows.b, rows.q
    assert a is not None
    assert b is not None
    last = torch.zeros_like(rows.state) if dstate is None else dstate
    reader = a if g is None or rows.undecayed else a * g.exp()
    nothing = torch.zeros_like(q[:, :1])
    adjoint = Rows(
        q=torch.zeros_like(q),
        k=torch.cat([q.flip(1)[:, 1:], nothing], 1),
        v=torch.cat([back.flip(1)[:, 1:], torch.zeros_like(back[:, :1])], 1),
        log_decay=None if g is None else g.flip(1),
        beta=None,
        a=b.flip(1),
        b=reader.flip(1),
        bonus=None,
        state=last + q[:, -1, :, None] * back[:, -1, None],
        undecayed=True,
        exclusive=False,
    )
    found = solved(adjoint, 1.0)[2]
    assert found is not None
    return found.flip(1)
