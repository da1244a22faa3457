"""Changed borders: other borders in the same cu_seqlens give the results of the new borders."""

from linverify.properties._in_place import then
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

_STALE = (
    "right with the first borders, wrong once others are written into the same cu_seqlens: what was made of the borders "
    "is remembered by the tensor's identity"
)


def moved(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """As many sequences of as many tokens in all, with other numbers of chunks one after the other where that can be.

    In the order of their lengths, or in the opposite one; equal ones give all but one token of the first to the last.
    """
    ordered = tuple(sorted(lengths))
    if ordered[0] != ordered[-1]:
        return ordered if ordered != lengths else ordered[::-1]
    if len(lengths) == 1 or not lengths[0]:
        return lengths
    return (1, *lengths[1:-1], lengths[-1] + lengths[0] - 1)


def check(trial: Trial) -> None:
    """Ask, write other borders into the very same offsets, ask again, and judge both answers."""
    then(trial, trial.problem.with_(lengths=moved(trial.problem.lengths)), _STALE)


PROPERTY = Property(
    name="changed_borders",
    law="Other borders written into the same cu_seqlens give the results of the new borders.",
    check=check,
    applies=lambda operator: "M19" in operator.identities,
    needs=frozenset({"packed"}),
    space=Space(min_T=65, max_T=SHORT, packed=True, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="Chunk indices remembered by the identity of the offsets are stale once a data loader or a CUDA graph refills them: "
    "tokens are left out or computed twice, and some results are never written.",
)
