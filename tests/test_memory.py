"""What a session remembers is bounded by what it really takes."""

import torch

from linverify import registry
from linverify.bench import Memory
from linverify.case import parse_case
from linverify.draw import problem
from linverify.judge import Judge
from linverify.shared import Shared, _weigh


def test_the_oldest_goes_first() -> None:
    memory: Memory[int] = Memory(3)
    for number in range(3):
        memory.put(number, number)
    assert memory.get(0) == 0  # recent again
    memory.put(3, 3)
    assert [memory.get(n) for n in range(4)] == [0, None, 2, 3]


def test_what_grows_in_use_is_weighed_again() -> None:
    memory: Memory[list[int]] = Memory(10, weigh=len)
    first = memory.put("first", [0])
    memory.put("second", [0])
    known = memory.get("second")
    assert known is not None
    known += [0] * 8
    memory.put("third", [0])  # 1 + 9 + 1: one too many
    assert memory.get("first") is None
    assert memory.get("second") is known
    first += [0] * 100  # what was let go weighs nothing
    for _ in range(5):
        memory.put("third", [0])
    assert memory.get("second") is known


def test_a_value_too_large_is_kept_alone() -> None:
    memory: Memory[list[int]] = Memory(2, weigh=len)
    memory.put("small", [0])
    memory.put("large", [0] * 5)
    assert memory.get("large") == [0] * 5
    assert memory.get("small") is None


def test_a_tiny_answer_weighs_what_its_objects_take() -> None:
    """Numbers alone would allow gigabytes of tensors that hold a few bytes each."""
    operator = registry.operator("gla")
    case = parse_case("gla/B1.T3.H1.K4.V6/fp32/gate=mild")
    answer = Judge(operator, "cpu").answer(problem(case, operator))
    kilobytes = 1024 * _weigh(answer)
    numbers = sum(t.nbytes for t in answer.reference.values()) / 1024
    assert numbers < 1 < 5 < kilobytes < 30


def test_remembered_references_stay_within_their_bound() -> None:
    operator = registry.operator("gla")
    judge, answers = Shared(megabytes=0.1).of(operator, "cpu", {})
    for seed in range(40):
        case = parse_case(f"gla/B1.T3.H1.K4.V6/fp32/gate=mild/seed={seed}")
        answers.put(case.id, judge.answer(problem(case, operator)))
    held = list(answers._held.values())
    assert 2 < len(held) < 20
    assert sum(map(_weigh, held)) <= 0.1 + _weigh(held[-1])
    assert all(isinstance(a.reference["o"], torch.Tensor) for a in held)
