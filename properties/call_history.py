"""Call history: an answer does not depend on what was asked before."""

from linverify.problem import Call, Problem, Program
from linverify.properties._problems import head_groups, heads, length_of, mirrored, rows, span, taken
from linverify.properties._results import choose
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def others(trial: Trial) -> list[Problem]:
    """Other values of the same shapes, then fewer tokens, rows or heads."""
    problem, operator = trial.problem, trial.operator
    length, batch = length_of(problem, operator, "T"), length_of(problem, operator, "B")
    groups = len(head_groups(problem, operator))
    smaller = [problem]
    if length > 1:
        smaller.append(span(problem, operator, length // 2, length))
    if batch > 1:
        smaller.append(taken(problem, operator, rows([batch - 1])))
    if groups > 1:
        smaller.append(taken(problem, operator, heads(problem, operator, [groups - 1])))
    return [mirrored(problem, operator), smaller[choose(trial, "smaller", min(1, len(smaller) - 1), len(smaller))]]


def check(trial: Trial) -> None:
    """Ask, ask other questions, ask again; judge every answer but the first, whose question comes again."""
    problems = [trial.problem, *others(trial), trial.problem]
    results = trial.run(Program(tuple(Call(problem) for problem in problems)))
    for problem, result in zip(problems[1:], results[1:], strict=True):
        trial.agree(result, problem)


PROPERTY = Property(
    name="call_history",
    law="Results are right whatever shapes and values were asked before in the same process.",
    check=check,
    space=Space(max_T=SHORT, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="Masks, decay tables and workspaces are cached under a key that leaves something out; the first call of a "
    "process is right and a later one of another length is not.",
    against="something left over from an earlier call",
)
