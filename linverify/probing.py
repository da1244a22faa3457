"""Probing: a few more cases around the smallest failing one, asked only to say what the fault depends on.

Where a fault sits in time cannot be read off one case: an error from token 16 of 17 on is a missing mask, or something lost
between blocks of 16. One block, two blocks and a block with an initial state tell them apart.
"""

from collections.abc import Callable

from linverify.case import Case
from linverify.verdict import Status

BLOCKS = (16, 32, 64, 128)

Ask = Callable[[Case], Status]


def shortened(case: Case, min_T: int, fails: Callable[[Case], bool]) -> Case:
    """Try one token past a block: shrinking T step by step stops where a whole block is right."""
    lengths = (b + 1 for b in (16, 32, 64) if min_T <= b + 1 < case.T)
    shorter = (case.with_(T=n) for n in lengths) if not case.lengths else ()
    return next((c for c in shorter if fails(c)), case)


def block_hint(case: Case, name: str, max_T: int, ask: Ask) -> str:
    """Say what the fault has to do with blocks of tokens; "" where nothing, or where it cannot be told.

    Args:
        case: the smallest that fails.
        name: of the wrong result, for the sentence.
        max_T: of the law, 0 for no limit.
        ask: what the law says of a case.
    """
    if case.lengths or case.T % BLOCKS[0] == 0:
        return ""
    for block in (b for b in BLOCKS if not max_T or 2 * b <= max_T):
        if ask(case.with_(T=block)) is not Status.PASS:
            return ""
        whole = ask(case.with_(T=2 * block))
        odd = case.with_(T=block + 1)
        if whole not in (Status.PASS, Status.VIOLATION) or (odd.T != case.T and ask(odd) is not Status.VIOLATION):
            continue
        if whole is Status.PASS:
            wrong = f"T={case.T} is" if case.T == odd.T else f"T={case.T} and T={odd.T} are"
            return (
                f"{name} is wrong where the last block is partial: "
                f"T={block} and T={2 * block} are right, {wrong} not; "
                "its mask, or what it is filled up with, is wrong"
            )
        return (
            f"{name} is right for one block of {block} (T={block}) and wrong beyond it (T={odd.T}, T={2 * block}): "
            + _entering(case, block, ask, backward=name.startswith("d"))
        )
    return ""


def _entering(case: Case, block: int, ask: Ask, *, backward: bool) -> str:
    """Whether one block alone is wrong, too, once a state enters it."""
    read = "what is read from the state that enters a block"
    handed = "what a block hands to the next"
    if backward:
        read += " and from the gradient of the state that leaves it"
        handed = "the gradient of the state, as a block hands it to the one before"
    status = ask(case.with_(T=block, state="normal")) if case.state == "absent" else None
    if status is Status.VIOLATION:
        return f"one block with an initial state is wrong, too; look at {read}"
    if status is Status.PASS:
        return f"one block with an initial state is right; look at {handed}"
    return f"look at {handed}, and at {read}"
