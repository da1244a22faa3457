"""The CPU build of a CUDA source: a C++ compiler and ``cuda/host.h``, for tensors on the CPU."""

import ctypes
import os
import subprocess
from functools import cache
from pathlib import Path

import torch

from linverify.impls import _compiled
from linverify.impls._compiled import COMPILERS, Arguments, CompileError, Unit, cxx, first_error, kept

# glibc's fortified longjmp refuses to leave a stack, which is what a fibre does at a barrier.
_OPTIONS = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-w", "-x", "c++"]


class HostLibrary:
    """A shared library whose kernels run block by block in the calling thread."""

    def __init__(self, unit: Unit, path: Path) -> None:
        self._unit = unit
        self._library = ctypes.CDLL(str(path))

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, arguments: Arguments) -> None:
        """Run a kernel; see ``linverify.impls._compiled.launch``."""
        entry = getattr(self._library, f"launch_{kernel}")
        entry.argtypes = [ctypes.c_longlong, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_void_p]
        if status := entry(*grid, threads, arguments.address):
            why = "not every thread reached a barrier" if status == 2 else f"blocks of {threads} threads"
            raise RuntimeError(f"{kernel} of {self._unit.file} failed on the CPU: {why}")


def load(unit: Unit, _device: torch.device) -> HostLibrary:
    """Build a unit where it has not been built, and load it.

    Raises:
        CompileError: there is no C++ compiler, or it refuses the source.
    """
    compiler, version = _compiler(unit)
    command = [
        compiler,
        *_OPTIONS,
        *unit.definitions,
        "-include",
        "host.h",
        "-I",
        str(_compiled.FOLDER),
        str(_compiled.FOLDER / unit.file),
    ]

    def build(path: Path) -> None:
        done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            path.unlink(missing_ok=True)
            raise first_error(unit, compiler, done.stderr)

    return HostLibrary(unit, kept(unit.named(version + " ".join(_OPTIONS), ".so"), build))


def _compiler(unit: Unit) -> tuple[str, str]:
    path = cxx()
    if path is None:
        wanted = os.environ.get("CXX")
        missing = f"CXX={wanted} is not there" if wanted else f"there is no {', '.join(COMPILERS)}"
        raise CompileError(
            f"{unit.file} needs a C++ compiler to run on the CPU, and {missing}; install one, or use a GPU"
        )
    return path, _version(path)


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
