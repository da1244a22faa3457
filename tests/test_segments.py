"""Long sequences in segments: the reference is the whole one's, realisations carry their errors, and faults are found."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from linverify import long_cases, registry, session
from linverify.case import Case
from linverify.draw import problem
from linverify.errors import EmptyCaseSpace
from linverify.judge import Judge
from linverify.long_trial import asked
from linverify.membership import outside
from linverify.operator import Operator
from linverify.plan import Plan
from linverify.problem import Fault, Problem, Refused
from linverify.profile import profile
from linverify.realising import Realising
from linverify.recipe import exact, family
from linverify.reference.chunkwise import chunkwise
from linverify.rule import GENERIC
from linverify.segments import backward, cut, forward, part, segmentable, timed
from linverify.statistics import axes_of
from linverify.streamed import Stream
from linverify.verdict import Status
from tests.test_session import Heard

CPU = torch.device("cpu")
SEGMENT, T = 32, 70
SERVED = ("delta_rule", "dplr", "gated_delta_rule", "gla", "hgrn2", "kda", "lightning_attention", "linear_attention")
SERVED += ("mamba2", "retention", "rwkv5", "rwkv6", "rwkv7", "simple_gla", "iplr")


def posed(name: str, dtype: str = "fp32", tokens: int = T, **fields: object) -> tuple[Operator, Problem]:
    operator = registry.operator(name)
    gate = "tiny" if operator.gated else "none"
    given = {"gate": gate, "state": "normal", "final_state": True, "cotangent": "both", **fields}
    return operator, problem(Case(name, 1, tokens, 2, 8, 6, dtype=dtype, **given), operator)  # type: ignore[arg-type]


def joined(operator: Operator, found: list[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Results of all segments, given from the last to the first, as of the whole."""
    names = found[0][1]
    whole = {"state": found[0][1]["state"], "dinitial_state": found[-1][1]["dinitial_state"]}
    for name in names:
        parts = [results[name] for _, results in reversed(found)]
        if timed(operator, name):
            axes = operator.o_axes if name == "o" else operator.input(name[1:]).axes
            whole[name] = torch.cat(parts, parts[0].dim() - len(axes) + axes.index("T"))
        elif name not in whole:
            whole[name] = torch.stack(parts).sum(0)
    return whole


@pytest.mark.parametrize("piece", [SEGMENT, 8])
@pytest.mark.parametrize("name", SERVED)
def test_the_streamed_reference_is_the_whole_one(name: str, piece: int) -> None:
    operator, whole = posed(name)
    assert segmentable(operator) == ""
    passed = list(forward(whole, operator, CPU, SEGMENT, piece))
    assert [s.pieces.grid.pieces for s in passed] == [SEGMENT // piece, SEGMENT // piece, 1]
    streamed = joined(operator, [(s.number, s.reference) for s in backward(whole, operator, passed, CPU)])
    for result, expected in chunkwise(whole, operator).items():
        torch.testing.assert_close(streamed[result], expected, rtol=1e-13, atol=1e-13 * float(expected.abs().max()))


def test_what_cannot_be_cut_says_why() -> None:
    assert "not a recurrence" in segmentable(registry.operator("softmax_attention"))
    assert "not a recurrence" in segmentable(registry.operator("normalized_linear_attention"))
    gla = registry.operator("gla")

    def placed(x, sizes):  # type: ignore[no-untyped-def]
        c = gla.recurrence(x, sizes)
        return replace(c, k=c.k * torch.arange(1, sizes["T"] + 1)[None, :, None, None])

    assert "where it stands" in segmentable(replace(gla, canonical=placed))


def realised(name: str, stack, seed: int = 5, dtype: str = "bf16", tokens: int = T, lengths=(SEGMENT, SEGMENT)):  # type: ignore[no-untyped-def]
    """Errors of one member a segment, and the exact results, through the whole sequence."""
    operator, whole = posed(name, dtype, tokens)
    judge = Judge(operator, "cpu")
    running = Realising(stack, GENERIC, seed, CPU)
    passed = []
    for s in forward(whole, operator, CPU, *lengths):
        passed.append(s)
        running.forward(s)
    errors, exactly = [], []
    for s in backward(whole, operator, passed, CPU):
        found = running.backward(s, judge.gates(whole), set(s.reference))
        errors.append((s.number, {n: e for m in reversed(found) for n, e in m.train.items()}))
        exactly.append((s.number, s.reference))
    return operator, whole, running, joined(operator, errors), joined(operator, exactly)


@pytest.mark.parametrize("piece", [SEGMENT, 8])
@pytest.mark.parametrize("name", ["gla", "rwkv6", "gated_delta_rule", "rwkv7", "mamba2", "delta_rule"])
def test_realisations_that_round_nowhere_are_the_reference(name: str, piece: int) -> None:
    """Every hand-over is right, those of gate gradients summed from the end and of shared gradients included."""
    operator, whole, running, errors, exactly = realised(name, (exact(16),), lengths=(SEGMENT, piece))
    shared = {
        n: t for n, t in exactly.items() if n.startswith("d") and n != "dinitial_state" and not timed(operator, n)
    }
    if shared:
        errors |= {n: e for m in running.shared(shared) for n, e in m.train.items()}
    assert errors.keys() == chunkwise(whole, operator).keys()
    for result, error in errors.items():
        assert float(error.abs().max()) <= 1e-5 * float(exactly[result].abs().max()), result


@pytest.mark.parametrize("lengths", [(SEGMENT, SEGMENT), (128, 32), (512, 64)], ids=str)
@pytest.mark.parametrize("name", ["gla", "delta_rule", "rwkv7"])
def test_errors_are_carried_as_far_as_in_a_whole_run(name: str, lengths: tuple[int, int]) -> None:
    stack = family("bf16")[0]
    sizes: list[dict[str, float]] = []
    for cuts in (lengths, (512, 512)):  # in parts, and in one
        found = [realised(name, stack, seed, tokens=512, lengths=cuts)[3] for seed in range(3)]
        sizes.append({n: float(torch.stack([f[n].square().mean() for f in found]).mean().sqrt()) for n in found[0]})
    for result, whole in sizes[1].items():
        assert 0.8 < sizes[0][result] / whole < 1.25, result


def given(operator: Operator, whole: Problem) -> dict[str, Tensor]:
    """What an honest float32 kernel gives."""
    rounded = {n: t.float() for n, t in chunkwise(whole, operator).items()}
    return {
        n: t * (1 + 2**-24 * torch.randn(t.shape, generator=torch.Generator().manual_seed(3)))
        for n, t in rounded.items()
    }


def lost_at_a_boundary(operator: Operator, whole: Problem, found: dict[str, Tensor]) -> None:
    late = cut(whole, operator, 48, T, None, backward=False)
    found["o"][:, 48:] = chunkwise(late, operator)["o"].float()


def late_gate(_: Operator, __: Problem, found: dict[str, Tensor]) -> None:
    found["dw"][:, 40:] = found["dw"][:, 39:-1].clone()


def half_summed(_: Operator, __: Problem, found: dict[str, Tensor]) -> None:
    found["du"] *= 0.999


def wrong_start(_: Operator, __: Problem, found: dict[str, Tensor]) -> None:
    found["dinitial_state"] *= 1.001


def overflowed(_: Operator, __: Problem, found: dict[str, Tensor]) -> None:
    found["dq"][:, -1, 0, 0] = torch.nan


FAULTS = {lost_at_a_boundary: "o", late_gate: "dw", half_summed: "du", wrong_start: "dinitial_state", overflowed: "dq"}


PIECES = pytest.mark.parametrize("piece", [SEGMENT, 16])


@PIECES
def test_an_honest_result_passes(piece: int) -> None:
    operator, whole = posed("rwkv6")
    stream = Stream(Judge(operator, "cpu"), whole, given(operator, whole), "fp32", segment=SEGMENT, piece=piece)
    peaks = stream.judged()
    assert set(peaks) == set(chunkwise(whole, operator))
    assert {p.score.outcome for p in peaks.values()} == {"pass"}


@PIECES
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_found_in_its_result_and_its_segment(fault, piece: int) -> None:  # type: ignore[no-untyped-def]
    operator, whole = posed("rwkv6")
    found = given(operator, whole)
    fault(operator, whole, found)
    peaks = Stream(Judge(operator, "cpu"), whole, found, "fp32", segment=SEGMENT, piece=piece).judged()
    wrong = {n for n, p in peaks.items() if p.score.outcome == "reject"}
    assert wrong == {FAULTS[fault]}
    begins = {"o": (32, 64), "dw": (32, 64), "dq": (64,)}.get(FAULTS[fault], (0,))
    assert peaks[FAULTS[fault]].start in begins


MEMORY = """
from pathlib import Path

from linverify.realising import Realising
from linverify.judge import Judge
from linverify.streamed import Stream
from tests.test_segments import given, posed


def status(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(word))


def peak(tokens):
    operator, whole = posed("simple_gla", "bf16", tokens, gate="none")
    found = {n: t if n in ("state", "dinitial_state", "dg") else t.bfloat16() for n, t in given(operator, whole).items()}
    stream = Stream(Judge(operator, "cpu"), whole, found, "bf16", segment=1024, piece=256)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    held = status("VmRSS")
    assert {p.score.outcome for p in stream.judged().values()} == {"pass"}
    return status("VmHWM") - held


peak(2048)
print(peak(2048), peak(16384))
kept, right = [], Realising.backward
Realising.backward = lambda *given: (kept.append(right(*given)), kept[-1])[1]
print(peak(16384))
"""


def test_memory_does_not_grow_with_the_sequence() -> None:
    """MiB beyond the tensors that are judged: of 2048 tokens, of 16384, and of as many where the errors drawn are kept."""
    # what is freed goes back to the system at once, so that the peak is that of what lives
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    words = [sys.executable, "-c", MEMORY]
    home = Path(__file__).resolve().parents[1]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=home, check=False)
    assert done.returncode == 0, done.stderr
    short, long, kept = map(float, done.stdout.split())
    assert long < short + 20 < kept - 20, done.stdout


def test_the_reference_of_a_rejected_result_is_held_to_the_next_rung() -> None:
    operator, whole = posed("rwkv6")
    found = given(operator, whole)
    late_gate(operator, whole, found)
    stream = Stream(Judge(operator, "cpu"), whole, found, "fp32", segment=SEGMENT)
    assert 0 < stream.certified("dw", stream.judged()["dw"]) < 1e-3


def test_a_part_of_a_result_is_its_tokens() -> None:
    operator, whole = posed("gla")
    assert part(operator, "dq", whole.tensors["q"], 32, 64).shape[1] == 32
    assert part(operator, "state", torch.zeros(3), 32, 64).shape == (3,)
    assert axes_of(operator.o_axes).letters == "BTHV"


def test_as_many_tokens_as_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gla = registry.operator("gla")
    case = Case("gla", 1, 8192, 2, 64, 64, dtype="bf16", state="normal", final_state=True, cotangent="both")
    for device in ("cpu", "cuda:0"):
        monkeypatch.setattr(long_cases, "_room", lambda _: (2**45, 2**45))
        assert long_cases.tokens(case, gla, 2**20, device) == 2**20
        monkeypatch.setattr(long_cases, "_room", lambda _: (2**45, 2**32))
        assert 2**13 <= long_cases.tokens(case, gla, 2**20, device) < 2**20
        monkeypatch.setattr(long_cases, "_room", lambda _: (2**45, 2**20))
        with pytest.raises(EmptyCaseSpace, match="no memory"):
            long_cases.tokens(case, gla, 2**20, device)
    monkeypatch.setattr(long_cases, "_room", lambda _: (2**32, 2**45))
    assert long_cases.tokens(case, gla, 2**20, "cuda:0") < 2**20


@pytest.mark.parametrize(("kind", "raised"), [("out_of_memory", Refused), ("hang", Refused), ("crash", Fault)])
def test_no_memory_or_time_for_so_many_tokens_is_a_limitation(kind: str, raised: type[Exception]) -> None:
    class Trial:
        problem = None

        class bench:
            @staticmethod
            def run(*_: object, **__: object) -> None:
                raise Fault(kind, "")

    with pytest.raises(raised):
        asked(Trial())  # type: ignore[arg-type]


KERNELS = """
import torch

import linverify
from linverify.impls.torch_chunkwise import gla as right

@linverify.kernel("gla")
def gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    o, state = right(q, k, v, g, scale=scale, initial_state=initial_state, output_final_state=True)
    return o, state if output_final_state else None

@linverify.kernel("gla")
def wraps(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    o, state = gla(q, k, v, g, scale, initial_state, True)
    if q.shape[1] > 3000:  # the offset of a long sequence wraps
        o = o + (o.index_copy(1, torch.arange(2900, 2904), o[:, 100:104]) - o).detach()
    return o, state if output_final_state else None
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(long_cases, "SHORTEST", 4096)
    monkeypatch.setattr(long_cases, "HEADS", 1)
    monkeypatch.setattr(long_cases, "WIDTH", 8)
    monkeypatch.setattr(long_cases, "tokens", lambda *_: 4096)
    path = tmp_path / "kernels.py"
    path.write_text(KERNELS)
    return path


def test_a_session_judges_a_long_sequence_in_segments(small: Path) -> None:
    plan = Plan(f"{small}::wraps", dtypes=("fp32",), properties=("long_sequences",), profile="quick", long=True)
    (wrong,) = session.check(plan, Heard())
    (law,) = wrong.properties
    assert wrong.verdict == "violation"
    assert law.failure is not None
    assert law.failure.location.first_bad_t == 2900
    assert "t 2900-2903 of 4096" in law.failure.location.times
    assert law.failure.evidence.result == "o"
    (right,) = session.check(replace(plan, target=f"{small}::gla"), Heard())
    assert (right.verdict, right.properties[0].cases) == ("pass", 1)


def test_a_long_case_is_replayed_under_its_own_law_alone() -> None:
    gla, laws = registry.operator("gla"), registry.properties()
    for tokens, expected in ((2**20, {"long_sequences"}), (8192, {"long_sequences", "gradients"}), (64, {"gradients"})):
        case = Case(
            "gla", 1, tokens, 2, 64, 64, dtype="bf16", gate="tiny", state="normal", cotangent="both", final_state=True
        )
        known = {n for n in ("long_sequences", "gradients") if not outside(case, laws[n].space, gla)}
        assert known == expected


def test_it_is_asked_on_request_only(small: Path) -> None:
    plan = Plan(f"{small}::gla", dtypes=("fp32",), properties=("long_sequences",), profile="quick")
    (result,) = session.check(plan, Heard())
    (law,) = result.properties  # as an item of pytest asks
    assert law.status is Status.NOT_OFFERED
    assert "thorough" in law.note
    assert profile("thorough").gpu_streamed_T == 2**20
