"""Correct kernels that round where the rounding model does not: no false alarm, and the runs would show one."""

import dataclasses
import json
import random
from typing import Any

import pytest
from torch import Tensor

from linverify import draw, registry
from linverify.case import parse_case
from linverify.judge import Judge
from linverify.recipe import family
from tests.scripts import load

runs = load("correct_runs")
kernels = load("correct_kernels")


# Each was a false alarm once: boundaries that are no multiple of 16; dt x, which no input holds; a chunk across token 128,
# where all chunks of the model ended; a state in tf32; decays that keys and queries in bf16 lose, or over 256 tokens in fp16;
# what is taken from a state in TF32; a boundary at 40; a query times the scale in TF32; a row that is one random number, of
# which two draws were small; a bonus's gradient, a sum over values; decays over a whole row, and cotangents of scores between
# sub-chunks, below the normal numbers of fp16; equal keys whose writes cancel until decays in TF32 tell them apart.
ONCE_ALARMED = [
    (
        "gla/B2.T200.H2.K20.V12/bf16/regime=range/gate=strong/state=large/final_state=1/cotangent=both/scale=other/seed=5360",
        {"chunk": 40, "sub": 8, "blocks": "tf32rn", "scale": "result", "sums": "reversed", "exponential": "exp2"},
    ),
    (
        "rwkv6/B1.T31.H4.K12.V7/fp16/regime=collinear/gate=production/state=zero/cotangent=o/scale=one/seed=102",
        {
            "chunk": 24,
            "sub": 24,
            "anchor": "last",
            "scale": "result",
            "sums": "split",
            "first": "own",
            "gate": "reverse",
        },
    ),
    (
        "rwkv7/B2.T16.H2.K64.V32/bf16/regime=offnorm/final_state=1/cotangent=both/scale=one/mixture=gates/seed=123",
        {"sub": 8, "blocks": "bf16", "values": "tf32", "solver": "direct", "stored": "bf16", "gate": "chunk"},
    ),
    (
        "mamba2/B1.T191.H4.K20.V12/bf16/regime=collinear/gate=strong/state=large/final_state=1/cotangent=o/scale=one/seed=8704",
        {"chunk": 16, "read": "query", "gaps": "segments", "gate": "chunk"},
    ),
    (
        "mamba2/B2.T129.H2.K30.V18.G1/fp32/regime=range/gate=strong/state=zero/final_state=1/cotangent=state/scale=one/seed=6725",
        {"chunk": 96, "scale": "stored", "sums": "reversed", "first": "own", "gate": "reverse"},
    ),
    (
        "delta_rule/B2.T70.H2.K33.V48/fp16/regime=outlier/state=large/final_state=1/cotangent=state/scale=other/seed=9999",
        {"operands": "tf32", "values": "tf32", "chunk": 16, "solver": "substitution", "solve": "tf32rn"},
    ),
    (
        "mamba2/B2.T65.H2.K33.V48/bf16/gate=tiny/state=normal/cotangent=o/scale=sqrt/seed=4894",
        {"chunk": 32, "values": "tf32", "scores": "twice", "write": "keys", "read": "query", "gaps": "segments"},
    ),
    (
        "mamba2/B1.T300.H4.K24.V32/fp16/regime=unit/gate=mild/final_state=1/cotangent=state/lengths=15.31.156.1.97/scale=sqrt/seed=3151",
        {"chunk": 256, "scale": "stored", "read": "query", "first": "own", "exponential": "exp2", "gaps": "segments"},
    ),
    (
        "rwkv6/B2.T66.H2.K64.V32/fp32/regime=range/gate=strong/state=large/final_state=1/cotangent=both/scale=one/seed=638",
        {"chunk": 40, "sub": 24, "scale": "stored", "sums": "split", "gate": "reverse", "bonus": "scores"},
    ),
    (
        "rwkv7/B1.T130.H2.K40.V24/fp16/regime=outlier/gate=reset/final_state=1/cotangent=state/seed=7",
        {"chunk": 32, "blocks": "fp16", "gate": "chunk"},
    ),
    (
        "simple_gla/B4.T267.H1.K33.V48/fp16/regime=collinear/gate=production/state=large/final_state=1/cotangent=state/scale=other/seed=214",
        {"form": "quadratic", "chunk": 0, "scores": "twice", "exponential": "exp2", "gaps": "segments"},
    ),
    (
        "gated_delta_rule/B3.T90.H1.K16.V12/fp16/regime=collinear/gate=mild/state=normal/final_state=1/cotangent=state/scale=other/seed=6569",
        {"operands": "tf32", "values": "tf32", "write": "keys", "sums": "split", "gaps": "segments"},
    ),
    (
        "rwkv7/B1.T217.H2.K9.V20/fp16/regime=unit/state=large/final_state=1/cotangent=state/lengths=133.66.1.17/scale=other/seed=1049",
        {"chunk": 64, "blocks": "tf32rn", "values": "tf32", "solver": "blocked", "solve": "tf32rn", "first": "own"},
    ),
    (
        "rwkv7/B1.T47.H1.K24.V32/fp32/regime=collinear/gate=mild/state=large/cotangent=o/lengths=0.0.47/scale=sqrt/seed=22",
        {"chunk": 40, "sub": 24, "anchor": "last", "blocks": "tf32", "solver": "substitution", "solve": "tf32rn"}
        | {"operands": "tf32", "values": "tf32", "scale": "result", "first": "own", "gate": "reverse"},
    ),
    (
        "simple_gla/B1.T32.H3.K40.V24/fp16/regime=positive/gate=production/state=zero/final_state=1/cotangent=both/lengths=31.0.0.1.0/scale=other/seed=2750",
        {"chunk": 24, "operands": "tf32", "values": "tf32", "read": "query", "gaps": "segments", "gate": "reverse"},
    ),
    (
        "simple_gla/B2.T3.H2.K30.V18/fp32/regime=unit/gate=reset/final_state=1/cotangent=state/scale=other/seed=9999",
        {"chunk": 16, "operands": "tf32rn", "values": "tf32rn", "write": "keys", "sums": "split", "gaps": "segments"},
    ),
]


def judged(case_id: str, kernel: Any) -> dict[str, str]:
    case = parse_case(case_id)
    operator = registry.operator(case.operator)
    problem, by = draw.problem(case, operator), Judge(operator, "cpu")
    answer = by.answer(problem)
    found = load("correct_results").results(problem, operator, kernel)
    assert set(found) == set(answer.reference)
    precision = "tf32" if case.dtype == "fp32" and kernel.operands != "fp32" else case.dtype
    return {n: by.score(answer, n, v, precision).outcome for n, v in found.items()}


@pytest.mark.parametrize(
    ("case_id", "choices"), ONCE_ALARMED, ids=["-".join(c.split("/")[::2][:2]) for c, _ in ONCE_ALARMED]
)
def test_roundings_at_places_of_a_kernels_own_are_no_fault(case_id: str, choices: dict[str, Any]) -> None:
    dtype = case_id.split("/")[2]
    kernel = kernels.Kernel(**{"form": "chunkwise", "operands": dtype, "values": dtype, **choices})
    assert set(judged(case_id, kernel).values()) == {"pass"}


@pytest.mark.parametrize("known", [True, False])
def test_keys_may_carry_a_scalar_decay(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """What a decayed key in bf16 loses, it loses for all values: with 128 of them 0.94 of the budget, were it unknown."""
    stacks = [s for s in family("bf16", gate="scalar") if known or s[0].folded_key is None]
    monkeypatch.setattr("linverify.judge.family", lambda *_, **__: tuple(stacks))
    case = parse_case(
        "retention/B2.T33.H2.K33.V128/bf16/regime=positive/state=zero/final_state=1/scale=one/mixture=state/seed=380"
    )
    operator = registry.operator(case.operator)
    problem, by = draw.problem(case, operator), Judge(operator, "cpu")
    kernel = kernels.Kernel(form="chunkwise", operands="bf16", values="bf16", chunk=64, write="keys")
    state = load("correct_results").results(problem, operator, kernel)["state"]
    score = by.score(by.answer(problem), "state", state, "bf16")
    assert (score.share < 0.5) is known
    assert (score.share > 0.85) is not known


FORMS = [
    {"form": "recurrent", "gate": "reverse", "bonus": "state", "sums": "split"},
    {"form": "recurrent", "sums": "reversed", "scale": "result", "exponential": "exp2"},
    {
        "form": "chunkwise",
        "chunk": 24,
        "sub": 8,
        "gate": "chunk",
        "bonus": "scores",
        "scale": "result",
        "read": "query",
        "write": "keys",
        "solver": "substitution",
    },
    {
        "form": "chunkwise",
        "chunk": 40,
        "sub": 24,
        "gate": "reverse",
        "first": "own",
        "exponential": "exp2",
        "sums": "split",
        "solver": "blocked",
        "strength": "inverse",
    },
    {"form": "quadratic", "chunk": 0, "gaps": "segments", "solver": "direct", "anchor": "last", "sums": "reversed"},
]


@pytest.mark.parametrize("name", runs.OPERATORS)
@pytest.mark.parametrize("choices", FORMS, ids=[f["form"] + str(i) for i, f in enumerate(FORMS)])
def test_every_form_computes_the_operator(name: str, choices: dict[str, Any]) -> None:
    gate = "mild" if registry.operator(name).gated else "none"
    asked = f"gate={gate}/state=normal/final_state=1/cotangent=both/lengths=30.0.40/seed=1"
    case_id = f"{name}/B1.T70.H2.K20.V12/fp32/{asked}"
    assert set(judged(case_id, kernels.Kernel(**{"operands": "fp32", **choices})).values()) == {"pass"}


def test_a_kernel_that_is_wrong_is_an_alarm_and_the_table_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    right = runs.results

    def wrong(*given: Any) -> dict[str, Tensor]:
        found = right(*given)
        last = found["dq"].clone()
        last[:, -1] *= 1.5
        return {**found, "dq": last}

    (case,) = (
        c for c in runs.cases("simple_gla", "bf16", 0) if max(d.T for d in runs.cases("simple_gla", "bf16", 0)) == c.T
    )
    case = dataclasses.replace(case, cotangent="o")
    clean = runs.run(case, "bf16", "simple_gla/bf16/0/0")
    monkeypatch.setattr(runs, "results", wrong)
    broken = runs.run(case, "bf16", "simple_gla/bf16/0/0")
    assert (runs.alarms(clean), runs.alarms(broken)) == ([], ["dq"])
    text = runs.table([json.loads(json.dumps(line)) for line in (clean, broken)])
    assert "| simple_gla, bf16 | 2 |" in text
    assert "* simple_gla/bf16/0/0 dq: ['reject'" in text


def test_a_run_is_not_made_twice_nor_after_the_time() -> None:
    label = "retention/fp32/0/0"
    assert runs.block("retention", "fp32", 0, frozenset(), 0.0) == []
    everything = frozenset(f"retention/fp32/0/{i}" for i in range(runs.BLOCK)) - {label}
    assert [line["run"] for line in runs.block("retention", "fp32", 0, everything, float("inf"))] == [label]


def test_every_choice_is_drawn() -> None:
    case = parse_case("kda/B1.T100.H1.K4.V4/bf16/gate=mild/seed=1")
    rows = Judge(registry.operator("kda"), "cpu").answer(draw.problem(case, registry.operator("kda"))).recurrence.rows
    drawn = [load("correct_choices").kernel_for(rows, "bf16", random.Random(i)) for i in range(400)]
    assert {k.form for k in drawn} == {"recurrent", "chunkwise"}  # a quadratic form would invert 100 rows in 16 bits
    assert {k.chunk for k in drawn} == {0, 16, 24, 32, 40, 48, 64}
    assert {k.solver for k in drawn} == {"library", "substitution", "blocked", "direct"}
    assert {k.gate for k in drawn} == {"autograd", "reverse", "chunk"}
