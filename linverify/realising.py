"""Realisations of correct kernels on their way through a long sequence, one segment at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from linverify.carried import Carried
from linverify.dtype import FP32
from linverify.ensemble import Member, members, passed, run
from linverify.noise import Noise
from linverify.parts import narrow_gates
from linverify.pieces import PIECE, Pieces, back, ends, joined, onward
from linverify.recipe import Stack
from linverify.reference.question import Question, pose, sizes_of
from linverify.rule import Rule
from linverify.segments import Segment

_SEEDS_APART = 7919
ROOM = 3 * 2**30
"""Bytes for the tensors of one segment: of the 4 GiB beyond the target's own, what the states at the boundaries leave."""
# Measured (host memory, bf16, K = V = 64, gla, simple_gla, delta_rule, kda, rwkv7): tensors of one element that are alive at
# once for each pair of tokens of a sub-chunk and channel, pair of tokens of a chunk, token and channel, entry of a state;
# and copies of the errors of a result that its judgement takes.
_CHANNELLED, _PAIRED, _PLAIN, _STATES, _JUDGED = 4, 6, 18, 4, 2.75


def carries_finely(stack: Stack) -> bool:
    """Whether a state is carried in float32 or better, so that errors of its errors do not count.

    A state kept in 16 bits stands still once it is large: what that leaves out is no small error.
    """
    return all(r.format("carry").unit_roundoff <= FP32.unit_roundoff for r in stack)


def room(stacks: Sequence[Stack], rule: Rule, question: Question, widths: Sequence[int], tokens: int) -> int:
    """Tokens that a segment may have: as many whole pieces as ROOM allows, no more than there are.

    Args:
        stacks: whose errors are there at once, while one after the other is run.
        rule: how many realisations each has.
        question: of any piece of the problem.
        widths: numbers a token and head of the results whose errors are kept.
        tokens: of the sequence.
    """
    rows, steps = question.rows, question.rows.q.shape[1] // sizes_of(question.problem, question.operator)["T"]
    K, V = rows.q.shape[-1], rows.v.shape[-1]
    scores = 4 if rows.a is not None else 2 if rows.beta is not None else 1  # of readers and writers with each other
    running, kept = 0.0, 0.0
    for stack in stacks:
        recipe, copies = stack[0], (rule.train + rule.held) * len(stack)
        chunk = recipe.chunk or 1
        pairs = scores * (_CHANNELLED * recipe.sub * K if rows.gate == "channel" else _PAIRED * chunk)
        width = 4 if recipe.format("scores").unit_roundoff > FP32.unit_roundoff else 8
        running = max(running, copies * width * (pairs + _PLAIN * (K + V) + _STATES * K * V / chunk))
        kept += 8 * (copies + len(stack)) * sum(widths)
    heads = len(rows.q) // question.folding.sequences * steps
    pieces = int(ROOM / (heads * (running + _JUDGED * kept))) // PIECE
    return PIECE * max(1, min(pieces, tokens // PIECE))


@dataclass(slots=True, eq=False)
class _Kind:
    """Realisations with random errors, or with real rounding.

    Attributes:
        dither: which.
        copies: of the rows.
        noises: by number of rows.
        states: error of the state that enters each segment [copies * sequences * heads, K, V]; None for none.
        cotangent: error of the cotangent of the state that leaves the segment in hand, the same shape.
        carried: what else goes from segment to segment on the way back.
    """

    dither: bool
    copies: int
    noises: dict[int, Noise] = field(default_factory=dict)
    states: list[Tensor | None] = field(default_factory=lambda: [None])
    cotangent: Tensor | None = None
    carried: Carried | None = None


class Realising:
    """One stack of recipes, with random errors and with real rounding.

    What goes from segment to segment is the error of the state, and backward that of its cotangent. A segment of several
    pieces is run from the exact state of each, and the errors made in one are taken through those after it by the exact
    transitions; how an error itself is rounded is left out. A segment of one piece is run from the state with its errors.
    """

    def __init__(self, stack: Stack, rule: Rule, seed: int, device: torch.device) -> None:
        self._stack, self._rule, self._seed, self._device = stack, rule, seed, device
        self._generator = torch.Generator(device=device)
        several = len(stack)
        self._kinds = (_Kind(True, (rule.train + rule.held) * several), _Kind(False, several))

    def _noise(self, kind: _Kind, rows: int) -> Noise:
        if rows not in kind.noises:
            self._generator.manual_seed(self._seed)  # the key of its decays: the same in every segment
            kind.noises[rows] = Noise(
                self._stack,
                kind.copies // len(self._stack),
                rows,
                dither=kind.dither,
                generator=self._generator if kind.dither else None,
                device=self._device,
                careful=kind.dither and self._rule.careful,
            )
        return kind.noises[rows]

    def _begin(self, number: int) -> None:
        """Draw the same errors again, whenever a segment is run."""
        self._generator.manual_seed(self._seed + _SEEDS_APART * (number + 1))

    def forward(self, segment: Segment) -> None:
        """Take every realisation's state through a segment."""
        question, pieces = pose(segment.pieces.problem, segment.operator, self._device), segment.pieces
        for kind in self._kinds:
            kind.states.append(ends(pieces.grid, self._passed(kind, segment, question)[1])[1])

    def _passed(self, kind: _Kind, segment: Segment, question: Question) -> tuple[Tensor, Tensor]:
        """Errors of the states that enter the pieces and of those that leave them, [copies * N, K, V]."""
        pieces, noise = segment.pieces, self._noise(kind, len(question.rows.q))
        exact, alone = question.rows.state.detach().repeat(kind.copies, 1, 1), pieces.grid.pieces == 1
        start = exact + _first(kind, pieces) if alone else exact
        self._begin(segment.number)
        made = passed(question, noise, kind.copies, start.to(noise.carrier)).double() - _copied(pieces.leaving, kind)
        return (
            (_first(kind, pieces), made) if alone else onward(pieces.grid, pieces.through, _first(kind, pieces), made)
        )

    def backward(self, segment: Segment, gates: tuple[str, ...], names: set[str]) -> list[Member]:
        """Run a segment with gradients, and return the errors of these of its results."""
        question = pose(segment.pieces.problem, segment.operator, self._device)
        narrow = () if self._rule.careful else narrow_gates(question)
        forms = []
        for kind in self._kinds:
            kind.states.pop()
            found = self._results(kind, segment, question, gates, narrow)
            wanted = [{n: x for n, x in form.items() if n in names} for form in found]
            forms.append([joined(segment.operator, form, segment.pieces.grid) for form in wanted])
        if not any(forms[0]):  # gradients that all tokens share are judged once all segments have been run
            return []
        return members(self._stack, forms[0], forms[1], segment.reference, self._rule)

    def _results(
        self, kind: _Kind, segment: Segment, question: Question, gates: tuple[str, ...], narrow: tuple[str, ...]
    ) -> list[dict[str, Tensor]]:
        pieces, noise = segment.pieces, self._noise(kind, len(question.rows.q))
        entering = _first(kind, pieces) if pieces.grid.pieces == 1 else self._passed(kind, segment, question)[0]
        carried = kind.carried = kind.carried or Carried(pieces.grid)
        carried.grid = pieces.grid
        carried.state = question.rows.state.detach().repeat(kind.copies, 1, 1) + entering
        if question.dstate is not None:
            carried.cotangent = _copied(question.dstate, kind) + self._later(kind, segment, question, noise)
        self._begin(segment.number)
        found = run(question, noise, kind.copies, gates, carried, narrow)
        if pieces.cotangents is not None and carried.cotangent is not None:
            kind.cotangent = ends(pieces.grid, carried.cotangent.double() - _copied(pieces.cotangents, kind))[0]
        return found

    def _later(self, kind: _Kind, segment: Segment, question: Question, noise: Noise) -> Tensor:
        """Errors of the cotangents of the states that leave the pieces, [copies * N, K, V]: made in those after each."""
        pieces, N = segment.pieces, len(question.rows.q)
        last = kind.cotangent
        if last is None:
            last = torch.zeros_like(_copied(pieces.leaving[: N // pieces.grid.pieces], kind))
        if pieces.grid.pieces == 1:
            return last
        assert kind.carried is not None
        assert pieces.cotangents is not None
        assert question.dstate is not None
        probe = Carried(pieces.grid, kind.carried.state, _copied(question.dstate, kind))
        self._begin(segment.number)
        run(question, noise, kind.copies, (), probe, wrt=())
        assert probe.cotangent is not None
        made = probe.cotangent.double() - _copied(pieces.cotangents, kind)
        return back(pieces.grid, pieces.through, last, made)[0]

    def shared(self, reference: Mapping[str, Tensor]) -> list[Member]:
        """Errors of the gradients that all tokens share, once all segments have been run."""
        forms = []
        for kind in self._kinds:
            noise = next(iter(kind.noises.values()))
            sums = [] if kind.carried is None else kind.carried.shared
            forms.append([{n: noise.walk(s.total, s.energy, s.terms) for n, s in x.items()} for x in sums if x])
        return members(self._stack, forms[0], forms[1], reference, self._rule)


def _copied(rows: Tensor, kind: _Kind) -> Tensor:
    return rows.detach().repeat(kind.copies, 1, 1)


def _first(kind: _Kind, pieces: Pieces) -> Tensor:
    """Error of the state that enters the segment in hand, [copies * sequences * heads, K, V]."""
    known = kind.states[-1]
    rows = pieces.grid.sequences * pieces.grid.heads
    return torch.zeros_like(_copied(pieces.leaving[:rows], kind)) if known is None else known
