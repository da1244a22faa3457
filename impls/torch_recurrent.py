"""The recurrent form: the definition itself, one token after the other.

It has no decay products, no triangular systems and no chunks, so it is what the other forms are compared with.
"""

import torch
from torch import Tensor

from linverify.impls._functions import functions, laid_out
from linverify.impls._layout import Layout
from linverify.impls._terms import Terms, own_write


def recurrent(t: Terms, layout: Layout, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Step through the tokens of all sequences at once.

    Shapes: terms [tokens, H, 1, .] in the order of the steps; initial [N, H, K, V].
    """
    decay = t.log_decay.to(t.q.dtype).exp().mT.split(layout.active)  # [n, H, 1 or K, 1]
    k = t.k.mT.split(layout.active)  # [n, H, K, 1]
    q, v = t.q.split(layout.active), t.v.split(layout.active)
    a = None if t.a is None else t.a.split(layout.active)
    b = None if t.b is None else t.b.mT.split(layout.active)
    beta = None if t.beta is None else t.beta.split(layout.active)
    reads = [t.q[:0] @ initial[:0]]

    def step(i: int, state: Tensor) -> Tensor:
        new: Tensor = decay[i] * state
        value = v[i]
        if a is not None:
            read = a[i] @ (state if t.undecayed else new)
            if beta is not None:
                value = beta[i] * (value - read)
            if b is not None:
                new = new + b[i] * read
        new = new + k[i] * value
        reads.append(q[i] @ (state if t.exclusive else new))
        return new

    final = layout.scan(initial, step)
    return torch.cat(reads) + own_write(t), final


globals().update(functions(__name__, form="recurrent", run=laid_out(lambda _: 1, recurrent)))
