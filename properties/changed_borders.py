"""Changed borders: other borders in the same cu_seqlens give the results of the new borders."""

from linverify.properties._in_place import then
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

_STALE = (
    "right with the first borders, wrong once others are written into the same cu_seqlens: what was made of the borders "
    "is remembered by the tensor's identity"
)
# Of five sequences four keep a token; what the fifth then has is still more than a chunk of 64.
_LEAST_T = 70


def moved(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """As many sequences of as many tokens in all; the shortest has all tokens but one for each of the others.

    So it needs chunks that no table made of the first borders has, whatever the size of a chunk, as long as the tokens are
    more than one chunk's. Where there are too few tokens for that, it has all. One sequence keeps its borders.
    """
    others = len(lengths) - 1
    total = sum(lengths)
    kept = 1 if total > others + 1 else 0
    shortest = min(range(len(lengths)), key=lambda n: lengths[n])
    return tuple(total - kept * others if n == shortest else kept for n in range(len(lengths)))


def check(trial: Trial) -> None:
    """Ask, write other borders into the very same offsets, ask again, and judge both answers."""
    then(trial, trial.problem.with_(lengths=moved(trial.problem.lengths)), _STALE)


PROPERTY = Property(
    name="changed_borders",
    law="Other borders written into the same cu_seqlens give the results of the new borders.",
    check=check,
    applies=lambda operator: "M19" in operator.identities,
    needs=frozenset({"packed"}),
    space=Space(
        min_T=_LEAST_T,
        min_sequences=2,
        max_T=SHORT,
        packed=True,
        cotangents=("none", "both"),
        regimes=CALM,
        gates=CALM_GATES,
    ),
    why="Chunk indices remembered by the identity of the offsets are stale once a data loader or a CUDA graph refills them: "
    "tokens are left out or computed twice, and some results are never written.",
)
