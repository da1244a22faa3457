"""The agenda: what a team has to do for a target, in which order, and who does what."""

from collections.abc import Sequence

from linverify import registry
from linverify.case import Case
from linverify.company import OWN_PROCESS
from linverify.dealing import PREPARE, Task
from linverify.insights import Worst
from linverify.plan import Plan
from linverify.property import Property

# Laws with few cases that take long: one has another kernel's process start and compile, one asks histories of many calls, and
# one is what released kernels break most, those of flash-linear-attention with chunk tables, and a failing case is shrunk.
_LONG = ("form_equivalence", "call_sequences", "changed_borders")
# Has the target imported anew, which takes as long as half of the laws.
_HALFWAY = "plain_process"


def place_of(law: str, members: int) -> int | None:
    """Return the place of the member that alone may be asked a law; None for anybody.

    Laws that compare with a process of their own take long: each is another member's.
    """
    return OWN_PROCESS.index(law) % members if law in OWN_PROCESS else None


def tasks(plan: Plan, laws: Sequence[str], members: int) -> list[Task]:
    """The laws and studies of a target, in the order in which they begin: basic laws first, then what takes long.

    Where the session's time is limited the laws have it. On a GPU a task waits until what it calls is compiled.

    Args:
        plan: what is asked.
        laws: of the target.
        members: who share it.
    """
    waits = plan.device.startswith("cuda")
    asked = [registry.property_named(law) for law in laws]
    basic, others = ([law for law in asked if law.basic is kind] for kind in (True, False))
    studies = [] if plan.fail_fast else [Task("study", dtype, waits=waits) for dtype in plan.dtypes]
    first, rest = (
        [Task("ask", law.name, place_of(law.name, members), waits) for law in sorted(some, key=_length, reverse=True)]
        for some in (basic, others)
    )
    for task in [t for t in rest if t.about == _HALFWAY]:
        rest.remove(task)
        rest.insert(len(rest) // 2, task)
    prepare = [PREPARE] if waits else []
    return [*prepare, *first, *studies, *rest] if plan.time is None else [*prepare, *first, *rest, *studies]


def _length(law: Property) -> tuple[bool, float]:
    # Laws with few cases may take long all the same.
    return law.name in _LONG, max(law.weight, 1.0)


def shared_out(worst: Sequence[Worst]) -> list[Worst]:
    """Return, for each process, cases to look into, of those that all have judged: its own as far as it is its turn.

    Who has judged a case remembers its reference and its results; results of one case stay together.

    Args:
        worst: of each process.
    """
    every: dict[tuple[str, str], tuple[float, Case, int]] = {}
    for place, own in enumerate(worst):
        for key, (share, case) in own.items():
            if key not in every or share > every[key][0]:
                every[key] = share, case, place
    groups: dict[tuple[int, str], dict[tuple[str, str], tuple[float, Case]]] = {}
    for key, (share, case, place) in every.items():
        groups.setdefault((place, case.id), {})[key] = share, case
    dealt: list[dict[tuple[str, str], tuple[float, Case]]] = [{} for _ in worst]
    room = -(-len(every) // len(worst))
    for (place, _), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        own = dealt[place]
        fits = not own or len(own) + len(group) <= room
        (own if fits else min(dealt, key=len)).update(group)
    return list(dealt)
