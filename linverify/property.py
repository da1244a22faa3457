"""A property: a law that every implementation of an operator must obey, and what it may use to check it.

HOW to add one: a file in ``properties/`` that assigns ``PROPERTY = Property(...)``. Its check asks the trial to run the target
and judges what comes back; it returns normally when the law holds and raises through the trial's methods when it does not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from linverify.case import Case
from linverify.operator import Operator
from linverify.problem import Problem, Program, Result

Tensors = Mapping[str, torch.Tensor]
Residual = Callable[[Sequence[Tensors]], torch.Tensor]


class Trial(Protocol):
    """What a property sees of one case."""

    case: Case
    problem: Problem

    @property
    def operator(self) -> Operator:
        """The statement that the target is held to."""

    @property
    def unit_roundoff(self) -> float:
        """Of the precision class that judges the case."""

    def solve(
        self,
        problem: Problem | None = None,
        *,
        layout: str | None = None,
        cotangent_layout: str | None = None,
        poison: str = "nan",
    ) -> Result:
        """Ask the target one problem (the case's own by default). Equal asks of the case's own problem are asked once."""

    def other_form(self, problem: Problem) -> Result:
        """Ask a built-in form of the operator the same problem."""

    def unwatched(self) -> Result:
        """Ask the target the case's own problem in a process that holds nothing of the checker."""

    def recompiled(self, problems: Sequence[Problem]) -> Sequence[Result]:
        """Ask each problem in a plain process of its own; the first finds nothing compiled, the others what came before.

        A result of one that the target refuses is empty where it is not the last; that one's refusal is raised.
        """

    def fresh(self) -> bool:
        """Have the next call run in a process that has run nothing; False where a new process is too dear (a GPU)."""

    def sweep(self) -> None:
        """Force every configuration of every autotuned kernel on the case's own problem; raise where one is wrong."""

    def sanitized(self, tool: str) -> tuple[str, ...]:
        """Run the case's own problem under a tool of NVIDIA's compute-sanitizer; a sentence for each finding."""

    def run(self, program: Program) -> tuple[Result, ...]:
        """Run several calls in one process, in order."""

    def reference(self, problem: Problem) -> Tensors:
        """Float64 results by name: o, state, d<input>."""

    def agree(
        self, result: Result, problem: Problem | None = None, *, results: Sequence[str] | None = None, means: str = ""
    ) -> None:
        """Raise unless the results (all by default; "o", "state", "dq" ...) are within the budget of the reference.

        `means` says what a wrong result means where the law knows more than the numbers tell.
        """

    def relate(self, what: str, parts: Sequence[tuple[Problem, Result]], residual: Residual, axes: str) -> None:
        """Raise unless a linear relation between results holds within the budget propagated through it.

        `residual` maps one {name: tensor} per part to a tensor that is 0 in exact arithmetic; it must be linear and
        homogeneous in the tensors (inputs of the problems may be its coefficients). `axes` names the residual's axes by the
        letters b t h n k v ("bthv"), for the location of an error.
        """

    def agree_in_segments(self) -> None:
        """Ask the target the case's own problem, too long for a reference to hold whole; raise unless all results are right."""

    def identical(self, what: str, first: torch.Tensor, second: torch.Tensor, axes: str) -> None:
        """Raise unless the second tensor equals the first, which is expected, bit by bit (NaN equals NaN)."""

    def require(self, holds: bool, kind: str, message: str, result: str = "") -> None:
        """Raise a violation of this kind (see ``verdict.Evidence``) unless `holds`."""

    def generator(self, label: str) -> torch.Generator:
        """A CPU generator that depends on the case's seed and the label alone."""


@dataclass(frozen=True, slots=True)
class Space:
    """Which cases a property asks about; a field left empty allows everything.

    Attributes:
        min_T, min_B, min_H: smallest sizes that make sense.
        min_sequences: fewest packed sequences that make sense; a case that is not packed is not concerned.
        max_T: largest T, 0 for no limit.
        states: allowed initial states.
        final_state: None either, else forced.
        cotangents: allowed cotangent patterns; ("none",) for forward-only properties.
        packed: None either, else forced.
        layouts: allowed layouts.
        regimes, gates: allowed regimes.
        dtypes: allowed dtypes.
        scales: allowed scales.
        one_input: True where `wrt` may name a single input.
        mixed: True where a 16-bit case may mix dtypes in an unusual way.
        streamed: True for sequences so long that they are judged segment by segment; such a law gets no other cases, and no
            other law gets these.
    """

    min_T: int = 1
    max_T: int = 0
    min_B: int = 1
    min_H: int = 1
    min_sequences: int = 1
    states: tuple[str, ...] = ()
    final_state: bool | None = None
    cotangents: tuple[str, ...] = ("none",)
    packed: bool | None = False
    layouts: tuple[str, ...] = ("contiguous",)
    regimes: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    one_input: bool = False
    mixed: bool = False
    streamed: bool = False


def always(_: Operator) -> bool:
    """The law concerns every operator."""
    return True


@dataclass(frozen=True, slots=True)
class Property:
    """A law.

    Attributes:
        name: lower case, words joined by underscores; also the file's name.
        law: one sentence, true of a correct implementation.
        check: raises through the trial when the law is broken.
        required: whether breaking it decides the verdict; otherwise it is reported.
        claim: a claim ("deterministic=true") that makes a reported property required; "" for none.
        applies: whether the law concerns an operator, from its declared facts.
        needs: capabilities without which there is nothing to ask: initial_state, final_state, packed, gradients, scale;
            configurations, sanitizer, long, caches: asked on request only.
        space: which cases it asks about.
        weight: share of the profile's cases that it gets.
        climbs: whether a search for cases that use more of their budget belongs to it.
        lists: whether all its cases are asked although one is wrong, and none is made smaller: it lists what it finds.
        basic: whether it is asked before the others: a wrong value breaks most laws, and these say best what is wrong.
        why: what goes wrong in practice when it is broken, one sentence for the report.
        against: the mistake that speaks for another cause while this law holds, a few words; "" where it excludes none.
    """

    name: str
    law: str
    check: Callable[[Trial], None]
    required: bool = True
    claim: str = ""
    applies: Callable[[Operator], bool] = always
    needs: frozenset[str] = frozenset()
    space: Space = field(default_factory=Space)
    weight: float = 1.0
    climbs: bool = False
    lists: bool = False
    basic: bool = False
    why: str = ""
    against: str = ""

    @property
    def compiled_for(self) -> bool:
        """Whether its cases are compiled for beforehand: a sweep's own processes compile, a long sequence is one case."""
        return not (self.space.streamed or self.lists)
