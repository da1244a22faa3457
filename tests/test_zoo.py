"""The bug zoo is sound, its published record is of these very bugs, and a sample of it is caught.

The whole zoo runs in ``benchmarks/zoo.py``. That a bug is one, and not another way to write the
same function, is shown by the record: a check of it ended with a violation.
"""

import ast
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from linverify.plan import Plan
from linverify.registry import operator, operators, properties
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import Status
from tests.scripts import BENCHMARKS, load
from tests.zoo.catalogue import BUGS, CORRECT
from tests.zoo.record import KERNELS, SHARED, Bug, Correct, Entry, Kind

PUBLISHED = BENCHMARKS.parent / "docs" / "published" / "zoo-cpu.jsonl"
SOURCE = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(commit/[0-9a-f]{7,40}|issues/\d+)")
ENTRIES = (*BUGS, *CORRECT)
# Hidden from agreement where there is such a bug; the others one of each kernel.
CAUGHT = (
    "table_kept_by_address",
    "offsets_in_32_bits",
    "state_updated_in_place",
    "output_buffer_kept",
    "gate_without_final_state",
    "key_gradient_only_with_query",
    "one_token_ahead",
    "sub_chunk_border_skipped",
    "triangle_with_its_diagonal",
    "removal_after_the_decay",
    "groups_interleaved",
    "maximum_not_carried",
    "normaliser_within_the_chunk",
    "t_output_at_offset_0",
)
PASSED = (
    "simple_chunks_of_13",
    "simple_powers_of_two",
    "gla_sub_chunks_of_16",
    "delta_forward_substitution",
    "mamba_step_on_keys",
    "softmax_tiles_of_8",
)


def named(name: str) -> Entry:
    (entry,) = (e for e in ENTRIES if e.name == name)
    return entry


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_an_entry_is_a_program_that_differs_from_its_twin(entry: Entry) -> None:
    changed = ast.parse(entry.text())
    twin = ast.parse((KERNELS / f"{entry.kernel}.py").read_text(encoding="utf-8"))
    assert ast.dump(changed) != ast.dump(twin)
    assert entry.function in [n.name for n in changed.body if isinstance(n, ast.FunctionDef)]
    assert entry.operator in operators()
    assert entry.what.endswith(".")


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)
def test_a_bug_names_its_origin_what_it_spoils_and_its_law(bug: Bug) -> None:
    assert SOURCE.fullmatch(bug.source), bug.source
    stated = operator(bug.operator)
    results = {"o", *(f"d{i.name}" for i in stated.inputs), *(("state", "dinitial_state") if stated.state_axes else ())}
    assert bug.shows
    assert set(bug.shows) <= results
    law = properties()[bug.law]
    assert law.required
    assert law.applies(stated)


def test_there_are_enough_of_every_kind() -> None:
    assert len(BUGS) >= 150
    assert sum(b.triton for b in BUGS) >= 40
    assert len(CORRECT) >= 60
    assert {b.kind for b in BUGS} == set(Kind)
    assert len({b.operator for b in BUGS}) >= 14
    assert len({b.law for b in BUGS}) >= 20
    assert len({e.name for e in ENTRIES}) == len(ENTRIES)


def test_a_replacement_that_does_not_fit_is_refused() -> None:
    bug = replace(BUGS[0], edits=(("no such text", ""),))
    with pytest.raises(ValueError, match=r"expected 'no such text' once in simple_gla\.py, found it 0 times"):
        bug.text()
    with pytest.raises(ValueError, match=r"found it \d+ times"):
        replace(bug, edits=(("chunks", ""),)).text()


def test_an_entry_is_written_with_what_it_imports(tmp_path: Path) -> None:
    path = BUGS[0].write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, *SHARED])


def test_the_published_record_is_of_these_bugs_and_finds_them() -> None:
    """A record leaves out what an entry's program is no longer; how it is made says benchmarks/zoo.py."""
    smallest, rows = load("zoo_page").smallest, load("zoo_records").Records(PUBLISHED).sections["bugs"]
    found = {b.name: smallest(rows, b.name) for b in BUGS}
    assert not [name for name, profile in found.items() if not profile], "run: python benchmarks/zoo.py bugs"
    assert list(found.values()).count("quick") >= 0.95 * len(BUGS)


def test_the_published_record_is_of_these_correct_kernels_and_passes_them() -> None:
    rows = load("zoo_records").Records(PUBLISHED).sections["correct"]
    assert {key.split()[0] for key in rows} == {c.name for c in CORRECT}, "run: python benchmarks/zoo.py correct"
    assert {key for key, row in rows.items() if row["verdict"] != "pass"} == set()


def test_a_record_forgets_what_was_said_of_another_program(tmp_path: Path) -> None:
    records = load("zoo_records").Records(tmp_path / "record.jsonl")
    records.add("bugs", f"{BUGS[0].name} quick", {"verdict": "violation"})
    records.add("bugs", f"{BUGS[1].name} quick", {"verdict": "violation"})
    text = records.path.read_text().replace(records.digests[BUGS[1].name], "another")
    records.path.write_text(text)
    assert list(load("zoo_records").Records(records.path).sections["bugs"]) == [f"{BUGS[0].name} quick"]


def _ended_or_doubled(task: int) -> dict[str, int]:
    if task == 2:
        raise ValueError("two")
    if task == 3:
        os._exit(7)
    if task == 9:
        time.sleep(60)
    return {"twice": 2 * task}


def test_tasks_are_shared_out_and_those_that_fail_say_so() -> None:
    shared_out = load("shared_out").shared_out
    answers = dict(shared_out(range(5), lambda t: t % 2, lambda: _ended_or_doubled, jobs=2, seconds=30))
    expected = {n: {"twice": 2 * n} for n in (0, 1, 4)}
    assert answers == expected | {2: {"error": "ValueError: two"}, 3: {"error": "its process ended with 7"}}


def test_tasks_end_with_the_time() -> None:
    shared_out, start = load("shared_out").shared_out, time.monotonic()
    assert dict(shared_out((9, 1), lambda t: t, lambda: _ended_or_doubled, jobs=2, seconds=2)) == {1: {"twice": 2}}
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", CAUGHT)
def test_a_bug_is_caught_by_the_law_that_is_there_for_it(name: str, tmp_path: Path) -> None:
    bug = named(name)
    assert isinstance(bug, Bug)
    plan = load("zoo").plan(bug, bug.write(tmp_path), profile="quick", properties=(bug.law,), fail_fast=True)
    (result,) = check(plan, Silence())
    assert result.verdict == "violation"
    assert result.properties[0].status is Status.VIOLATION


@pytest.mark.parametrize("name", PASSED)
def test_another_choice_is_no_bug(name: str, tmp_path: Path) -> None:
    entry = named(name)
    assert isinstance(entry, Correct)
    plan = Plan(f"{entry.write(tmp_path)}::{entry.function}", entry.operator, profile="quick", dtypes=("fp32", "bf16"))
    (result,) = check(replace(plan, properties=("agreement", "gradients")), Silence())
    assert (result.verdict, {p.status for p in result.properties}) == ("pass", {Status.PASS})


def test_a_bonus_may_be_read_with_the_state() -> None:
    """RWKV-6 as its authors' kernel has it, y += r (u k v + s): the model of rounding once knew another form alone."""
    plan = Plan(f"{KERNELS / 'rwkv6.py'}::rwkv6", profile="quick", operator="rwkv6", dtypes=("fp32",))
    (result,) = check(replace(plan, properties=("agreement", "gradients")), Silence())
    assert (result.verdict, {p.status for p in result.properties}) == ("pass", {Status.PASS})
