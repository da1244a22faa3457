"""Sessions end to end, on small kernel files: verdicts, bad input, seeds, time, replay."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from linverify import bench
from linverify.case import parse_case
from linverify.errors import CannotCheckError, LinverifyError, UsageError
from linverify.insight import Insight
from linverify.judge import Judge
from linverify.plan import Plan
from linverify.score import Score
from linverify.session import check, replay
from linverify.verdict import Configuration, PropertyResult, Report, Status, TargetResult

KERNELS = Path(__file__).with_name("session_kernels.py")


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A copy of the kernels in a folder of its own."""
    return Path(shutil.copy(KERNELS, tmp_path / "kernels.py"))


@dataclass
class Heard:
    """A listener that takes everything down."""

    started: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    cases: list[tuple[str, str, float | None]] = field(default_factory=list)
    finished: list[PropertyResult] = field(default_factory=list)
    targets: list[TargetResult] = field(default_factory=list)

    def target_started(self, target: str, operator: str, properties: Sequence[str]) -> None:
        self.started.append((target, operator, tuple(properties)))

    def property_started(self, name: str) -> None: ...

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:
        self.cases.append((name, case_id, share))

    def property_finished(self, result: PropertyResult) -> None:
        self.finished.append(result)

    def target_finished(self, result: TargetResult) -> None:
        self.targets.append(result)

    def configuration_settled(self, found: Configuration) -> None: ...

    def note(self, text: str) -> None: ...


def plan(kernels: Path, function: str, **changes: object) -> Plan:
    """A quick look at agreement and contract in fp32."""
    usual = Plan(
        f"{kernels}::{function}",
        operator="gla",
        profile="quick",
        dtypes=("fp32",),
        properties=("agreement", "contract"),
    )
    return replace(usual, **changes)  # type: ignore[arg-type]  # field names are checked by replace


def one(asked: Plan, listener: Heard | None = None) -> TargetResult:
    (result,) = check(asked, listener or Heard())
    return result


def exit_code(*results: TargetResult) -> int:
    return Report("", {}, 0, "quick", results).exit_code


def status(result: TargetResult) -> dict[str, Status]:
    return {p.name: p.status for p in result.properties}


# Verdicts


def test_a_correct_kernel_passes(kernels: Path, tmp_path: Path) -> None:
    heard = Heard()
    dtypes = ("fp32", "bf16", "fp16")
    asked = plan(kernels, "good", dtypes=dtypes, properties=("agreement", "gradients"), reproducers=tmp_path / "r")
    result = one(asked, heard)
    assert (result.verdict, result.reason, exit_code(result)) == ("pass", "", 0)
    assert status(result) == {"agreement": Status.PASS, "gradients": Status.PASS}
    assert heard.started == [(asked.target, "gla", ("agreement", "gradients"))]
    assert tuple(heard.finished) == result.properties
    assert heard.targets == [result]
    assert all(p.required and p.cases >= 6 and p.refused == 0 and p.failure is None for p in result.properties)
    shares = [s for _, _, s in heard.cases]
    assert len(shares) == sum(p.cases for p in result.properties)
    assert all(s is not None and 0 < s < 1 for s in shares)
    assert result.cases == len({case_id for _, case_id, _ in heard.cases})
    assert {(b.result, b.dtype) for b in result.budget} >= {(r, d) for r in ("o", "dg", "dq") for d in dtypes}
    assert all(0 < b.worst < 1 and b.precision_class == b.dtype for b in result.budget)
    assert max(b.worst for b in result.budget) == max(p.worst_budget_fraction or 0 for p in result.properties)
    assert set(result.seconds) >= {"import", "target", "reference", "judge", "total"}
    assert not (tmp_path / "r").exists()


def test_only_the_verdict_may_be_asked(kernels: Path) -> None:
    laws = ("contract", "agreement", "gradients")
    whole, fast = (one(plan(kernels, "ragged", properties=laws, fail_fast=fast)) for fast in (False, True))
    assert whole.verdict == fast.verdict == "violation"
    assert whole.insight != Insight() == fast.insight
    assert status(fast) == {**status(whole), "gradients": Status.UNCHECKED}
    contract, agreement, gradients = fast.properties
    assert contract == replace(whole.properties[0], seconds=contract.seconds)
    assert gradients.note == "the first violation ended it"
    assert agreement.failure is not None
    assert agreement.failure.case_id == agreement.failure.original_case_id


def test_without_a_violation_fail_fast_asks_everything(kernels: Path) -> None:
    result = one(plan(kernels, "good", fail_fast=True))
    assert (result.verdict, set(status(result).values())) == ("pass", {Status.PASS})


def test_a_planted_bug_is_found_and_shrunk(kernels: Path, tmp_path: Path) -> None:
    result = one(plan(kernels, "ragged", reproducers=tmp_path / "r"))
    assert (result.verdict, exit_code(result)) == ("violation", 1)
    assert status(result) == {"agreement": Status.VIOLATION, "contract": Status.PASS}
    failure = result.properties[0].failure
    assert failure is not None
    shrunk, original = parse_case(failure.case_id), parse_case(failure.original_case_id)
    assert 16 < shrunk.T <= min(33, original.T)
    assert (shrunk.B, shrunk.H, shrunk.gate, shrunk.state) == (1, 1, "none", "absent")
    assert failure.sizes == {a: getattr(shrunk, a) for a in "BTHKV"}
    assert (failure.evidence.kind, failure.evidence.result) == ("wrong_value", "o")
    assert failure.evidence.share > 1
    assert failure.evidence.expected is not None
    assert failure.evidence.got is not None
    assert failure.evidence.got / failure.evidence.expected == pytest.approx(1.5, rel=1e-3)
    assert failure.location.first_bad_t == shrunk.T // 16 * 16
    assert "T=16 and T=32 are right" in failure.diagnosis
    assert "T=17 and T=17" not in failure.diagnosis
    assert Path(failure.reproducer).is_file()
    assert Path(failure.reproducer).parent == tmp_path / "r"
    assert "def main" in Path(failure.reproducer).read_text()


def test_every_declared_function_is_checked(kernels: Path) -> None:
    results = check(plan(kernels, "x", target=str(kernels), operator=None, properties=("contract",)), Heard())
    assert [(r.target, r.form, r.backend, r.verdict) for r in results] == [
        (f"{kernels}::first", "recurrent", "torch", "pass"),
        (f"{kernels}::marked", "", "triton", "pass"),
    ]


@pytest.mark.parametrize(
    ("function", "law", "kind"),
    [
        ("three", "agreement", "wrong_length"),
        ("short", "agreement", "wrong_shape"),
        ("wide", "contract", "wrong_dtype"),
        ("listed", "agreement", "wrong_type"),
        ("nan", "agreement", "not_finite"),
        ("segfault", "agreement", "crash"),
        ("leaves", "agreement", "exit"),
    ],
)
def test_bad_results_are_violations(kernels: Path, function: str, law: str, kind: str) -> None:
    result = one(plan(kernels, function, properties=(law,)))
    assert (result.verdict, exit_code(result)) == ("violation", 1)
    failure = result.properties[0].failure
    assert failure is not None
    assert failure.evidence.kind == kind
    assert failure.diagnosis
    if kind == "crash":
        assert failure.sizes["T"] == 5  # shrunk like any other failure
        assert "SIGSEGV" in failure.evidence.message


def test_a_hang_is_a_violation(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "HANG_SECONDS", 1.0)
    result = one(plan(kernels, "hangs", properties=("agreement",)))
    failure = result.properties[0].failure
    assert failure is not None
    assert failure.evidence.kind == "hang"
    assert "no answer after" in failure.evidence.message
    assert result.verdict == "violation"


def test_a_target_that_refuses_everything_could_not_be_checked(kernels: Path) -> None:
    result = one(plan(kernels, "refuses"))
    assert (result.verdict, exit_code(result)) == ("unchecked", 3)
    assert result.reason == "the target refused every case"
    assert set(status(result).values()) == {Status.REFUSED}
    (refusal,) = result.refusals
    assert (refusal.kind, refusal.message) == ("ValueError", "no kernel for this head size")
    assert refusal.count == sum(p.refused for p in result.properties) > 3
    assert parse_case(refusal.case_id).T == 1


def test_a_refused_size_is_a_limitation(kernels: Path) -> None:
    result = one(plan(kernels, "refuses_long"))
    assert result.verdict == "pass"
    assert all(p.refused for p in result.properties)
    assert any(p.cases for p in result.properties)
    assert parse_case(result.refusals[0].case_id).T > 16


def test_a_near_thing_is_marginal_and_no_violation(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Judge.scores

    def near(self: Judge, *asked: Any) -> Iterator[tuple[str, Score]]:
        for name, score in plain(self, *asked):
            yield name, replace(score, outcome="marginal", share=0.9)

    monkeypatch.setattr(Judge, "scores", near)
    result = one(plan(kernels, "good", properties=("agreement",)))
    assert (result.verdict, exit_code(result)) == ("pass", 0)
    (found,) = result.properties
    assert (found.status, found.worst_budget_fraction) == (Status.MARGINAL, 0.9)
    assert found.failure is not None
    assert found.failure.evidence.share == 0.9


def test_a_reported_property_decides_where_it_is_required() -> None:
    target = str(Path(__file__).parent / "planted" / "calls.py") + "::any_order"
    asked = Plan(target, operator="gla", profile="quick", dtypes=("fp32",), properties=("bitwise_repeatable",))
    assert status(one(asked)) == {"bitwise_repeatable": Status.REPORTED}
    for stricter in (replace(asked, require=asked.properties), replace(asked, claims={"deterministic": "true"})):
        assert one(stricter).verdict == "violation"


# What cannot be checked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "{folder}/absent.py::f"}, "absent.py"),
        ({"target": "{folder}/broken.py::f"}, "syntax"),
        ({"target": "{kernels}::goood"}, "did you mean 'good'"),
        ({"target": "{kernels}::needs_more"}, "page_table"),
        ({"target": ""}, "no target"),
        ({"operator": "gated_delta_rul"}, "did you mean 'gated_delta_rule'"),
        ({"operator": None}, "pass --op"),
        ({"operator": "delta_rule"}, "beta"),
        ({"operator_parameters": {"eps": "1"}}, "no parameter 'eps'"),
        ({"properties": ("agreemnt",)}, "did you mean 'agreement'"),
        ({"profile": "quik"}, "did you mean 'quick'"),
        ({"settings": {"bias": 1}}, "bias"),
    ],
)
def test_what_cannot_be_understood(kernels: Path, changes: dict[str, object], message: str) -> None:
    (kernels.parent / "broken.py").write_text("def f(:\n")
    text = changes.get("target")
    if isinstance(text, str):
        changes = {**changes, "target": text.format(folder=kernels.parent, kernels=kernels)}
    with pytest.raises(UsageError, match=message) as found:
        check(plan(kernels, "good", **changes), Heard())
    assert found.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("raise RuntimeError('no GPU here')", "no GPU here"), ("import not_there_at_all", "not_there_at_all")],
)
def test_an_import_that_fails_cannot_be_checked(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "k.py").write_text(text)
    with pytest.raises(CannotCheckError, match=message) as found:
        check(plan(tmp_path / "k.py", "f"), Heard())
    assert found.value.exit_code == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_device_that_is_not_there_cannot_be_checked(kernels: Path) -> None:
    with pytest.raises(LinverifyError, match="--device cpu") as found:
        check(plan(kernels, "good", device="cuda:0"), Heard())
    assert found.value.exit_code == 3


def test_too_little_time_leaves_it_unchecked(kernels: Path) -> None:
    result = one(plan(kernels, "good", time=0.0))
    assert (result.verdict, exit_code(result), result.cases) == ("unchecked", 3, 0)
    assert "time ran out" in result.reason
    assert set(status(result).values()) == {Status.UNCHECKED}


# The same seed, other dtypes, claims


def test_the_seed_decides_the_cases(kernels: Path) -> None:
    def cases(seed: int) -> list[tuple[str, str, float | None]]:
        heard = Heard()
        one(plan(kernels, "good", seed=seed), heard)
        return heard.cases

    first = cases(0)
    assert first == cases(0)
    assert {c for _, c, _ in first} != {c for _, c, _ in cases(1)}


def test_gradients_that_are_not_offered(kernels: Path) -> None:
    laws = ("agreement", "gradients", "query_euler")
    result = one(plan(kernels, "forward_only", properties=laws))
    assert result.verdict == "pass"
    assert status(result) == dict(zip(laws, (Status.PASS, Status.NOT_OFFERED, Status.NOT_OFFERED), strict=True))
    assert "no gradient" in result.properties[1].note
    assert result.properties[1].cases == 0


def test_a_capability_that_the_signature_lacks_is_not_offered(kernels: Path) -> None:
    result = one(plan(kernels, "ragged", properties=("state_passing", "packed", "default_scale")))
    assert set(status(result).values()) == {Status.NOT_OFFERED}
    assert "initial_state" in result.properties[0].note
    assert "cu_seqlens" in result.properties[1].note
    assert result.verdict == "unchecked"


def test_replay_gives_the_same_verdict(kernels: Path) -> None:
    heard = Heard()
    result = one(plan(kernels, "ragged", properties=("agreement",)), heard)
    failure = result.properties[0].failure
    assert failure is not None
    asked = plan(kernels, "ragged", properties=("agreement",))
    (again,) = replay(asked, parse_case(failure.case_id), Heard())
    assert again.verdict == "violation"
    repeated = again.properties[0].failure
    assert repeated is not None
    assert (repeated.case_id, repeated.evidence) == (failure.case_id, failure.evidence)
    passed = next(c for _, c, share in heard.cases if share is not None and share < 1)
    (fine,) = replay(asked, parse_case(passed), Heard())
    assert (fine.verdict, fine.cases) == ("pass", 1)


def test_fp64_on_request(kernels: Path) -> None:
    result = one(plan(kernels, "good", dtypes=("fp64",), properties=("agreement", "gradients")))
    assert result.verdict == "pass"
    assert {b.dtype for b in result.budget} == {"fp64"}
    assert {b.precision_class for b in result.budget} == {"fp64"}
    assert one(plan(kernels, "single", dtypes=("fp32",), properties=("agreement",))).verdict == "pass"


def test_fp32_is_ieee_on_a_cpu_whether_claimed_or_not(kernels: Path) -> None:
    plain, claimed = Heard(), Heard()
    first = one(plan(kernels, "good"), plain)
    second = one(plan(kernels, "good", claims={"fp32": "ieee"}), claimed)
    assert plain.cases == claimed.cases
    assert {b.precision_class for b in (*first.budget, *second.budget)} == {"fp32"}
    truncated = one(plan(kernels, "good", dtypes=("tf32",)))
    assert {b.precision_class for b in truncated.budget} == {"tf32"}


def test_bf16_of_a_triton_target_is_unchecked_on_a_cpu(kernels: Path) -> None:
    heard = Heard()
    both = one(plan(kernels, "marked", dtypes=("fp32", "bf16"), properties=("agreement",)), heard)
    assert both.verdict == "pass"
    assert both.backend == "triton"
    assert any("bf16 is unchecked" in n for n in both.notes)
    assert {parse_case(c).dtype for _, c, _ in heard.cases} == {"fp32"}
    alone = one(plan(kernels, "marked", dtypes=("bf16",), properties=("agreement",)))
    assert (alone.verdict, exit_code(alone)) == ("unchecked", 3)
    assert status(alone) == {"agreement": Status.UNCHECKED}
