"""What targets of one operator share: a judge, and references with the realisations drawn for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from linverify.bench import Memory
from linverify.examples import SharedExamples
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.score import Answer

_MEGABYTE = 2**20
_ANSWER_MEGABYTES = 1500.0


def _weigh(answer: Answer) -> float:
    held = list(answer.reference.values())
    for members in answer.members.values():
        held += [e for m in members for part in (m.train, m.held, m.nearest) for e in part.values()]
    return sum(t.numel() for t in held) * 8 / _MEGABYTE


@dataclass(eq=False)
class Shared:
    """Judges and references that targets of one operator share, and failing cases that workers share."""

    examples: SharedExamples | None = None
    _held: dict[tuple[str, str, bool, str], tuple[Judge, Memory[Answer]]] = field(default_factory=dict)

    def of(self, operator: Operator, device: str, parameters: Mapping[str, str]) -> tuple[Judge, Memory[Answer]]:
        """The judge and the remembered references of an operator, with these parameters set, on a device."""
        key = (operator.name, device, operator.grouped, repr(sorted(parameters.items())))
        if key not in self._held:
            self._held[key] = (Judge(operator, device), Memory(_ANSWER_MEGABYTES, _weigh))
        return self._held[key]
