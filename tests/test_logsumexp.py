"""Weights that a backward pass forms anew from a row's log sum: rounded like the largest score, all of a row together."""

import dataclasses
from functools import partial

import pytest

from linverify import draw, registry
from linverify.case import parse_case
from linverify.judge import Judge
from tests.scripts import load
from tests.zoo.catalogue import CORRECT

# Scores of some hundreds: a float32 of that size is off by 1e-5, and by so much of its size every weight of the row.
CASE = parse_case("softmax_attention/B3.T64.H1.K20.V12/fp32/regime=range/cotangent=o/scale=one/seed=1535")


@pytest.mark.parametrize("name", ["softmax_tiles_of_64", "softmax_powers_of_two"])
def test_a_kernel_that_keeps_the_log_of_a_sum_is_right(name: str) -> None:
    (entry,) = (e for e in CORRECT if e.name == name)
    operator = registry.operator(CASE.operator)
    problem, rivals = draw.problem(CASE, operator), load("zoo_rivals")
    with rivals.loaded(entry) as kernel:
        results = rivals.results(partial(kernel, scale=problem.scale), problem, backward=True)
    assert len(results) == 4
    outcomes = {}
    for way in (operator, dataclasses.replace(operator, ways={})):
        judge = Judge(way, "cpu")
        outcomes[bool(way.ways)] = {n: s.outcome for n, s in judge.scores(judge.answer(problem), results, "fp32")}
    assert set(outcomes[True].values()) == {"pass"}
    assert outcomes[False]["dv"] == "reject"  # no form of the operator keeps it
