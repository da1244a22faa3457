"""Results side by side: the relations that several properties ask for."""

from collections.abc import Callable, Sequence

import torch

from linverify.problem import Call, Problem, Program, Result
from linverify.properties._problems import asked, axes_of, length_of
from linverify.property import Tensors, Trial

Part = tuple[Problem, Result]
Views = Callable[[Sequence[Tensors]], tuple[torch.Tensor, torch.Tensor]]


def letters(trial: Trial, name: str) -> str:
    """Axes of a result as the letters that `relate` and `identical` take; a group counts as its heads."""
    return "".join(axes_of(trial.operator, name)).lower().replace("g", "h")


def complete(trial: Trial, part: Part) -> Part:
    """Return the part; raise unless it has everything that was asked, in the right shapes."""
    problem, result = part
    if problem.cotangents and not result.offers_gradients:
        trial.agree(result, problem)  # which says so
    found = result.named()
    for name in asked(problem):
        kind = "missing_gradient" if name.startswith("d") else "wrong_length"
        trial.require(name in found, kind, f"expected {name}, got none", name)
        axes = axes_of(trial.operator, name)
        shape = tuple(length_of(problem, trial.operator, axis) for axis in axes)
        got = tuple(found[name].shape)
        trial.require(got == shape, "wrong_shape", f"expected {name} of shape {shape}, got {got}", name)
    return part


def solved(trial: Trial, problem: Problem | None = None) -> Part:
    """Ask one problem (the case's own by default) and return it with its complete result."""
    if problem is None:
        return complete(trial, (trial.problem, trial.solve()))
    return complete(trial, (problem, trial.solve(problem)))


def choose(trial: Trial, label: str, low: int, high: int) -> int:
    """An integer in [low, high), decided by the case and the label."""
    return int(torch.randint(low, high, (), generator=trial.generator(label)).item())


def equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equality of every element; NaN equals NaN and the sign of zero does not count."""
    return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())


def equal_within_budget(trial: Trial, what: str, parts: Sequence[Part], views: Views, axes: str) -> None:
    """Raise unless two views of the results are equal within the propagated budget."""

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        first, second = views(found)
        return first - second

    trial.relate(what, parts, residual, axes)


def equal_bits(trial: Trial, what: str, parts: Sequence[Part], views: Views, axes: str) -> None:
    """Raise unless two views of the results are equal bit by bit.

    A kernel whose results differ from run to run anyway (atomic additions) is held to the budget instead: bits that it never
    repeats say nothing about this law.
    """
    first, second = views([result.named() for _, result in parts])
    if equal(first, second):
        return
    program = Program(tuple(Call(problem) for problem, _ in parts))
    for _ in range(3):
        again = views([result.named() for result in trial.run(program)])
        if not (equal(first, again[0]) and equal(second, again[1])):
            equal_within_budget(trial, what, parts, views, axes)
            return
    # Adding zero removes the sign of a zero, which masked terms may leave behind.
    trial.identical(what, first + 0, second + 0, axes)
