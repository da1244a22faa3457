"""Head independence: heads do not know of each other."""

from linverify.properties._independence import alone_and_permuted
from linverify.properties._problems import head_groups, heads
from linverify.properties._spaces import SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Reorder the heads, groups of heads that share an input moving together, and take one group alone."""
    count = len(head_groups(trial.problem, trial.operator))
    if count == 1:
        trial.agree(trial.solve())
        return
    alone_and_permuted(trial, "heads", count, lambda groups: heads(trial.problem, trial.operator, groups))


PROPERTY = Property(
    name="head_independence",
    law="Heads in another order, or one head alone, give the same results, up to rounding.",
    check=check,
    applies=lambda operator: "M7" in operator.identities,
    space=Space(max_T=SHORT, min_H=2, cotangents=("none", "both")),
    why="A gate loaded without the head offset gives every head the decay of head 0; with one head, or with slowly "
    "varying gates, nothing shows.",
    against="heads mixed up",
)
