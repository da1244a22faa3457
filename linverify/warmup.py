"""Compile ahead: several processes meet every compile signature of a session first and fill the compiler's cache on disk."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from linverify.bench import Signature, signature
from linverify.case import Case
from linverify.compiled import Compiled
from linverify.draw import problem
from linverify.errors import CannotCheckError
from linverify.operator import Operator
from linverify.problem import Call, Fault, Program, Refused
from linverify.property import Property
from linverify.runner import Runner
from linverify.scout import calls_of

_LANES = 14
_SECONDS = 300.0


def _volume(call: Call) -> int:
    return sum(t.numel() for t in call.problem.tensors.values())


def signatures(asked: Sequence[tuple[Property, Case]], operator: Operator, known: Compiled) -> dict[Signature, Call]:
    """The smallest call of every signature that these cases will need and that is not compiled yet."""
    wanted: dict[Signature, Call] = {}
    for law, case in asked:
        for call in calls_of(law, case, operator, problem(case, operator)):
            made = signature(call, operator)
            if made not in wanted or _volume(call) < _volume(wanted[made]):
                wanted[made] = call
    return {made: call for made, call in wanted.items() if not known.holds(made)}


def lanes(workers: int = 1) -> int:
    """How many processes may compile at once, where so many workers do."""
    return max(1, min(_LANES, len(os.sched_getaffinity(0)) // workers - 1))


def compile_ahead(wanted: Mapping[Signature, Call], start: Callable[[], Runner], known: Compiled) -> None:
    """Run every call once, in as many processes as the machine has room for.

    Signatures that differ in optional arguments alone share most kernels, so one process takes them in turn; whoever is done
    takes the next such group, the largest first. What a call does is no verdict here: the session asks it again.
    """
    groups: dict[object, list[tuple[Signature, Call]]] = {}
    for made, call in sorted(wanted.items(), key=lambda item: _volume(item[1])):
        groups.setdefault(made[:3], []).append((made, call))
    count = max(1, min(lanes(), len(groups)))
    left = deque(sorted(groups.values(), key=len, reverse=True))

    def lane(_: int) -> None:
        try:
            with start() as runner:
                while left:
                    try:
                        group = left.popleft()
                    except IndexError:  # another lane was quicker
                        return
                    for made, call in group:
                        with suppress(Fault, Refused):
                            runner.run(Program((call,)), time_limit=_SECONDS)
                            known.add(made)
        except CannotCheckError:
            return

    if groups:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lane, range(count)))
