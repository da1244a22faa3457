"""Compile cache: answers are right while nothing is compiled yet, and from what another process compiled."""

from linverify.problem import Problem
from linverify.properties._problems import in_other_dtype, length_of, span
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def others(trial: Trial) -> list[Problem]:
    """The same in another dtype, with another scale, for fewer tokens: what a key of a cache may leave out."""
    problem, operator = trial.problem, trial.operator
    length = length_of(problem, operator, "T")
    rescaled = [problem.with_(scale=2.0 * problem.scale)] if problem.scale is not None else []
    return [in_other_dtype(problem), *rescaled, span(problem, operator, 0, (length + 1) // 2)]


def check(trial: Trial) -> None:
    """Ask in a process that finds nothing compiled, then in one that finds all of it; then after other questions."""
    problem = trial.problem
    for asked in ([problem, problem], [*others(trial), problem]):
        for made, result in zip(asked, trial.recompiled(asked), strict=True):
            if made is problem:
                trial.agree(result)


PROPERTY = Property(
    name="compile_cache",
    law="Results are right in the process that compiles, and in a later one that finds on disk what others compiled.",
    check=check,
    needs=frozenset({"caches"}),
    space=Space(min_T=17, max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    weight=0.1,  # every question is a process of its own, which compiles
    why="A compiled kernel is kept on disk under a key; what the key leaves out comes back in another process, which no test "
    "of one process meets.",
)
