"""The benchmark that sets the quick profile beside gradcheck and an allclose loop: its other two ways see and let pass."""

from dataclasses import replace

import pytest

from linverify.shared import Shared
from tests.scripts import load
from tests.zoo.catalogue import BUGS
from tests.zoo.record import Bug

benchmark = load("against_gradcheck")


def bug(name: str) -> Bug:
    return next(b for b in BUGS if b.name == name)


@pytest.mark.parametrize("way", ["gradcheck", "allclose"])
def test_each_way_objects_to_a_wrong_gradient_and_not_to_a_right_one(way: str) -> None:
    planted = bug("step_gradient_of_one_path")
    ask = benchmark.WAYS[way]
    assert ask(planted, "cpu", Shared()) == (1, True)
    cases, objects = ask(replace(planted, edits=()), "cpu", Shared())
    assert not objects
    assert cases == (1 if way == "gradcheck" else 18)


def test_a_wrong_output_whose_gradient_fits_is_none_of_gradcheck_s_business() -> None:
    planted = bug("forget_gate_as_a_logarithm")
    assert not benchmark.by_gradcheck(planted, "cpu", Shared())[1]
    assert benchmark.by_allclose(planted, "cpu", Shared())[1]


def test_one_bug_of_each_kind_and_the_kernels_they_came_from() -> None:
    found = benchmark.subjects(99, 99)
    bugs = [e for e in found if e.edits]
    assert len({b.kind for b in bugs}) == len(bugs)
    assert {e.kernel for e in found if not e.edits} == {b.kernel for b in bugs}
    assert not any(e.triton for e in found)


def test_the_references_agree() -> None:
    found = benchmark.ladder("delta_rule", "cpu", T=64)
    assert found.difference < 1e-12
    assert found.stepwise > 0
    assert found.chunkwise > 0


def test_the_page_counts_what_was_found() -> None:
    made = [
        benchmark.Trial(way, name, kind, objects, 6, 2.0)
        for way, objects in (("linverify", True), ("gradcheck", False), ("allclose", True))
        for name, kind in (("a_bug", "scale"), ("a_kernel", ""))
    ]
    text = benchmark.page(made, [benchmark.Ladder("gla", 2.0, 0.02, 1e-15)], "a machine", "T = 9")
    assert "| linverify | 1 of 1 | 1 of 1 | 2.0, 2.0 | 2.0 | 3.0 |" in text
    assert "| gradcheck | 0 of 1 | 0 of 1 | 2.0, 2.0 | 2.0 | 3.0 |" in text
    assert "| `a_bug` | scale | found (2.0 s) | no (2.0 s) | found (2.0 s) |" in text
    assert "| `gla` | 2.00 | 0.0200 | 100.0 | 1.0e-15 |" in text
