"""While a target is imported: the import is not waited for, the process judges something meanwhile, and opens no GPU for it
that it does not need.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from linverify import registry, runner
from linverify.judge import Judge, wait
from linverify.limber import judged, limber
from linverify.runner import Runner
from linverify.target import parse
from tests.test_relations import halves, superposed

KERNELS = Path(__file__).with_name("session_kernels.py")
SIZES = (1, 20, 2, 8, 6)


@pytest.mark.parametrize("name", ["gla", "delta_rule", "mamba2", "softmax_attention", "lru", "flash"])
def test_every_means_of_the_judge_is_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, drawn = registry.operator(name), list[int]()
    judge = Judge(operator, "cpu")
    plain = judge._growing

    def growing(*arguments: Any, **options: Any) -> Any:
        for members in plain(*arguments, **options):
            drawn.append(len(members))
            yield members

    monkeypatch.setattr(judge, "_growing", growing)
    judged(operator, judge, SIZES)
    assert judge.counts["screened"] >= 2, "o and a gradient at least"
    assert min(drawn) >= 1
    assert len(drawn) == 1


def test_what_torch_imports_late_is_imported() -> None:
    limber(None, "cpu")
    assert "torch.fx.experimental.symbolic_shapes" in sys.modules


def test_a_runner_that_has_begun_imports_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[runner.Child] = []
    plain = runner.Child

    def child(*arguments: Any, **options: Any) -> runner.Child:
        made.append(plain(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(runner, "Child", child)
    with Runner(parse(f"{KERNELS}::good"), device="cpu") as one:
        one.begin()
        one.begin()
        assert one.describe().functions[0].name == "good"
        one.begin()
        assert len(made) == 1
    with Runner(parse(f"{KERNELS}::good"), device="cpu") as another:
        another.begin()
    assert len(made) == 2
    assert all(c._ended for c in made), "one that nobody waited for is ended all the same"


def test_what_is_small_is_judged_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for a GPU opens it, which takes a second and some memory."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    by, parts = halves()
    there = Judge(by.operator, "cuda:0")
    again = [(there.answer(a.problem), values) for a, values in parts]
    assert there.score(again[0][0], "o", again[0][1]["o"] * 1.5, "bf16").outcome == "reject"
    assert there.relation(again, superposed, "bthv", "bf16").outcome == "pass"
    assert waited == []
    wait(torch.device("cuda:0"))
    assert waited == [torch.device("cuda:0")]
