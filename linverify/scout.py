"""A scout goes through a property's questions without asking them, so that a compiler can be told beforehand what will come.

Every ask is answered with zeros of the right shapes and every judgement is skipped; properties choose what to ask next by the
case, hardly ever by the results, so the calls collected are the calls that will be made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linverify import draw
from linverify.case import Case
from linverify.draw import call_layouts, labelled_generator
from linverify.dtype import FP32
from linverify.operator import Operator
from linverify.problem import Call, Problem, Program, Result
from linverify.property import Property


def blank(problem: Problem, operator: Operator) -> Result:
    """A result of zeros with the shapes and dtypes that the problem asks for."""
    value = problem.tensors[operator.value_name]
    sizes = operator.sizes_of({n: t.shape for n, t in problem.tensors.items()})
    sizes["N"] = len(problem.lengths) or sizes["B"]
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    state = torch.zeros([sizes[a] for a in operator.state_axes], dtype=wide) if problem.final_state else None
    o = torch.zeros([sizes[a] for a in operator.o_axes], dtype=value.dtype)
    given = {**problem.tensors, **({} if problem.initial_state is None else {"initial_state": problem.initial_state})}
    grads = {n: torch.zeros_like(given[n]) for n in problem.wrt} if problem.cotangents else {}
    return Result(o, state, grads)


@dataclass(eq=False)
class ScoutTrial:
    """A trial that only takes down what it is asked."""

    case: Case
    operator: Operator
    problem: Problem
    calls: list[Call] = field(default_factory=list)

    @property
    def unit_roundoff(self) -> float:
        """No matter which."""
        return FP32.unit_roundoff

    def solve(
        self,
        problem: Problem | None = None,
        *,
        layout: str | None = None,
        cotangent_layout: str | None = None,
        poison: str = "nan",
    ) -> Result:
        """Take the call down."""
        inputs, cotangents = call_layouts(self.case)
        self.calls.append(Call(problem or self.problem, layout or inputs, cotangent_layout or cotangents, poison))
        return blank(problem or self.problem, self.operator)

    def other_form(self, problem: Problem) -> Result:
        """Another form is none of the target's business."""
        return blank(problem, self.operator)

    def unwatched(self) -> Result:
        """A process of its own compiles for itself."""
        return blank(self.problem, self.operator)

    def recompiled(self, problems: Sequence[Problem]) -> Sequence[Result]:
        """Processes of their own compile for themselves."""
        return [blank(problem, self.operator) for problem in problems]

    def fresh(self) -> bool:
        """One sequence, as a device gets it."""
        return False

    def sweep(self) -> None:
        """Other configurations compile in processes of their own."""

    def sanitized(self, tool: str) -> tuple[str, ...]:  # noqa: ARG002  # of the interface
        """A process of its own compiles for itself."""
        return ()

    def run(self, program: Program) -> tuple[Result, ...]:
        """Take the calls down."""
        self.calls += program.calls
        results = [blank(call.problem, self.operator) for call in program.calls]
        return (*results, *results[:1]) if program.reread else tuple(results)

    def reference(self, problem: Problem) -> Mapping[str, Tensor]:
        """Zeros."""
        return {n: t.double() for n, t in blank(problem, self.operator).named().items()}

    def agree(
        self, result: Result, problem: Problem | None = None, *, results: Sequence[str] | None = None, means: str = ""
    ) -> None:
        """Judge nothing."""

    def agree_in_segments(self) -> None:
        """A long sequence is compiled for when it is asked."""

    def relate(self, what: str, parts: Sequence[tuple[Problem, Result]], residual: Any, axes: str) -> None:
        """Judge nothing."""

    def identical(self, what: str, first: Tensor, second: Tensor, axes: str) -> None:
        """Judge nothing."""

    def require(self, holds: bool, kind: str, message: str, result: str = "") -> None:
        """Judge nothing."""

    def generator(self, label: str) -> torch.Generator:
        """The trial's own, so that the same questions follow."""
        return labelled_generator(self.case, label)


def calls_of(law: Property, case: Case, operator: Operator) -> list[Call]:
    """The calls that a property will make on a case."""
    trial = ScoutTrial(case, operator, draw.problem(case, operator))
    law.check(trial)
    return trial.calls
