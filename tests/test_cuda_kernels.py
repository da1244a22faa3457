"""The kernels in CUDA C++: the CPU build of their sources against the float64 references, and on a GPU where there is one."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linverify import draw
from linverify.case import Case
from linverify.cli import main
from linverify.impls import _compiled, cuda_causal_product, cuda_rwkv6, cuda_selective_scan
from linverify.impls._compiled import CompileError, Unit
from linverify.operator import Operator
from linverify.plan import Plan
from linverify.problem import Problem
from linverify.profile import PROFILES
from linverify.reference import stepwise
from linverify.registry import operator
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import Status
from tests.kinds import suited
from tests.test_forms import bounds, disagreements

ROOT = Path(__file__).resolve().parents[1]
KERNELS: dict[str, tuple[str, Callable[..., Any]]] = {
    "one_block_per_head": ("causal_product", cuda_causal_product.one_block_per_head),
    "low_occupancy": ("causal_product", cuda_causal_product.low_occupancy),
    "causal_product": ("causal_product", cuda_causal_product.causal_product),
    "rwkv6": ("rwkv6", cuda_rwkv6.rwkv6),
    "selective_scan": ("mamba1", cuda_selective_scan.selective_scan),
}
UNITS = {
    "causal_product.cu": (("WIDTH", 20),),
    "rwkv6.cu": (("KEYS", 20), ("VALUES", 12)),
    "selective_scan.cu": (("KEYS", 5),),
}
# Around the tile of 16 tokens, the segment of 64 and the chunk of 128.
LENGTHS = (1, 15, 16, 17, 64, 65, 130)
DEVICES = [
    "cpu",
    pytest.param("cuda:0", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]

pytestmark = pytest.mark.skipif(_compiled.cxx() is None, reason="needs a C++ compiler")


def run(function: Callable[..., Any], problem: Problem, op: Operator, device: str) -> dict[str, Tensor]:
    """Call a kernel and name its results as a reference does."""
    given = {n: t.to(device, copy=True).requires_grad_(n in problem.wrt) for n, t in problem.tensors.items()}
    leaves = dict(given)
    keywords: dict[str, Any] = {}
    if op.state_axes:
        keywords = {"scale": problem.scale, "output_final_state": problem.final_state}
        if problem.initial_state is not None:
            leaves["initial_state"] = problem.initial_state.to(device, copy=True).requires_grad_()
            keywords["initial_state"] = leaves["initial_state"]
        if problem.lengths:
            keywords["cu_seqlens"] = torch.tensor([0, *problem.lengths], device=device).cumsum(0)
    returned = function(**given, **keywords)
    o, state = returned if isinstance(returned, tuple) else (returned, None)
    results = {"o": o.detach()} | ({"state": state.detach()} if state is not None else {})
    outputs = {"o": o, "state": state}
    if problem.cotangents:
        grads = torch.autograd.grad(
            [outputs[n] for n in problem.cotangents],
            [leaves[n] for n in problem.wrt],
            [x.to(device) for x in problem.cotangents.values()],
        )
        results |= {f"d{n}": g for n, g in zip(problem.wrt, grads, strict=True)}
    return {n: x.cpu() for n, x in results.items()}


def problems(op: Operator, gate: str, T: int) -> Iterator[Problem]:
    """A dense batch, and packed sequences, empty ones and one of length 1 included."""
    case = Case(
        op.name, 2, T, 3, 7, 37, 0, "fp64", gate=gate, state="normal", final_state=True, cotangent="both", seed=T
    )
    scale = "other" if op.state_axes else "default"
    yield draw.problem(suited(case.with_(scale=scale), op), op)
    if op.state_axes and T > 1:
        packed = case.with_(B=1, lengths=(T // 2, 0, 1, T - T // 2 - 1), scale=scale)
        yield draw.problem(suited(packed, op), op)


def wrong(name: str, device: str, *, gate: str = "mild", lengths: tuple[int, ...] = LENGTHS) -> list[str]:
    """What differs from the stepwise float64 reference by more than roundings of float64."""
    op, function = operator(KERNELS[name][0]), KERNELS[name][1]
    found = []
    for T in lengths:
        for problem in problems(op, gate, T):
            expected = stepwise(problem, op)
            got = run(function, problem, op, device)
            found += [
                f"T={T} {problem.lengths} {text}"
                for text in disagreements(got, expected, bounds(problem, op, expected))
            ]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "gate"), [(n, g) for n in KERNELS for g in ("mild", "strong", "reset")])
def test_in_float64_a_kernel_is_its_operator(name: str, gate: str, device: str) -> None:
    if gate == "mild" or operator(KERNELS[name][0]).gated:
        assert not wrong(name, device, gate=gate)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KERNELS)
def test_the_judge_finds_nothing(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(PROFILES["quick"], cases=2, shrink_seconds=0.0, climb_seconds=0.0, insight_seconds=0.0)
    # each is another build; of a selective scan, the judge takes every channel for a head
    widths = ((12, 7), (20, 36)) if name != "selective_scan" else ((3, 9), (5, 6))
    monkeypatch.setitem(PROFILES, "few", replace(quick, name="few", widths=widths, compiled_widths=widths))
    laws = ("agreement", "gradients", "contract", "state_passing", "packed", "bitwise_repeatable", "containment")
    target = f"{KERNELS[name][1].__module__}:{name}"
    plan = Plan(target, device=device, dtypes=("fp32", "bf16", "fp16"), properties=laws, profile="few")
    (found,) = check(plan, Silence())
    assert found.verdict == "pass", [p.failure for p in found.properties if p.failure]
    stateful = bool(operator(KERNELS[name][0]).state_axes)
    wanted = [n for n in laws if stateful or n not in ("state_passing", "packed")]
    others = {p.name: (p.status, p.notes) for p in found.properties if p.name in wanted and p.status is not Status.PASS}
    assert not others
    assert {p.name for p in found.properties if p.status is Status.PASS} == set(wanted)
    assert not found.refusals


PLANTED = {
    "a barrier before the tile is read": (
        "one_block_per_head",
        "causal_product.cu",
        "column < columns);\n            __syncthreads();",
        "column < columns);",
    ),
    "a sum over half of the lanes": ("low_occupancy", "device.h", "apart = WARP / 2", "apart = WARP / 4"),
    "the last row of a state": ("low_occupancy", "causal_product.cu", "if (e < WIDTH) {", "if (e < WIDTH - 1) {"),
    "the bonus in dv": ("rwkv6", "rwkv6.cu", "(grad[i] + bonus[0][i] * read)", "grad[i]"),
    "the final state's gradient in dw": ("rwkv6", "rwkv6.cu", "dfinal[s.state + row * VALUES + j]", "0"),
    "the kept state of the segment": ("rwkv6", "rwkv6.cu", "step / SEGMENT) * H", "0 * step) * H"),
    "the order of two maps": (
        "selective_scan",
        "selective_scan.cu",
        "second.decay * first.write + second.write",
        "first.decay * second.write + first.write",
    ),
    "the path through the decay": ("selective_scan", "selective_scan.cu", "dstep[i] += rate * decay_grad;", ""),
    "one warp's share of dB": ("selective_scan", "selective_scan.cu", "int other = 0;", "int other = 1;"),
}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the sources that builds are made from, and a cache of its own."""
    folder = tmp_path / "cuda"
    shutil.copytree(_compiled.FOLDER, folder)
    monkeypatch.setattr(_compiled, "FOLDER", folder)
    monkeypatch.setenv("LINVERIFY_CACHE_DIR", str(tmp_path / "cache"))
    _compiled._library.cache_clear()
    yield folder
    _compiled._library.cache_clear()


@pytest.mark.parametrize("fault", PLANTED)
def test_what_is_left_out_of_a_source_shows(fault: str, sources: Path) -> None:
    name, file, right, planted = PLANTED[fault]
    text = (sources / file).read_text()
    assert text.count(right) == 1
    (sources / file).write_text(text.replace(right, planted))
    assert wrong(name, "cpu", lengths=(130,))


def test_threads_that_miss_a_barrier_are_an_error_and_no_hang(sources: Path) -> None:
    path = sources / "causal_product.cu"
    path.write_text(
        path.read_text().replace("__syncthreads();  // nobody", "if (column < columns) __syncthreads();  // nobody")
    )
    with pytest.raises(RuntimeError, match=r"one_block of .* failed on the CPU: not every thread reached a barrier"):
        cuda_causal_product.one_block_per_head(*(torch.ones(1, 1, 5, 4) for _ in "QKV"))


def one_line(caught: pytest.ExceptionInfo[CompileError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def unit(file: str = "rwkv6.cu", dtype: torch.dtype = torch.float32) -> Unit:
    return Unit(file, dtype, UNITS[file])


def build(file: str = "rwkv6.cu") -> None:
    _compiled._library(unit(file), torch.device("cpu"))


def test_a_source_with_an_error_is_one_line(sources: Path) -> None:
    (sources / "rwkv6.cu").write_text("#include <nowhere.h>\nint x = y;\n")
    with pytest.raises(CompileError) as caught:
        build()
    assert "does not compile rwkv6.cu (-DFP32 -DKEYS=20 -DVALUES=12): " in one_line(caught)
    assert "nowhere.h" in str(caught.value)
    assert not list((sources.parent / "cache" / "kernels").glob("*.so"))


@pytest.mark.usefixtures("sources")
def test_no_compiler_is_one_line_and_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "nocc")
    with pytest.raises(CompileError) as caught:
        build()
    assert "rwkv6.cu needs a C++ compiler to run on the CPU, and CXX=nocc is not there" in one_line(caught)
    target = "linverify.impls.cuda_causal_product:low_occupancy"
    assert main(["check", target, "--device", "cpu", "--profile", "quick", "--property", "contract"]) == 3
    output = " ".join("".join(capfd.readouterr()).split())
    assert "Traceback" not in output
    assert "C++ compiler" in output


def test_with_no_compiler_at_all_a_kernel_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _compiled.absent() == ""
    monkeypatch.setenv("CXX", "nocc")
    monkeypatch.setattr(_compiled, "find_spec", lambda _: None)
    assert "pip install 'linverify[cuda]'" in _compiled.absent()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LINVERIFY_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CompileError, match="set LINVERIFY_CACHE_DIR to a folder that can be written to") as caught:
        _compiled.kept(unit().named("", ".so"), lambda _: None)
    one_line(caught)


SLOW = """#!/bin/sh
[ "$1" = --version ] && exec {compiler} "$@"
echo build >> {log}
sleep 1
exec {compiler} "$@"
"""
BUILD = """
import torch
from linverify.impls.cuda_causal_product import low_occupancy
print(float(low_occupancy(*(torch.ones(1, 1, 3, 2) for _ in "QKV")).sum()))
"""


def test_processes_that_need_the_same_build_make_it_once(tmp_path: Path) -> None:
    compiler, log = tmp_path / "slow", tmp_path / "log"
    compiler.write_text(SLOW.format(compiler=_compiled.cxx(), log=log))
    compiler.chmod(compiler.stat().st_mode | stat.S_IEXEC)
    env = {**os.environ, "CXX": str(compiler), "LINVERIFY_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", BUILD], env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    # the sum of j + 1 over three tokens, two keys wide, in two columns
    assert [p.communicate(timeout=120)[0].strip() for p in running] == ["24.0"] * 3
    assert log.read_text().split() == ["build"]


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("file", UNITS)
def test_nvrtc_compiles_every_source_without_a_gpu(file: str, dtype: torch.dtype) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    from linverify.impls._nvrtc import compiled

    code = compiled(unit(file, dtype), "sm_90")
    assert code.startswith(b"\x7fELF")
    assert compiled(unit(file, dtype), "sm_90") == code


def test_what_nvrtc_refuses_is_one_line(sources: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    from linverify.impls._nvrtc import compiled

    (sources / "rwkv6.cu").write_text("__device__ int x = y;\n")
    with pytest.raises(CompileError) as caught:
        compiled(unit(), "sm_90")
    assert "NVRTC does not compile rwkv6.cu" in one_line(caught)
    assert '"y" is undefined' in str(caught.value)


def test_without_nvidia_s_bindings_a_gpu_build_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from linverify.impls._nvrtc import compiled

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(CompileError, match=r"cuda-bindings .* pip install 'linverify\[cuda\]'") as caught:
        compiled(unit(), "sm_90")
    one_line(caught)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_numbers_are_read_and_rounded_as_torch_does(dtype: torch.dtype, device: str) -> None:
    """With q = k = 1 for a single token, o is v times 1: every number of the format comes back, bit by bit."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    v = bits.view(dtype).view(256, 1, 1, 256)
    one = torch.ones(256, 1, 1, 1, dtype=dtype, device=device)
    o = cuda_causal_product.one_block_per_head(one, one, v.to(device)).cpu()
    same = (o.view(torch.int16) == v.view(torch.int16)) | (o.isnan() & v.isnan()) | ((o == 0) & (v == 0))
    assert same.all()
    # and what lies between two numbers is rounded to nearest, ties to even
    q, v = (torch.randn(256, 1, 1, n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (1, 256))
    o = cuda_causal_product.one_block_per_head(q.to(device), one, v.to(device)).cpu()
    assert torch.equal(o, (q.float() * v.float()).to(dtype))  # exact in float32, which has more than twice the digits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["rwkv6", "selective_scan"])
def test_empty_sequences_keep_their_state(name: str, device: str) -> None:
    op, function = operator(KERNELS[name][0]), KERNELS[name][1]
    case = Case(
        op.name, 1, 3, 2, 7, 5, dtype="fp32", state="normal", final_state=True, cotangent="both", lengths=(0, 3, 0)
    )
    problem = draw.problem(suited(case, op), op)
    got = run(function, problem, op, device)
    assert problem.initial_state is not None
    for n in (0, 2):
        assert torch.equal(got["state"][n], problem.initial_state[n])
        assert torch.equal(got["dinitial_state"][n], problem.cotangents["state"][n])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rwkv6", {"k": torch.zeros(1, 5, 2, 9)}, r"rwkv6: expected k of shape \[B=1, T=5, H=2, K=7\], got \[1, 5, 2, 9\]"),
        ("rwkv6", {"cu_seqlens": torch.tensor([0, 4])}, r"cu_seqlens to rise from 0 to T=5 with B=1, got \[0, 4\]"),
        ("rwkv6", {"initial_state": torch.zeros(1, 2, 7, 4)}, r"initial_state of shape \[N=1, H=2, K=7, V=5\]"),
        ("rwkv6", {"initial_state": torch.zeros(2, 2, 7, 5)}, "initial_state of 1 sequences, got 2"),
        ("rwkv6", {"q": torch.zeros(1, 5, 2, 7, dtype=torch.int32)}, "expected q in float64, float32, bfloat16, float16"),
        ("rwkv6", {n: torch.zeros(1, 5, 2, 300) for n in "qkw"} | {"u": torch.zeros(2, 300)}, "K from 1 to 256, got 300"),
        ("selective_scan", {"A": torch.zeros(9, 7)}, r"A of shape \[V=5, K\]"),
        ("low_occupancy", {"V": torch.zeros(1, 2, 4, 5)}, r"expected V of shape \[B=1, H=2, T=5, V\]"),
    ],
)  # fmt: skip
def test_wrong_operands_are_explained(name: str, change: dict[str, Tensor], message: str) -> None:
    op, function = operator(KERNELS[name][0]), KERNELS[name][1]
    problem = draw.problem(suited(Case(op.name, 1, 5, 2, 7, 5), op), op)
    with pytest.raises(ValueError, match=message):
        function(**{**problem.tensors, **change})
