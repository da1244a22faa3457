"""A segment's pieces side by side: the equal parts of a stretch of tokens as one batch, each with the state that enters it.

A recurrence is linear in its state, S' = A S + B, so nothing but the states at the boundaries has to wait: all pieces run at
once from nothing, which gives B, their transitions A take the first state through them, and with every piece's own state they
all run at once again. Backwards the cotangents take the same way, with A transposed (Blelloch 1990, Prefix sums and their
applications, section 1.4; Martin and Cundy 2018, arXiv:1709.04057). On a GPU a long loop over chunks becomes a short one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from linverify.fold import Rows
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference.chunkwise import scan
from linverify.reference.question import answer, pose, sizes_of, state_shape

PIECE = 256
"""Tokens of a piece: whole chunks of every usual size, and more than one of each."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How rows are counted: sequences, pieces of each, heads of each.

    Attributes:
        sequences, pieces, heads: numbers.
    """

    sequences: int
    pieces: int
    heads: int

    def apart(self, rows: Tensor) -> Tensor:
        """[copies * rows, ...] to [copies, sequences, pieces, heads, ...]."""
        return rows.reshape(-1, self.sequences, self.pieces, self.heads, *rows.shape[1:])

    @staticmethod
    def flat(apart: Tensor) -> Tensor:
        """Back to [copies * rows, ...]."""
        return apart.reshape(-1, *apart.shape[4:])


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The pieces of a segment.

    Attributes:
        grid: how their rows are counted.
        problem: their tokens as a batch of sequences, each with the exact state that enters it; and, on the way back, what is
            asked of them, with the exact cotangent of the state that leaves.
        last: exact state that leaves the last piece, as rows [sequences * heads, K, V].
        through: transitions of the state: factors [N, K, 1], or matrices [N, K, K].
        cotangents: exact, of the states that enter, [N, K, V]; on the way back.
    """

    grid: Grid
    problem: Problem
    last: Tensor
    through: Tensor
    cotangents: Tensor | None = None

    @property
    def leaving(self) -> Tensor:
        """Exact states that leave the pieces, as rows [N, K, V]: each enters the next piece."""
        assert self.problem.initial_state is not None
        K, V = self.last.shape[1:]
        entering = self.grid.apart(self.problem.initial_state.reshape(-1, K, V))[0]
        last = self.last.reshape(self.grid.sequences, 1, self.grid.heads, K, V)
        return torch.cat([entering[:, 1:], last], 1).reshape(-1, K, V)


def count(problem: Problem, operator: Operator, piece: int) -> int:
    """How many pieces a segment's tokens make: one, where they are no whole number of pieces or cannot be laid side by side."""
    T = sizes_of(problem, operator)["T"]
    axes = [i.axes for i in operator.inputs] + [operator.o_axes]
    able = (
        all(a[:2] == ("B", "T") or not {"B", "T"} & set(a) for a in map(tuple, axes)) and operator.state_axes[0] == "N"
    )
    return T // piece if able and T % piece == 0 else 1


def onto(pieces: int, problem: Problem, operator: Operator, first: Tensor | None, device: torch.device) -> Pieces:
    """Take a state through the pieces of a segment, without gradients.

    Args:
        pieces: how many.
        problem: of the segment; its states and what it asks for are left out.
        operator: its statement.
        first: exact state that enters, as the operator lays it out or as rows; None for zero.
        device: of the computation.
    """
    tensors = {n: _split(operator, n, t, pieces) for n, t in problem.tensors.items()}
    batch = replace(problem, tensors=tensors, initial_state=None, cotangents={}, wrt=(), final_state=True)
    with torch.no_grad():
        question = pose(batch, operator, device)
        rows, folding = question.rows, question.folding
        grid = Grid(folding.sequences // pieces, pieces, folding.H)
        begins = torch.zeros_like(rows.state[: grid.sequences * grid.heads])
        if first is not None:
            begins = first.to(begins).reshape(begins.shape)
        if pieces == 1:
            entering, through = begins, torch.ones_like(begins[..., :1])  # by which nobody goes
            last = scan(replace(rows, state=begins), question.scale)[1]
        else:
            through = transitions(rows)
            entering, leaving = onward(grid, through, begins, scan(rows, question.scale)[1])
            last = ends(grid, leaving)[1].clone()  # not the whole of which it is a view
    laid = entering.reshape(state_shape(operator, batch))
    return Pieces(grid, replace(batch, initial_state=laid), last, through)


def results(
    pieces: Pieces, operator: Operator, device: torch.device, segment: Problem, last: Tensor | None
) -> tuple[Pieces, dict[str, Tensor]]:
    """Exact results of a segment, in its own layout, and its pieces with what is asked of them.

    Args:
        pieces: of the segment, with the states that enter them.
        operator: its statement.
        device: of the computation.
        segment: its problem: what is asked for, and the upstream gradient of its outputs.
        last: exact cotangent of the state that leaves it, as the operator lays it out or as rows; None for zero.
    """
    grid, asks = pieces.grid, "initial_state" in segment.wrt
    upstream = {}
    if asks and "o" in segment.cotangents:
        do = segment.cotangents["o"]
        upstream["o"] = do.reshape(do.shape[0] * grid.pieces, -1, *do.shape[2:])
    question = pose(replace(pieces.problem, wrt=segment.wrt, cotangents=upstream), operator, device)
    rows = question.rows
    with torch.set_grad_enabled(asks):
        read, state = scan(rows, question.scale)
        o = question.read(read)
    if not asks:
        return pieces, joined(operator, answer(question, o, state, lambda _: ()), grid)
    start, from_o = question.leaves["initial_state"], torch.zeros_like(state)
    outputs = [] if question.do is None else [(o if operator.readout is not None else read, question.do)]
    if outputs and grid.pieces > 1:
        (made,) = torch.autograd.grad(outputs[0][0], start, outputs[0][1], retain_graph=True)
        from_o = made.reshape(state.shape)
    ends_in = torch.zeros_like(rows.state[: grid.sequences * grid.heads])
    if last is not None:
        ends_in = last.to(ends_in).reshape(ends_in.shape)
    leaving = ends_in if grid.pieces == 1 else back(grid, pieces.through, ends_in, from_o)[0]
    outputs.append((state, leaving))
    asked = replace(question.problem, cotangents=upstream | {"state": leaving.reshape(start.shape)})

    def gradients(leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad([x for x, _ in outputs], leaves, [d for _, d in outputs], allow_unused=True)

    found = answer(replace(question, problem=asked), o, state, gradients)
    cotangents = found["dinitial_state"].reshape(state.shape)
    return replace(pieces, problem=asked, cotangents=cotangents), joined(operator, found, grid)


def joined(operator: Operator, found: Mapping[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    """Results of the pieces [..., B * pieces, T / pieces, ...] as those of their segment [..., B, T, ...].

    The state is the last piece's, the gradient of the initial state the first one's.
    """

    def one(name: str, x: Tensor) -> Tensor:
        axes = result_axes(operator, name)
        if "T" not in axes and "N" not in axes:
            return x
        lead = x.dim() - len(axes)
        apart: Tensor = x.unflatten(lead, (grid.sequences, grid.pieces))
        if "T" in axes:
            return apart.flatten(lead + 1, lead + 2)
        return apart.select(lead + 1, 0 if name == "dinitial_state" else grid.pieces - 1)

    return {n: one(n, x) for n, x in found.items()}


def result_axes(operator: Operator, result: str) -> tuple[str, ...]:
    """Axis letters of a result: o, state or d<input>."""
    if result == "o":
        return tuple(operator.o_axes)
    if result in ("state", "dinitial_state"):
        return tuple(operator.state_axes)
    return tuple(operator.input(result[1:]).axes)


def _split(operator: Operator, name: str, x: Tensor, pieces: int) -> Tensor:
    """[B, T, ...] to [B * pieces, T / pieces, ...]; an input that all tokens share as it is."""
    if "T" not in operator.input(name).axes:
        return x
    return x.reshape(x.shape[0] * pieces, x.shape[1] // pieces, *x.shape[2:])


def transitions(rows: Rows) -> Tensor:
    """What every row does to a state that enters it: factors [N, K, 1], with a low-rank term matrices [N, K, K]."""
    if rows.beta is None and rows.a is None:
        if rows.log_decay is None:
            return torch.ones_like(rows.state[..., :1])
        return rows.log_decay.sum(1)[..., None].exp().expand(*rows.state.shape[:2], 1)
    K = rows.q.shape[-1]
    eye = torch.eye(K, dtype=rows.q.dtype, device=rows.q.device).expand(len(rows.q), K, K)
    alone = replace(rows, v=torch.zeros_like(rows.k), bonus=None, state=eye)
    return scan(alone, 1.0)[1]


def _through(by: Tensor, state: Tensor, *, back: bool) -> Tensor:
    matrix = by.transpose(-1, -2) if back else by
    return by * state if by.shape[-1] == 1 else matrix @ state


def onward(grid: Grid, through: Tensor, first: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """States that enter and that leave all pieces, [copies * N, K, V] each.

    Args:
        grid: of the rows.
        through: transitions.
        first: state that enters the first piece, [copies * sequences * heads, K, V].
        made: what each piece adds.
    """
    by, parts = grid.apart(through.to(made.dtype)), grid.apart(made)
    state = first.to(made.dtype).reshape(-1, grid.sequences, grid.heads, *first.shape[1:])
    entering, leaving = [], []
    for m in range(grid.pieces):
        entering.append(state)
        state = _through(by[:, :, m], state, back=False) + parts[:, :, m]
        leaving.append(state)
    return grid.flat(torch.stack(entering, 2)), grid.flat(torch.stack(leaving, 2))


def back(grid: Grid, through: Tensor, last: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Cotangents of the states that leave and that enter all pieces, [copies * N, K, V] each.

    Args:
        grid: of the rows.
        through: transitions.
        last: cotangent of the state that leaves the last piece, [copies * sequences * heads, K, V].
        made: what each piece's own outputs add to that of the state that enters it.
    """
    by, parts = grid.apart(through.to(made.dtype)), grid.apart(made)
    cotangent = last.to(made.dtype).reshape(-1, grid.sequences, grid.heads, *last.shape[1:])
    leaving, entering = [], []
    for m in reversed(range(grid.pieces)):
        leaving.append(cotangent)
        cotangent = _through(by[:, :, m], cotangent, back=True) + parts[:, :, m]
        entering.append(cotangent)
    return grid.flat(torch.stack(leaving[::-1], 2)), grid.flat(torch.stack(entering[::-1], 2))


def ends(grid: Grid, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the first piece, and what leaves the last, of states or cotangents: [copies * sequences * heads, K, V]."""
    parts = grid.apart(rows)
    first, last = parts[:, :, 0], parts[:, :, -1]
    return first.reshape(-1, *rows.shape[1:]), last.reshape(-1, *rows.shape[1:])
