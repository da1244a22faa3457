"""The subject of a self-test: a target whose check is known, its source, and what its mutants will be asked.

The questions are those of ``linverify check`` with the same profile and seed: every required property on every case that it
draws. They are put in another order, so that most mutants fall soon: small cases first, and first of all the properties that
compare every result with the reference.
"""

import ast
import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import PathFinder
from pathlib import Path

from linverify import session
from linverify.case import Case
from linverify.errors import CannotCheckError, UsageError
from linverify.examination import Examination
from linverify.implementation import Claim
from linverify.inquiry import Inquiry
from linverify.plan import Plan
from linverify.property import Property
from linverify.selftest.imports import standing_alone
from linverify.shared import Shared
from linverify.silence import Silence
from linverify.target import parse

# The properties that look at every number that comes back: what computes something else seldom passes them.
_FIRST = ("gradients", "agreement")
_DTYPES = ("fp32", "bf16", "fp16", "tf32", "fp64")
_OTHER_SEED = 7919
_COMPARED = 60
_SHORT = 3  # tokens: a sequence this short hides most mistakes


@dataclass(frozen=True, slots=True)
class Question:
    """One property on one case."""

    law: Property
    case: Case

    @property
    def text(self) -> str:
        """Property and case as a line of a record."""
        return f"{self.law.name} {self.case.id}"


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """One function of the subject.

    Attributes:
        name: of the function, as the target's file has it.
        claim: what it is held to.
        questions: what its mutants are asked, in order.
        compared: cases on which a mutant is compared with the original.
    """

    name: str
    claim: Claim
    questions: tuple[Question, ...]
    compared: tuple[Case, ...]


@dataclass(frozen=True, eq=False)
class Subject:
    """A target whose mutants are to be judged.

    Attributes:
        plan: how its check is asked.
        path: the file that is mutated.
        source: its text.
        kernels: the functions that are judged.
    """

    plan: Plan
    path: Path
    source: str
    kernels: tuple[Kernel, ...]

    @cached_property
    def tree(self) -> ast.Module:
        """The source, parsed."""
        return ast.parse(self.source)

    @property
    def digest(self) -> str:
        """Of the source."""
        return digest_of(self.source)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the functions that are judged."""
        return tuple(k.name for k in self.kernels)


def digest_of(source: str) -> str:
    """What tells one source from another."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def text_of(plan: Plan) -> tuple[Path, str]:
    """Return the file that a target's mutants are made of, and its source; nothing is imported.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    spec = parse(plan.target)
    path = Path(spec.location) if spec.kind == "file" else source_of(spec.location)
    try:
        source = path.read_text(encoding="utf-8")
        return path, source if spec.kind == "file" else standing_alone(source, spec.location)
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise UsageError(f"{plan.target}: its source cannot be read: {error}") from None


def prepare(plan: Plan, only: tuple[str, ...] = ()) -> Subject:
    """Import a target (in its worker), and draw what its mutants will be asked.

    Args:
        plan: as of a check of this target.
        only: operators; the target's functions for others are left out. () for all.

    Raises:
        UsageError: the plan cannot be understood, or the target has no source to mutate.
        CannotCheckError: the target cannot be imported, or nothing can be asked.
    """
    spec = parse(plan.target)
    path, source = text_of(plan)
    kernels = []
    with session.one_thread(), closing(session.open_runner(plan, spec)) as runner:
        for function, claim in session.asked(plan, runner):
            if only and claim.operator not in only:
                continue
            check = Examination(plan, spec, runner, function, claim, Silence(), Shared())
            try:
                drawn = sorted(_drawn(check), key=_when)
                check.plan = dataclasses.replace(plan, seed=plan.seed + _OTHER_SEED)
                others = [q.case for q in _drawn(check)]
            finally:
                check.close()
            if drawn:
                kernels.append(Kernel(function.name, claim, tuple(drawn), _compared([q.case for q in drawn], others)))
    if not kernels:
        raise CannotCheckError(f"{plan.target}: no property has a case to ask; nothing could catch a mutant")
    return Subject(plan, path, source, tuple(kernels))


def source_of(module: str) -> Path:
    """Return the file of a module, found without importing it or the packages around it.

    Raises:
        UsageError: there is no such module, or it has no Python source.
    """
    if module.partition(".")[0] == "linverify":  # our own rooms lie where the running package says
        found = importlib.util.find_spec(module)
    else:
        search: list[str] | None = [*sys.path, str(Path.cwd())]
        found, parts = None, module.split(".")
        for end in range(1, len(parts) + 1):
            found = PathFinder.find_spec(".".join(parts[:end]), search)
            if found is None:
                break
            search = None if found.submodule_search_locations is None else [*found.submodule_search_locations]
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise UsageError(f"{module}: expected a module with a Python source file; name the file itself")
    return Path(found.origin)


def _drawn(check: Examination) -> Iterator[Question]:
    """What the check would ask, as far as it decides the verdict."""
    for law in check.laws:
        inquiry = check.inquiry(law)
        if isinstance(inquiry, Inquiry) and inquiry.required:
            yield from (Question(law, case) for _, cases in inquiry.cases() for case in cases)


def _when(question: Question) -> tuple[int, int, int, str]:
    """Place in the order of questions."""
    law, case = question.law, question.case
    stage = 3 if law.name == "plain_process" else 2  # that one starts a process anew for every mutant
    if law.name in _FIRST:
        stage = 0 if case.dtype == "fp32" else 1
    return stage, volume(case), _DTYPES.index(case.dtype), law.name


def volume(case: Case) -> int:
    """Numbers in the values and keys: what a case costs, roughly."""
    return case.B * case.T * case.H * (case.K + case.V)


def _compared(own: list[Case], others: list[Case]) -> tuple[Case, ...]:
    """Cases of the check and others of the same space, from small to large, so many that an equivalent mutant costs seconds."""
    distinct = {c.id: c for c in (*own, *others)}
    ordered = sorted(distinct.values(), key=lambda c: (volume(c), c.id))
    step = max(1.0, len(ordered) / _COMPARED)
    kept = [ordered[int(i * step)] for i in range(min(_COMPARED, len(ordered)))]
    return tuple(sorted(kept, key=lambda c: (c.T < _SHORT, volume(c))))
