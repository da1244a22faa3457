"""A long sequence in segments: the float64 reference of a million tokens, a few thousand at a time.

Forward, every segment hands its final state to the next one; the states at the boundaries are kept, and nothing else. Backward,
from the last segment to the first, each one is computed again from the state that enters it, and hands the cotangent of that
state to the segment before: Chen et al. 2016, arXiv:1604.06174, section 3, at the boundaries of segments. Memory is that of one
segment, the states at the boundaries, and the target's own tensors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from linverify.case import Case
from linverify.draw import problem as drawn
from linverify.emulated import emulates
from linverify.operator import Canonical, Operator
from linverify.pieces import Pieces, count, onto, results
from linverify.problem import Problem
from linverify.reference.question import sizes_of, state_shape

SEGMENT = 2048
"""Tokens of a segment: whole chunks of every usual size."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A piece of a long problem.

    Attributes:
        number: counted from the beginning of the sequence.
        start, stop: tokens.
        problem: of these tokens, with the exact state that enters and the exact cotangent of the state that leaves.
        reference: its float64 results by name, on the way back; "dinitial_state" is the cotangent for the segment before.
        pieces: its parts, side by side.
        operator: its statement.
    """

    number: int
    start: int
    stop: int
    problem: Problem
    reference: dict[str, Tensor]
    pieces: Pieces
    operator: Operator


def spans(T: int, segment: int = SEGMENT) -> tuple[tuple[int, int], ...]:
    """First token, and one past the last, of every segment."""
    return tuple((start, min(start + segment, T)) for start in range(0, T, segment))


def timed(operator: Operator, result: str) -> bool:
    """Whether a result (o, state, d<input>) has an axis of tokens."""
    if result == "o":
        return "T" in operator.o_axes
    return result not in ("state", "dinitial_state") and "T" in operator.input(result[1:]).axes


def part(operator: Operator, result: str, value: Tensor, start: int, stop: int) -> Tensor:
    """The tokens of a result that lie in a segment; all of one that has no axis of tokens."""
    if not timed(operator, result):
        return value
    axes = operator.o_axes if result == "o" else operator.input(result[1:]).axes
    return value.narrow(axes.index("T"), start, stop - start)


def cut(
    problem: Problem,
    operator: Operator,
    start: int,
    stop: int,
    state: Tensor | None,
    cotangent: Tensor | None = None,
    *,
    backward: bool,
) -> Problem:
    """The problem of a segment.

    Args:
        problem: of the whole sequence, dense.
        operator: its statement.
        start: first token.
        stop: one past the last.
        state: that enters, as the operator lays it out; None for zero.
        cotangent: of the state that leaves.
        backward: whether gradients are asked for, that of the entering state among them.
    """
    upstream = {}
    if backward and "o" in problem.cotangents:
        upstream["o"] = part(operator, "o", problem.cotangents["o"], start, stop)
    if backward and cotangent is not None:
        upstream["state"] = cotangent
    entering = _zero(problem, operator) if state is None else state
    names = (*(n for n in problem.wrt if n != "initial_state"), "initial_state") if backward else ()
    return replace(
        problem,
        tensors={n: part(operator, f"d{n}", t, start, stop) for n, t in problem.tensors.items()},
        initial_state=entering,
        final_state=True,
        cotangents=upstream,
        wrt=names,
    )


def _zero(problem: Problem, operator: Operator) -> Tensor:
    return torch.zeros(state_shape(operator, problem), dtype=torch.float64)


def forward(
    problem: Problem, operator: Operator, device: torch.device, segment: int = SEGMENT, piece: int = SEGMENT
) -> Iterator[Segment]:
    """Yield the segments from the first to the last, with the states that enter them and no results.

    Args:
        problem: of the whole sequence.
        operator: its statement.
        device: of the computation.
        segment: tokens of a segment.
        piece: tokens of its pieces.
    """
    state = problem.initial_state
    for number, (start, stop) in enumerate(spans(sizes_of(problem, operator)["T"], segment)):
        own = cut(problem, operator, start, stop, state, backward=False)
        pieces = onto(count(own, operator, piece), own, operator, state, device)
        yield Segment(number, start, stop, own, {}, pieces, operator)
        state = pieces.last.reshape(state_shape(operator, own))


def backward(
    problem: Problem, operator: Operator, passed: Sequence[Segment], device: torch.device
) -> Iterator[Segment]:
    """Yield the segments from the last to the first, with all results that the problem asks for.

    Args:
        problem: of the whole sequence.
        operator: its statement.
        passed: the segments as `forward` yielded them.
        device: of the computation.
    """
    cotangent = problem.cotangents.get("state")
    asks = bool(problem.cotangents)
    for s in reversed(passed):
        own = cut(problem, operator, s.start, s.stop, s.problem.initial_state, cotangent, backward=asks)
        pieces, found = results(s.pieces, operator, device, own, cotangent)
        cotangent = found.get("dinitial_state")
        yield Segment(s.number, s.start, s.stop, own, found, pieces, operator)


_TRIED = Case("", 1, 32, 2, 4, 6, dtype="fp32")


def segmentable(operator: Operator) -> str:
    """Return why the sequences of an operator cannot be cut into segments; "" where they can.

    Its recurrence must make the terms of each token from the inputs of that token alone: looked for, not declared.
    """
    if operator.canonical is None or emulates(operator):
        return f"{operator.name} is not a recurrence whose reads are its output"
    if not operator.state_axes or "T" not in operator.o_axes:
        return f"{operator.name} has no state that one segment could hand to the next"
    case = _TRIED.with_(operator=operator.name)
    problem = drawn(case, operator)
    whole = _terms(operator.canonical(problem.tensors, sizes_of(problem, operator)))
    half = case.T // 2
    for start in (0, half):
        piece = cut(problem, operator, start, start + half, None, backward=False)
        terms = _terms(operator.canonical(piece.tensors, sizes_of(piece, operator)))
        for name, term in terms.items():
            expected = whole[name]
            steps = expected.shape[1] // 2
            if expected.dim() == 4 and expected.shape[1] > 1:
                expected = expected.narrow(1, steps * (start > 0), steps)
            if term.shape != expected.shape or not torch.equal(term, expected):
                return f"{operator.name} makes the terms of a token from where it stands in the sequence, too"
    return ""


def _terms(c: Canonical) -> dict[str, Tensor]:
    names = ("q", "k", "v", "log_decay", "beta", "a", "b", "bonus")
    return {n: t for n in names if (t := getattr(c, n)) is not None}
