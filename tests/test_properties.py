"""Every property catches the bug it is there for, and lets a correct kernel pass.

For each law there is a kernel with one planted bug (``tests/planted``). Where a bug is marked as hidden, agreement alone
does not see it: that is what the other laws are for.
"""

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path

import pytest

from linverify.case import parse_case
from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.registry import properties
from linverify.session import check, replay
from linverify.silence import Silence
from linverify.trial import CaseTrial
from linverify.verdict import Status

PLANTED = Path(__file__).parent / "planted"
HIDDEN, SEEN = True, False

# property, planted kernel, whether agreement is blind to it
BUGS = (
    ("agreement", "values.py::ragged_tail", SEEN),
    ("form_equivalence", "values.py::ragged_tail", SEEN),
    ("gradients", "backward.py::key_without_final_state", HIDDEN),
    ("gradient_subsets", "backward.py::frozen_key", HIDDEN),
    ("contract", "calls.py::float32_output", HIDDEN),
    ("contiguous_results", "memory.py::transposed_output", HIDDEN),
    ("inputs_untouched", "calls.py::scales_in_place", HIDDEN),
    ("outputs_written", "calls.py::unwritten_tail", HIDDEN),
    ("guard_bands", "../exploits/outputs.py::beyond_its_output", HIDDEN),
    ("aliasing", "../exploits/caches.py::ring_of_buffers", HIDDEN),
    ("kept_results", "../exploits/caches.py::view_of_a_kept_buffer", HIDDEN),
    ("finished_results", "memory.py::finished_late", HIDDEN),
    ("checker_untouched", "../exploits/patches.py::patches_equal", HIDDEN),
    ("plain_process", "../exploits/detection.py::by_modules", HIDDEN),
    ("earlier_result_untouched", "calls.py::reused_buffer", HIDDEN),
    ("repeated_call", "calls.py::sums_up", HIDDEN),
    ("interleaved_backward", "calls.py::kept_for_the_backward_pass", HIDDEN),
    ("bitwise_repeatable", "calls.py::any_order", HIDDEN),
    ("call_history", "calls.py::table_by_shape", HIDDEN),
    ("call_sequences", "calls.py::other_dtype_remembered", HIDDEN),
    ("call_sequences", "calls.py::settings_of_one_thread", HIDDEN),
    ("call_sequences", "calls.py::hurries_when_busy", HIDDEN),
    ("call_sequences", "calls.py::path_of_the_first_device", HIDDEN),
    ("compile_cache", "calls.py::compiled_for_another_dtype", HIDDEN),
    ("compile_cache", "calls.py::runs_twice_where_it_compiles", HIDDEN),
    ("neighbour_content", "parts.py::scaled_by_the_batch", HIDDEN),
    ("changed_in_place", "calls.py::table_by_tensor", HIDDEN),
    ("changed_borders", "calls.py::borders_by_tensor", HIDDEN),
    ("state_passing", "past.py::short_pieces_forget", SEEN),
    ("bitwise_state_passing", "correct.py::by_chunk", HIDDEN),
    ("packed", "past.py::documents_run_on", SEEN),
    ("linearity", "values.py::values_by_largest", SEEN),
    ("bitwise_value_scaling", "values.py::large_values_rescaled", HIDDEN),
    ("causality_values", "past.py::stabilised_by_all", HIDDEN),
    ("causality_gates", "past.py::gates_read_late", SEEN),
    ("causality_gradients", "past.py::gradient_flows_on", HIDDEN),
    ("containment", "parts.py::heads_by_mask", HIDDEN),
    ("containment_time", "parts.py::tokens_by_mask", HIDDEN),
    ("batch_independence", "parts.py::first_row_gates", SEEN),
    ("head_independence", "parts.py::heads_swapped", SEEN),
    ("batch_invariance", "parts.py::tiles_by_batch", HIDDEN),
    ("gate_limits", "past.py::factored_decay", SEEN),
    ("reductions", "values.py::scalar_branch", HIDDEN),
    ("query_euler", "backward.py::scaled_twice", HIDDEN),
    ("key_value_balance", "backward.py::key_one_percent", HIDDEN),
    ("linear_balance", "backward.py::value_one_percent", HIDDEN),
    ("channel_balance", "backward.py::state_halved", HIDDEN),
    ("delta_gauge", "delta.py::key_path_lost", HIDDEN),
    ("first_gate", "backward.py::noisy_first_gate", HIDDEN),
    ("gate_gradients", "backward.py::last_row_dropped", HIDDEN),
    ("loss_scaling", "backward.py::constant_added", HIDDEN),
    ("bitwise_loss_scaling", "backward.py::large_gradients_rescaled", HIDDEN),
    ("exact", "values.py::values_centred", HIDDEN),
    ("strided_inputs", "memory.py::contiguous_values", HIDDEN),
    ("large_offsets", "memory.py::offsets_in_32_bits", HIDDEN),
    ("strided_cotangents", "memory.py::contiguous_cotangent", HIDDEN),
    ("token_permutation", "scores.py::rescaled_six_times", HIDDEN),
    ("default_scale", "values.py::other_default_scale", HIDDEN),
    ("infinite_gate", "values.py::infinite_differences", HIDDEN),
    ("infinite_gate", "values.py::clamped_exponents", HIDDEN),
    ("gradient_bound", "bounds.py::eps_lost_backward", HIDDEN),
)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch):
    """Check a target against some properties (all for ()), every one of them required; the results by name."""
    # Shrinking and explaining have tests of their own, and time is short.
    quick = dataclasses.replace(PROFILES["quick"], name="planted", shrink_seconds=0.0)

    def run(
        target: str,
        operator: str,
        names: Sequence[str],
        *,
        dtypes: tuple[str, ...],
        cases: int,
        long_T: tuple[int, int] = quick.long_T,
    ) -> dict:
        monkeypatch.setitem(PROFILES, "planted", dataclasses.replace(quick, cases=cases, long_T=long_T))
        required = tuple(names) or tuple(
            n for n, law in properties().items() if not law.needs & {"sanitizer", "caches"}
        )
        plan = Plan(target, operator, properties=required, require=required, profile="planted", dtypes=dtypes)
        (result,) = check(dataclasses.replace(plan, fail_fast=True), Silence())
        return {found.name: found for found in result.properties}

    return run


# Bugs that no other required law sees, so that without theirs they would pass; of other laws a bug breaks several, because a
# wrong value breaks most. Where a law has none here, its worth is where it looks: the smallest case, the better diagnosis.
ALONE = (
    ("gradient_subsets", "backward.py::frozen_key"),
    ("contract", "calls.py::float32_output"),
    ("outputs_written", "calls.py::unwritten_tail"),
    ("guard_bands", "../exploits/outputs.py::beyond_its_output"),
    ("aliasing", "../exploits/caches.py::ring_of_buffers"),
    ("plain_process", "../exploits/detection.py::by_modules"),
    ("call_sequences", "calls.py::settings_of_one_thread"),
    ("call_sequences", "calls.py::hurries_when_busy"),
    ("call_sequences", "calls.py::path_of_the_first_device"),
    ("changed_in_place", "calls.py::table_by_tensor"),
    ("causality_values", "past.py::stabilised_by_all"),
    ("containment", "parts.py::heads_by_mask"),
    ("reductions", "values.py::scalar_branch"),
    ("large_offsets", "memory.py::offsets_in_32_bits"),
    ("strided_cotangents", "memory.py::contiguous_cotangent"),
    ("token_permutation", "scores.py::rescaled_six_times"),
)
# They start processes, or call some forty times.
DEAR = {"plain_process", "form_equivalence", "call_sequences"}


def operator_of(kernel: str) -> str:
    operators = {
        "delta.py": "delta_rule",
        "scores.py": "efficient_attention",
        "bounds.py": "normalized_linear_attention",
    }
    return operators.get(kernel.partition("::")[0], "gla")


@pytest.mark.parametrize(("name", "kernel", "hidden"), BUGS, ids=[f"{name}-{kernel}" for name, kernel, _ in BUGS])
def test_a_planted_bug_breaks_its_law(judged, name: str, kernel: str, hidden: bool) -> None:
    target, operator = str(PLANTED / kernel), operator_of(kernel)
    found = judged(target, operator, (name,), dtypes=("fp32", "bf16"), cases=4)[name]
    assert found.status is Status.VIOLATION, found
    assert found.failure is not None
    assert found.failure.diagnosis
    if hidden:
        agreement = judged(target, operator, ("agreement",), dtypes=("fp32",), cases=2)["agreement"]
        assert agreement.status is Status.PASS, agreement.failure


@pytest.mark.parametrize(("name", "kernel"), ALONE, ids=[f"{name}-{kernel}" for name, kernel in ALONE])
def test_no_other_law_sees_such_a_bug(judged, name: str, kernel: str) -> None:
    """One case of every other law; as many as quick asks, of all of them, were asked when the bug was listed."""
    others = tuple(
        n
        for n, law in properties().items()
        if law.required and n not in {name, *DEAR} and not law.needs & {"sanitizer", "caches", "configurations", "long"}
    )
    found = judged(str(PLANTED / kernel), operator_of(kernel), others, dtypes=("fp32",), cases=1, long_T=(73, 80))
    assert {n: r.failure for n, r in found.items() if r.status is Status.VIOLATION} == {}
    assert sum(r.status is Status.PASS for r in found.values()) > 20  # fewer concern attention over all tokens


def test_a_correct_kernel_is_right_from_any_cache(judged) -> None:
    """The law is asked by name only; a process of its own for every question takes long."""
    found = judged(str(PLANTED / "correct.py::by_chunk"), "gla", ("compile_cache",), dtypes=("fp32",), cases=2)
    assert found["compile_cache"].status is Status.PASS, found["compile_cache"].failure
    assert found["compile_cache"].cases > 0


def test_gates_come_home_through_rounded_constants(judged) -> None:
    """A kernel to base two is exact but for its gates' gradients; held to the last bit, it was not."""
    kernel = str(PLANTED / "correct.py::by_powers_of_two")
    found = judged(kernel, "gla", ("exact",), dtypes=("fp32", "bf16"), cases=12)["exact"]
    assert found.status is Status.PASS, found.failure
    assert found.cases > 10


def test_differences_of_sums_leave_their_rounding() -> None:
    """After the last output that counts; the budget of such a residual, which all tokens share, is too near (14.7)."""
    case = parse_case("gla/B2.T33.H2.K128.V64/bf16/regime=range/cotangent=o/scale=one/seed=879")
    plan = Plan(str(PLANTED / "correct.py::prefix_sums"), "gla", properties=("causality_gradients",))
    (result,) = replay(plan, case, Silence())
    assert result.properties[0].status is Status.PASS, result.properties[0].failure


def test_nothing_of_a_case_outlives_its_session(judged) -> None:
    """Hypothesis keeps every class of state machines; one for each case kept that case's tensors for good."""
    judged(str(PLANTED / "correct.py::by_token"), "gla", ("agreement", "call_sequences"), dtypes=("fp32",), cases=1)
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is CaseTrial]


def test_every_law_has_a_planted_bug() -> None:
    # tests/test_sanitizer.py, tests/test_sweep.py and tests/test_segments.py
    on_request = {name for name, law in properties().items() if law.needs & {"sanitizer", "configurations", "long"}}
    assert {name for name, _, _ in BUGS} == set(properties()) - on_request


def test_laws_have_the_names_of_their_files_and_say_what_they_are() -> None:
    for name, law in properties().items():
        assert law.check.__module__.endswith(f".{name}")
        assert law.law.endswith(".")
        assert law.why.endswith(".")


ALLOWED = (Status.PASS, Status.NOT_APPLICABLE, Status.NOT_OFFERED)


@pytest.mark.parametrize(
    ("kernel", "operator"), [("correct.py::by_token", "gla"), ("delta.py::correct", "delta_rule")], ids=["gla", "delta"]
)
def test_a_correct_kernel_obeys_every_law(judged, kernel: str, operator: str) -> None:
    found = judged(str(PLANTED / kernel), operator, (), dtypes=("fp32", "bf16"), cases=2)
    broken = {name: result for name, result in found.items() if result.status not in ALLOWED}
    assert not broken
    assert sum(result.status is Status.PASS for result in found.values()) > len(found) / 2


IDENTITIES = (
    *("query_euler", "key_value_balance", "linear_balance", "channel_balance", "delta_gauge", "first_gate"),
    *("gate_gradients", "gate_limits", "causality_gradients", "containment", "packed"),
)


@pytest.mark.parametrize("operator", ["retention", "rwkv6", "gated_delta_rule", "kda", "rwkv7", "mamba2"])
def test_laws_hold_in_the_form_of_each_operator(judged, operator: str) -> None:
    found = judged(f"linverify.impls.torch_chunkwise:{operator}", operator, IDENTITIES, dtypes=("fp32",), cases=1)
    broken = {name: result for name, result in found.items() if result.status not in ALLOWED}
    assert not broken


def test_no_law_passes_where_everything_is_refused(judged, tmp_path: Path) -> None:
    kernel = tmp_path / "refuses.py"
    kernel.write_text(
        "def f(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):\n"
        "    if v.dtype == v.float().dtype or v.shape[-1] == 128:\n"
        "        raise ValueError('16 bits only')\n"
        "    return v\n"
    )
    found = judged(f"{kernel}::f", "gla", (), dtypes=("fp32",), cases=2)
    assert {name for name, result in found.items() if result.status in (Status.PASS, Status.VIOLATION)} == set()


@pytest.mark.parametrize(
    ("law", "target", "said"),
    [
        ("changed_borders", "calls.py::borders_by_tensor", "remembered by the tensor's identity"),
        ("changed_in_place", "../exploits/caches.py::by_pointer", "remembered by address or identity"),
    ],
)
def test_a_second_answer_that_is_stale_is_called_so(law: str, target: str, said: str) -> None:
    plan = Plan(f"{PLANTED}/{target}", "gla", profile="quick", properties=(law,))
    (result,) = check(dataclasses.replace(plan, reproducers=None), Silence())
    failure = result.properties[0].failure
    assert failure is not None
    assert said in failure.diagnosis
