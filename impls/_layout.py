"""How tokens are laid out for a form: rows of a fixed width, none of which straddles two sequences.

WHY. A dense batch, packed sequences and ragged tails are one thing once every sequence is cut into rows of `width` tokens.
Rows are ordered by their step in the sequence and, within a step, from the longest sequence to the shortest. So the rows of one
step lie side by side, and the sequences still running at a step are a prefix of those at the step before: a scan over steps
treats all sequences at once and simply drops finished ones from the end. Width 1 gives the token-by-token order.

Padding tokens are zeros. A zero log gate does not decay and a zero key or value writes nothing, so they are inert.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Layout:
    """The rows of some sequences that lie one after the other in a flat list of tokens.

    Attributes:
        width: tokens in a row.
        active: number of sequences still running, by step.
        rows: total number of rows, the sum of `active`.
    """

    def __init__(self, lengths: Sequence[int], width: int, device: torch.device) -> None:
        self.width = width
        self._order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        steps = [-(-lengths[i] // width) for i in self._order]
        self.active = [sum(n > step for n in steps) for step in range(max(steps, default=0))]
        self.rows = sum(self.active)

        self._tokens = sum(lengths)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        first = torch.tensor([starts[i] for n in self.active for i in self._order[:n]], dtype=torch.long)
        last = torch.tensor([starts[i] + lengths[i] for n in self.active for i in self._order[:n]], dtype=torch.long)
        step = torch.arange(len(self.active)).repeat_interleave(torch.tensor(self.active, dtype=torch.long))
        token = (first + step * width)[:, None] + torch.arange(width)
        inside = token < last[:, None]
        # A token outside its sequence reads the zero that `gather` appends.
        self._source = torch.where(inside, token, self._tokens).flatten().to(device)
        self._padded = not bool(inside.all())
        target = torch.empty(self._tokens, dtype=torch.long)
        target[token[inside]] = torch.arange(self.rows * width).view(-1, width)[inside]
        self._target = target.to(device)

    def gather(self, x: Tensor) -> Tensor:
        """Lay out [B, T, H, D] as [rows, H, width, D]."""
        flat = x.flatten(0, 1)
        if self._padded:
            flat = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])
        rows = flat.index_select(0, self._source).view(self.rows, self.width, *x.shape[2:])
        return rows.transpose(1, 2).contiguous()

    def scatter(self, rows: Tensor, like: Tensor) -> Tensor:
        """Lay out [rows, H, width, V] as [B, T, H, V], the leading axes being those of `like`."""
        flat = rows.transpose(1, 2).flatten(0, 1)
        return flat.index_select(0, self._target).view(*like.shape[:2], *flat.shape[1:])

    def scan(self, initial: Tensor, step: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Carry a state [N, H, K, V] through the steps.

        Args:
            initial: states in the order of the sequences.
            step: maps the step's index and the states of its running sequences to the states after it.

        Returns:
            [N, H, K, V] the final states in the order of the sequences; an empty sequence keeps its initial state.
        """
        order = torch.tensor(self._order, device=initial.device)
        state = initial.index_select(0, order)
        finished: list[Tensor] = []
        for index, running in enumerate(self.active):
            if running < state.shape[0]:
                finished.append(state[running:])
                state = state[:running]
            state = step(index, state)
        return torch.cat([state, *reversed(finished)]).index_select(0, order.argsort())
