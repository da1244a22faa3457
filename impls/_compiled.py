"""CUDA sources, compiled when they are first needed and kept on disk.

WHY. A source is compiled for one dtype and one set of widths, so that the state fits in registers and loops have constant
lengths: as many builds as there are shapes in use. NVRTC compiles one in a few tenths of a second, inside the process and
without the toolkit's headers; torch.utils.cpp_extension would start nvcc and a C++ compiler on torch's headers, which takes
most of a minute. For tensors on the CPU a C++ compiler builds the same source (``cuda/host.h``).

WHERE. ``$LINVERIFY_CACHE_DIR``, else ``$XDG_CACHE_HOME/linverify``, else ``~/.cache/linverify``. A build's name holds a hash of
all that goes into it, so an edited source is another build. One process compiles while the others wait at a file lock, and a
build appears under its name when it is whole.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from ctypes import _SimpleCData, addressof, c_double, c_longlong, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from torch import Tensor

FOLDER = Path(__file__).parent / "cuda"
# By dtype of the tensors: the name that ``cuda/device.h`` knows it by, and the dtype that is computed in.
ELEMENTS = {
    torch.float64: ("FP64", torch.float64),
    torch.float32: ("FP32", torch.float32),
    torch.bfloat16: ("BF16", torch.float32),
    torch.float16: ("FP16", torch.float32),
}

COMPILERS = ("g++", "clang++", "c++")  # for the CPU, where CXX names none

Argument = Tensor | int | float | None


class CompileError(RuntimeError):
    """A source could not be built: no compiler, or one that refuses it. The message is one line."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is compiled: a file of ``cuda/``, the dtype of its elements and its constants (name and value)."""

    file: str
    dtype: torch.dtype
    constants: tuple[tuple[str, int], ...]

    @property
    def definitions(self) -> tuple[str, ...]:
        """The preprocessor's definitions, as a compiler takes them."""
        return (f"-D{ELEMENTS[self.dtype][0]}", *(f"-D{name}={value}" for name, value in self.constants))

    def named(self, compiler: str, suffix: str) -> Path:
        """Where the build of this unit by this compiler (its version and options) lies."""
        key = hashlib.sha256("\0".join((compiler, *self.definitions)).encode())
        for file in (self.file, "device.h", "host.h"):
            key.update((FOLDER / file).read_bytes())
        return _cache() / f"{Path(self.file).stem}-{key.hexdigest()[:24]}{suffix}"


def absent() -> str:
    """Why neither a GPU nor the CPU can run these sources here, and what to do; "" where one can."""
    if cxx() or (find_spec("cuda") and find_spec("cuda.bindings")):
        return ""
    return "no C++ compiler (g++, clang++, or CXX) for the CPU and no NVRTC for a GPU: pip install 'linverify[cuda]'"


def cxx() -> str | None:
    """The C++ compiler's path, or None."""
    wanted = os.environ.get("CXX")
    return next((path for name in ([wanted] if wanted else COMPILERS) if (path := shutil.which(name))), None)


class Library(Protocol):
    """A build that is loaded."""

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, arguments: "Arguments") -> None:
        """Run a kernel over a grid of blocks; on a GPU, in torch's current stream."""


class Arguments:
    """A kernel's arguments as their addresses, the way a launch takes them; keeps what they point to alive."""

    def __init__(self, values: Sequence[Argument]) -> None:
        self._held = [_packed(x) for x in values]
        self._addresses = (c_void_p * len(self._held))(*(addressof(x) for x in self._held))

    @property
    def address(self) -> int:
        """Of the list of addresses."""
        return addressof(self._addresses)


def _packed(x: Argument) -> "_SimpleCData[Any]":
    if x is None or isinstance(x, Tensor):
        return c_void_p(None if x is None else x.data_ptr())
    return c_double(x) if isinstance(x, float) else c_longlong(x)


def launch(
    unit: Unit, kernel: str, device: torch.device, grid: tuple[int, int], threads: int, *arguments: Argument
) -> None:
    """Run a kernel of a unit, which is built first where it has not been.

    Args:
        unit: what to run.
        kernel: its name in the source.
        device: where the tensors are.
        grid: blocks along x and y; nothing runs where one of them is 0.
        threads: of a block, a multiple of 32.
        arguments: in the kernel's order: contiguous tensors of the dtypes it declares, None for a null pointer, whole
            numbers as 64 bits, others as float64.

    Raises:
        CompileError: it cannot be built here.
        RuntimeError: the launch failed.
    """
    if 0 not in grid:
        _library(unit, device).launch(kernel, grid, threads, Arguments(arguments))


@cache
def _library(unit: Unit, device: torch.device) -> Library:
    if device.type == "cuda":
        from linverify.impls._nvrtc import load
    elif device.type == "cpu":
        from linverify.impls._host import load
    else:
        raise CompileError(f"{unit.file}: expected tensors on cuda or on the CPU, got {device}")
    return load(unit, device)


def kept(path: Path, build: Callable[[Path], None]) -> Path:
    """Return the path of a build, which `build` writes to the path it is given where there is none.

    Raises:
        CompileError: `build` raises it, or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                unfinished = path.with_suffix(f".{os.getpid()}")
                build(unfinished)
                unfinished.replace(path)
    except OSError as error:
        raise CompileError(
            f"compiled kernels cannot be kept in {path.parent} ({error.strerror or error}); "
            "set LINVERIFY_CACHE_DIR to a folder that can be written to"
        ) from None
    return path


def first_error(unit: Unit, compiler: str, log: str) -> CompileError:
    """The error for a log in which a compiler refuses a unit: its first complaint, in one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
    return CompileError(f"{compiler} does not compile {unit.file} ({' '.join(unit.definitions)}): {told}")


def _cache() -> Path:
    given = os.environ.get("LINVERIFY_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else (Path(base) if base else Path.home() / ".cache") / "linverify") / "kernels"
