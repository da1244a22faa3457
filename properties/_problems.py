"""Problems derived from a problem: cut in time, rows or heads taken out, one packed sequence alone, other values.

Inputs are treated by their axes, never by their names, so that every operator is served. Letters: B batch, T time, H
heads, G groups of heads that share an input, K, V features, N states (rows of a dense batch, or packed sequences).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch

from linverify.operator import Operator
from linverify.problem import Problem, Result

Axes = tuple[str, ...]
Change = Callable[[torch.Tensor, Axes], torch.Tensor]


def axes_of(operator: Operator, name: str) -> Axes:
    """Axes of a result (o, state, d<input>), of an input or of the initial state."""
    if name == "o":
        return operator.o_axes
    if name in ("state", "initial_state", "dinitial_state"):
        return operator.state_axes
    known = {i.name: i.axes for i in operator.inputs}
    return known[name] if name in known else known[name.removeprefix("d")]


def length_of(problem: Problem, operator: Operator, axis: str) -> int:
    """Length of an axis, read from the tensors; G is H where nothing is shared, and H is 1 where there are no heads."""
    if axis in operator.unseen:
        return operator.unseen[axis]
    if axis == "N":
        return len(problem.lengths) or length_of(problem, operator, "B")
    for name, tensor in problem.tensors.items():
        if axis in axes_of(operator, name):
            return int(tensor.shape[axes_of(operator, name).index(axis)])
    return 1 if axis == "H" else length_of(problem, operator, "H")


def asked(problem: Problem) -> tuple[str, ...]:
    """Names of the results that the problem asks for."""
    return ("o", *(("state",) if problem.final_state else ()), *(f"d{name}" for name in problem.wrt))


def changed(problem: Problem, operator: Operator, change: Change) -> Problem:
    """Apply `change(tensor, axes)` to every input, the initial state and the cotangents."""
    state = problem.initial_state
    return problem.with_(
        tensors={name: change(x, axes_of(operator, name)) for name, x in problem.tensors.items()},
        initial_state=None if state is None else change(state, operator.state_axes),
        cotangents={name: change(x, axes_of(operator, name)) for name, x in problem.cotangents.items()},
    )


def forward_only(problem: Problem) -> Problem:
    """The same question without gradients."""
    return problem.with_(cotangents={}, wrt=())


def select(tensor: torch.Tensor, axes: Axes, index: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """Take the listed indices on each listed axis that the tensor has."""
    for axis, places in index.items():
        if axis in axes:
            tensor = tensor.index_select(
                axes.index(axis), torch.tensor(list(places), dtype=torch.long, device=tensor.device)
            )
    return tensor


def rows(places: Sequence[int]) -> dict[str, Sequence[int]]:
    """Index of whole rows of a dense batch: their states go with them."""
    return {"B": places, "N": places}


def head_groups(problem: Problem, operator: Operator) -> list[list[int]]:
    """Heads that share an input, group by group; one head each where nothing is shared."""
    heads, groups = length_of(problem, operator, "H"), length_of(problem, operator, "G")
    return [list(range(g * heads // groups, (g + 1) * heads // groups)) for g in range(groups)]


def heads(problem: Problem, operator: Operator, groups: Sequence[int]) -> dict[str, Sequence[int]]:
    """Index of whole groups of heads, in the given order."""
    members = head_groups(problem, operator)
    return {"G": groups, "H": [h for g in groups for h in members[g]]}


def taken(problem: Problem, operator: Operator, index: Mapping[str, Sequence[int]]) -> Problem:
    """The problem of some rows or heads alone."""
    return changed(problem, operator, lambda x, axes: select(x, axes, index))


def span(problem: Problem, operator: Operator, start: int, stop: int) -> Problem:
    """Tokens start to stop of a dense problem; the initial state and its final state's cotangent stay as they are."""

    def cut(x: torch.Tensor, axes: Axes) -> torch.Tensor:
        return x.narrow(axes.index("T"), start, stop - start).contiguous() if "T" in axes else x

    return changed(problem, operator, cut)


def bounds(problem: Problem) -> list[tuple[int, int]]:
    """First and one-past-last token of each packed sequence."""
    ends = torch.tensor([0, *problem.lengths]).cumsum(0).tolist()
    return list(pairwise(ends))


def packed_index(problem: Problem, places: Sequence[int]) -> dict[str, Sequence[int]]:
    """Index of whole packed sequences: their tokens and their states."""
    limits = bounds(problem)
    return {"T": [t for n in places for t in range(*limits[n])], "N": places}


def sequences(problem: Problem, operator: Operator, places: Sequence[int]) -> Problem:
    """The packed problem of some of its sequences."""
    kept = taken(problem, operator, packed_index(problem, places))
    return kept.with_(lengths=tuple(problem.lengths[n] for n in places))


def sequence(problem: Problem, operator: Operator, place: int) -> Problem:
    """One packed sequence as a dense problem of batch size 1."""
    return sequences(problem, operator, [place]).with_(lengths=())


def of_result(result: Result, operator: Operator, index: Mapping[str, Sequence[int]]) -> Result:
    """The part of a result that belongs to some rows, heads or tokens."""

    def part(name: str, x: torch.Tensor) -> torch.Tensor:
        return select(x, axes_of(operator, name), index)

    return Result(
        o=None if result.o is None else part("o", result.o),
        state=None if result.state is None else part("state", result.state),
        grads={name: part(name, x) for name, x in result.grads.items()},
    )


def mirrored(problem: Problem, operator: Operator) -> Problem:
    """Another valid problem of the same shapes: every axis reversed, so that each value meets other partners.

    Packed sequences come in the opposite order, too: their borders lie elsewhere. A permutation of tokens, heads and
    features that is the same for all inputs keeps gates negative, keys at their norm and step operators contracting.
    """
    turned = changed(problem, operator, lambda x, _: x.flip(tuple(range(x.ndim))).contiguous())
    return turned.with_(lengths=problem.lengths[::-1])


def negated(problem: Problem, operator: Operator) -> Problem:
    """Another valid problem of the same shapes: values and initial state with the opposite sign."""
    values = {i.name: -problem.tensors[i.name] for i in operator.of_kind("value")}
    state = None if problem.initial_state is None else -problem.initial_state
    if state is not None and operator.state_domain is not None:
        state = operator.state_domain(state)
    return problem.with_tensors(**values).with_(initial_state=state)


def linear_part(problem: Problem, operator: Operator) -> Problem:
    """The problem, without its states where these are more than sums of values: what is linear in values and state."""
    if operator.linear_state:
        return problem
    return problem.with_(
        initial_state=None,
        final_state=False,
        cotangents={n: c for n, c in problem.cotangents.items() if n == "o"},
        wrt=tuple(n for n in problem.wrt if n != "initial_state" and "o" in problem.cotangents),
    )


def with_tail(
    problem: Problem, operator: Operator, start: int, change: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
) -> Problem:
    """The problem with the named inputs changed from token `start` on."""
    tensors: dict[str, torch.Tensor] = {}
    for name, new in change.items():
        time = axes_of(operator, name).index("T")
        old = problem.tensors[name]
        head, tail = old.narrow(time, 0, start), old.narrow(time, start, old.shape[time] - start)
        tensors[name] = torch.cat((head, new(tail).to(old.dtype)), time)
    return problem.with_tensors(**tensors)


def in_other_dtype(problem: Problem) -> Problem:
    """The same question in float32 where it is in 16 bits, in bfloat16 where it is in float32."""
    narrow = next((t.dtype for t in problem.tensors.values() if t.dtype != torch.float32), torch.float32)
    other = torch.float32 if narrow != torch.float32 else torch.bfloat16

    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(other) if x.dtype == narrow else x

    return problem.with_(
        tensors={n: cast(t) for n, t in problem.tensors.items()},
        cotangents={n: cast(t) if n == "o" else t for n, t in problem.cotangents.items()},
    )
