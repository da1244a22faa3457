"""The log of NVIDIA's compute-sanitizer becomes verdicts with kernel and line; without the tool there is one clear line.

The logs are put together from samples in the tool's public manual (docs.nvidia.com/compute-sanitizer, "Understanding Memcheck
Errors", "Example Use of Racecheck", "Example Use of Initcheck") and in NVIDIA/compute-sanitizer-samples, kernel names changed.
"""

import dataclasses
import sys
from pathlib import Path

import pytest

from linverify import sanitizer
from linverify.binding import bind
from linverify.bystander import Subject
from linverify.cli import main
from linverify.errors import CannotCheckError
from linverify.problem import Fault
from linverify.registry import properties
from linverify.target import parse
from tests.worker_harness import KERNELS, OPERATOR, Everything, problem

MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at chunk_o_kernel(float *, int)+0x160 in chunk_o.py:61
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7f6510c00001 is misaligned
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: [0x20d6ea] in libcuda.so.1
=========
========= Invalid __global__ write of size 4 bytes
=========     at chunk_o_kernel(float *, int)+0x160 in chunk_o.py:61
=========     by thread (1,0,0) in block (0,0,0)
=========     Address 0x7f6510c00005 is misaligned
=========
========= Invalid __shared__ read of size 16 bytes
=========     at 0x60 in fwd_state(unsigned char*)
=========     by thread (63,0,0) in block (0,0,0)
=========     Address 0x7f004700004f is out of bounds
=========
========= Invalid __local__ read of size 8 bytes
=========     at unaligned_kernel():0x160 in memcheck_demo.cu:6
=========     by thread (63,0,0) in block (0,0,0)
=========
========= Invalid __global__ read of size 2 bytes
=========     at 0x3c8 in /src/scan.cu:42:scan_kernel(int*,int*)
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Program hit cudaErrorLaunchFailure (error 719) due to "unspecified launch failure" on CUDA API call to cudaMemcpy.
=========     Saved host backtrace up to driver entry point at error
=========
========= Leaked 1,024 bytes at 0x7b95b4000000
========= ERROR SUMMARY: 6 errors
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at chunk_bwd(float *)+0xb0 in bwd.cu:28
=========     and Read access at chunk_bwd(float *)+0xc0 in bwd.cu:30 [1024 hazards]
=========
========= WARNING: Race reported between Write access at
=========     chunk_fwd(float *)+0xf0 in fwd.cu:12
=========     and Write access at chunk_fwd(float *)+0xf0 in fwd.cu:12 [4 hazards]
=========
========= Error: Race reported between Write access at 0x68 in sgemm_nt
=========     and Read access at 0x78 in sgemm_nt [20 hazards]
========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)
"""
INITCHECK = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at vectorAdd(int *)+0x70 in /src/memset_error.cu:41
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
=========
========= ERROR SUMMARY: 1 error
"""


def found(log: str) -> list[tuple[str, str, str, int]]:
    return [dataclasses.astuple(f) for f in sanitizer.parse(log)]


def test_memcheck() -> None:
    launch = next(line for line in MEMCHECK.splitlines() if "Program hit" in line).removeprefix("========= ")
    assert found(MEMCHECK) == [
        ("Invalid __global__ write of size 4 bytes", "chunk_o_kernel(float *, int)", "chunk_o.py:61", 2),
        ("Invalid __shared__ read of size 16 bytes", "fwd_state(unsigned char*)", "", 1),
        ("Invalid __local__ read of size 8 bytes", "unaligned_kernel()", "memcheck_demo.cu:6", 1),
        ("Invalid __global__ read of size 2 bytes", "scan_kernel(int*,int*)", "/src/scan.cu:42", 1),
        (launch, "", "", 1),
    ]
    assert sanitizer.parse(MEMCHECK)[0].sentence == (
        "Invalid __global__ write of size 4 bytes in chunk_o_kernel(float *, int) at chunk_o.py:61, 2 times"
    )


def test_racecheck() -> None:
    race = "Race reported between Write access"
    assert found(RACECHECK) == [
        (race, "chunk_bwd(float *)", "bwd.cu:28", 1),
        (race, "chunk_fwd(float *)", "fwd.cu:12", 1),
        (race, "sgemm_nt", "", 1),
    ]


def test_initcheck() -> None:
    what = "Uninitialized __global__ memory read of size 4 bytes"
    assert found(INITCHECK) == [(what, "vectorAdd(int *)", "/src/memset_error.cu:41", 1)]


@pytest.mark.parametrize(
    "summary", ["ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"]
)
def test_a_clean_log_has_no_findings(summary: str) -> None:
    assert sanitizer.parse(f"========= COMPUTE-SANITIZER\n========= {summary}\n") == ()


def test_errors_of_an_unknown_kind_are_not_lost() -> None:
    (finding,) = sanitizer.parse("========= Something new\n========= ERROR SUMMARY: 7 errors\n")
    assert finding.count == 7


@pytest.mark.parametrize("log", ["", "========= COMPUTE-SANITIZER\n", MEMCHECK.rpartition("========= ERROR")[0]])
def test_a_log_without_a_summary_is_no_clean_one(log: str) -> None:
    with pytest.raises(ValueError, match="no summary"):
        sanitizer.parse(log)


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, log: str) -> None:
    """Put a stand-in on the PATH that writes a log and runs the program."""
    tool = folder / "compute-sanitizer"
    (folder / "sample.txt").write_text(log)
    tool.write_text(
        f"#!{sys.executable}\n"
        "import os, shutil, subprocess, sys\n"
        "words = sys.argv[1:]\n"
        "program = words[words.index('all') + 1:]\n"
        "assert words[:2] == ['--tool', 'memcheck'] and os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\n"
        "code = subprocess.call(program, close_fds=False)\n"
        f"shutil.copy({str(folder / 'sample.txt')!r}, words[words.index('--log-file') + 1])\n"
        "sys.exit(code)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def _sanitize():
    with Everything().runner("good") as runner:
        binding = bind(OPERATOR, runner.describe().functions[0])
    spec = parse(f"{KERNELS}::good")
    return sanitizer.sanitize(Subject(spec, binding, {}, "cpu", "pin"), problem(), tool="memcheck", time_limit=60)


def test_the_target_runs_under_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, monkeypatch, MEMCHECK)
    assert [f.kernel for f in _sanitize()][:1] == ["chunk_o_kernel(float *, int)"]
    _install(tmp_path, monkeypatch, "========= COMPUTE-SANITIZER\n========= Target application terminated\n")
    with pytest.raises(Fault, match="did not finish"):
        _sanitize()


def test_without_the_tool_there_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sanitizer, "_FOLDERS", ())
    with pytest.raises(CannotCheckError, match="compute-sanitizer is not installed"):
        sanitizer.find()
    words = ["check", "linverify.impls.torch_chunkwise:gla", "--sanitizer", "--device", "cpu", "--profile", "quick"]
    assert main(words) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "--sanitizer looks at CUDA kernels" in said


def test_each_tool_is_a_law_that_is_asked_on_request() -> None:
    laws = {name for name, law in properties().items() if "sanitizer" in law.needs}
    assert laws == set(sanitizer.TOOLS)
