"""Leads: a wrong result that is the right answer to another question tells what the kernel does.

A kernel that never reads its initial state, leaves the scale out of its backward, or takes head 0's gates for every head
returns results without any visible pattern. Yet they equal, up to rounding, what the equations give with no initial state, with
scale 1, with those gates. So the reference is asked a few such other questions, made from the axes of the operator's inputs
alone, and the one whose answer comes nearest to the target's is named. Nothing here decides a verdict.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linverify.dtype import BF16, FP16, TF32, Format, round_to
from linverify.operator import Operator
from linverify.probing import BLOCKS
from linverify.problem import Problem

# Another question explains a result when it leaves no more than this share of the error's energy.
EXPLAINED = 0.001
# What a matrix unit, or a cast to save memory, makes of float32.
_NARROW: tuple[tuple[str, Format], ...] = (("TF32", TF32), ("bfloat16", BF16), ("float16", FP16))

Answers = Callable[[Problem], Mapping[str, Tensor]]


class Other(NamedTuple):
    """Another question: what it changes, in words that follow "what the equations give"; only these results, or all."""

    what: str
    problem: Problem
    results: tuple[str, ...] = ()


def lead(
    problem: Problem, operator: Operator, got: Mapping[str, Tensor], wrong: Sequence[str], answers: Answers
) -> str:
    """Say in one sentence which other question the wrong results answer; "" where none of those tried.

    Args:
        problem: that was asked.
        operator: its statement.
        got: the target's results by name.
        wrong: names of those beyond the budget.
        answers: the reference of a problem, float64 by result name.
    """
    reference = answers(problem)
    kept = [n for n in wrong if n in got and n in reference and bool(torch.isfinite(got[n]).all())]
    if not kept:
        return ""
    values = {n: got[n].to(reference[n].device, torch.float64) for n in kept}
    errors = {n: float((values[n] - reference[n]).square().sum()) for n in kept}
    best: tuple[int, float, str, tuple[str, ...]] | None = None
    for other in _others(problem, operator):
        given = answers(other.problem)
        left = {
            n: float((values[n] - given[n]).square().sum()) / errors[n]
            for n in kept
            if n in given and given[n].shape == values[n].shape and n in (other.results or kept) and errors[n]
        }
        explained = tuple(n for n, share in left.items() if share <= EXPLAINED)
        rank = (-len(explained), max((left[n] for n in explained), default=1.0))
        if explained and (best is None or rank < best[:2]):
            best = (*rank, other.what, explained)
    if best is None:
        return _moved(values, reference, operator)
    names = listed(best[3])
    return f"{names} {'are' if len(best[3]) > 1 else 'is'} what the equations give {best[2]}"


def _moved(values: Mapping[str, Tensor], reference: Mapping[str, Tensor], operator: Operator) -> str:
    """Whether wrong results are the right ones, some tokens early or late; what has moved in leaves the rest to compare."""
    for name, value in values.items():
        axes = operator.o_axes if name == "o" else next((i.axes for i in operator.inputs if f"d{i.name}" == name), ())
        if "T" not in axes:
            continue
        axis = axes.index("T")
        length = value.shape[axis]
        for step in (s for n in range(1, length // 2 + 1) for s in (n, -n)):
            size = length - abs(step)
            got = value.narrow(axis, max(-step, 0), size)
            right = reference[name].narrow(axis, max(step, 0), size)
            here = reference[name].narrow(axis, max(-step, 0), size)
            error = float((got - here).square().sum())
            if size > 1 and error and float((got - right).square().sum()) <= EXPLAINED * error:
                what = f"{abs(step)} token{'s' * (abs(step) > 1)} {'early' if step > 0 else 'late'}"
                return f"{listed([name])} is the right one, {what}"
    return ""


def _others(problem: Problem, operator: Operator) -> Iterator[Other]:
    """Questions one step away from the one asked; those that change nothing are left out."""
    yield from _flags(problem, operator)
    yield from _earlier_states(problem, operator)
    yield from _narrowed(problem)
    yield from _narrow_sums(problem, operator)
    for name, tensor in problem.tensors.items():
        argument = operator.input(name)
        for what, changed in _changed(name, tensor, argument.axes):
            if not torch.equal(changed, tensor):
                yield Other(what, problem.with_tensors(**{name: changed}))
        if argument.kind in ("log_gate", "step_size"):
            yield Other(f"without {name} (a gate of 0)", problem.with_tensors(**{name: torch.zeros_like(tensor)}))
        if argument.kind == "strength":
            yield Other(f"with {name} = 1", problem.with_tensors(**{name: torch.ones_like(tensor)}))
    state = problem.initial_state
    if state is not None:
        for what, changed in _shared("initial_state", state, operator.state_axes):
            if not torch.equal(changed, state):
                yield Other(what, problem.with_(initial_state=changed))


def _flags(problem: Problem, operator: Operator) -> Iterator[Other]:
    state, given = problem.initial_state, problem.cotangents
    if state is not None and bool(state.any()):
        yield Other("with an initial state of zero", problem.with_(initial_state=torch.zeros_like(state)))
    for name, tensor in given.items():
        if len(given) > 1 and bool(tensor.any()):
            said = "o" if name == "o" else "the final state"
            without = {**given, name: torch.zeros_like(tensor)}
            yield Other(f"without the upstream gradient of {said}", problem.with_(cotangents=without))
    sizes = operator.sizes_of({n: tuple(t.shape) for n, t in problem.tensors.items()})
    usual = operator.scale_for(operator.all_sizes({**sizes, "V": _width(problem, operator)}))
    asked = usual if problem.scale is None else problem.scale
    for value, said in ((1.0, ""), (usual, ", the default,")):
        if value != asked:
            yield Other(f"with scale {value:.4g}{said} in place of {asked:.4g}", problem.with_(scale=value))
    if asked not in (0.0, 1.0):
        yield Other(f"with scale {asked:.4g} applied twice", problem.with_(scale=asked * asked))
    if problem.lengths and problem.initial_state is None:
        whole = problem.with_(lengths=(), final_state=False, cotangents={}, wrt=())
        yield Other("for one sequence: the boundaries of the packed ones are not seen", whole, ("o",))


def _width(problem: Problem, operator: Operator) -> int:
    return int(problem.tensors[operator.value_name].shape[-1])


def _earlier_states(problem: Problem, operator: Operator) -> Iterator[Other]:
    """The state before the last token, and after the last whole chunk."""
    timed = {i.name: i.axes.index("T") for i in operator.inputs if "T" in i.axes}
    if not problem.final_state or problem.lengths or not timed:
        return
    length = next(int(problem.tensors[n].shape[axis]) for n, axis in timed.items())
    for stop in dict.fromkeys((length - 1, *((length - 1) // c * c for c in BLOCKS))):
        if stop < 1:
            continue
        tensors = {n: t.narrow(timed[n], 0, stop) if n in timed else t for n, t in problem.tensors.items()}
        cut = problem.with_(tensors=tensors, cotangents={}, wrt=())
        yield Other(f"after {stop} of {length} tokens", cut, ("state",))


def _narrowed(problem: Problem) -> Iterator[Other]:
    """Float32 inputs with fewer bits, all at once and one at a time: a running sum as a TF32 product, a cast."""
    wide = {n: t for n, t in problem.tensors.items() if t.dtype == torch.float32}
    for said, fmt in _NARROW:
        narrow = {n: y for n, t in wide.items() if not torch.equal(y := round_to(t, fmt), t)}
        if len(narrow) > 1:
            yield Other(f"with all inputs rounded to {said}", problem.with_tensors(**narrow))
        for name, tensor in narrow.items():
            yield Other(f"with {name} rounded to {said}", problem.with_tensors(**{name: tensor}))


def _narrow_sums(problem: Problem, operator: Operator) -> Iterator[Other]:
    """Gates whose running sums, of the whole sequence or of a chunk, are rounded."""
    for argument in operator.of_kind("log_gate"):
        gates = problem.tensors.get(argument.name)
        if gates is None or "T" not in argument.axes or problem.lengths:
            continue
        axis = argument.axes.index("T")
        length = gates.shape[axis]
        for chunk in (*(c for c in BLOCKS if c < length), length):
            # parts of [.., chunk, ..]; a sum starts anew in each
            sums = torch.cat([part.double().cumsum(axis) for part in gates.split(chunk, axis)], axis)
            for said, fmt in _NARROW:
                rounded = round_to(sums.float(), fmt).double()
                steps = [
                    part.diff(dim=axis, prepend=torch.zeros_like(part.narrow(axis, 0, 1)))
                    for part in rounded.split(chunk, axis)
                ]
                made = torch.cat(steps, axis).to(torch.float32)
                if torch.isfinite(made).all():
                    where = "" if chunk == length else f" over chunks of {chunk}"
                    what = f"with running sums of {argument.name}{where} rounded to {said}"
                    yield Other(what, problem.with_tensors(**{argument.name: made}))


def _changed(name: str, tensor: Tensor, axes: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    yield from _shared(name, tensor, axes)
    if "T" in axes:
        axis = axes.index("T")
        length = tensor.shape[axis]
        if length > 1:
            for step, said in ((1, "previous"), (-1, "next")):
                moved = tensor.roll(step, axis).clone()
                moved.narrow(axis, 0 if step > 0 else length - 1, 1).zero_()
                yield f"with {name} of the {said} token at each token", moved
            yield f"with {name} in reversed order of time", tensor.flip(axis)


def _shared(name: str, tensor: Tensor, axes: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The first index of an axis in the place of all: what a forgotten stride reads."""
    for letter, said in (("B", "batch row"), ("N", "batch row"), ("H", "head"), ("G", "group of heads")):
        if letter in axes and tensor.shape[axes.index(letter)] > 1:
            first = tensor.narrow(axes.index(letter), 0, 1).expand_as(tensor).contiguous()
            yield f"with {name} of {said} 0 for every {said}", first


def listed(names: Sequence[str]) -> str:
    """Return names of results as a sentence has them."""
    said = ["the final state" if n == "state" else n for n in names]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
