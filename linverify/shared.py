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
# What a tensor takes beside its numbers. A question of a few tokens is all such: 2,000 answers took 28 MB, their numbers 1 MB.
_TENSOR_BYTES = 1024


def _weigh(answer: Answer) -> float:
    """Megabytes of an answer: of its problem, its reference and the realisations drawn so far."""
    problem = answer.problem
    held = [*problem.tensors.values(), *problem.cotangents.values(), *answer.reference.values()]
    for members in (*answer.members.values(), *answer.ungated.values()):
        held += [e for m in members for part in (m.train, m.held, m.nearest) for e in part.values()]
    for variances in answer.variances.values():
        held += variances.values()
    # The question holds the problem's numbers once more, in float64.
    return sum(t.nbytes + _TENSOR_BYTES for t in held + list(problem.tensors.values())) / _MEGABYTE


@dataclass(eq=False)
class Shared:
    """Judges and references that targets of one operator share, and failing cases that workers share.

    Attributes:
        examples: cases that failed, as all workers of the session keep them; None where nobody else does.
        megabytes: of references that are remembered for an operator.
    """

    examples: SharedExamples | None = None
    megabytes: float = _ANSWER_MEGABYTES
    _held: dict[tuple[str, str, bool, str], tuple[Judge, Memory[Answer]]] = field(default_factory=dict)

    def of(self, operator: Operator, device: str, parameters: Mapping[str, str]) -> tuple[Judge, Memory[Answer]]:
        """The judge and the remembered references of an operator, with these parameters set, on a device."""
        key = (operator.name, device, operator.grouped, repr(sorted(parameters.items())))
        if key not in self._held:
            self._held[key] = (Judge(operator, device), Memory(self.megabytes, _weigh))
        return self._held[key]
