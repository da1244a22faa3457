"""While a target is imported: the import begins without being waited for, and the process judges something meanwhile."""

import sys
from pathlib import Path
from typing import Any

import pytest

from linverify import registry, runner
from linverify.judge import Judge
from linverify.limber import judged, limber
from linverify.runner import Runner
from linverify.target import parse

KERNELS = Path(__file__).with_name("session_kernels.py")
SIZES = (1, 20, 2, 8, 6)


@pytest.mark.usefixtures("one_thread")
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
