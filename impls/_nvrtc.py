"""The GPU build of a CUDA source: NVRTC compiles it, the driver loads and launches it, through NVIDIA's cuda-bindings."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from linverify.impls import _compiled
from linverify.impls._compiled import Arguments, CompileError, Unit, first_error, kept

_OPTIONS = ("--std=c++17",)


def _bindings() -> tuple[Any, Any]:
    """NVIDIA's modules for the driver and for NVRTC."""
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError as error:
        raise CompileError(
            f"CUDA sources need NVIDIA's cuda-bindings to compile ({error}); pip install 'linverify[cuda]'"
        ) from None
    return driver, nvrtc


def _checked(returned: tuple[Any, ...]) -> Any:
    """What a call of the bindings returned after its status.

    Raises:
        RuntimeError: the status is no success.
    """
    status, *values = returned
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None


def compiled(unit: Unit, architecture: str) -> bytes:
    """Machine code of a unit for an architecture ("sm_90"), from the cache where it is there; needs no GPU.

    Raises:
        CompileError: there is no NVRTC, or it refuses the source.
    """
    _, nvrtc = _bindings()
    try:
        major, minor = _version()
    except Exception as error:  # the loader of NVIDIA's libraries raises its own
        raise CompileError(f"{unit.file} needs NVRTC, which cannot be loaded: {str(error).splitlines()[0]}") from None
    options = [*_OPTIONS, f"--gpu-architecture={architecture}", *unit.definitions]

    def build(path: Path) -> None:
        source, header = ((_compiled.FOLDER / name).read_bytes() for name in (unit.file, "device.h"))
        program = _checked(nvrtc.nvrtcCreateProgram(source, unit.file.encode(), 1, [header], [b"device.h"]))
        given = [o.encode() for o in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
        if int(status):
            log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise first_error(unit, "NVRTC", log.decode(errors="replace").rstrip("\0"))
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        _checked(nvrtc.nvrtcDestroyProgram(program))
        path.write_bytes(code)

    return kept(unit.named(f"NVRTC {major}.{minor} {' '.join(options)}", ".cubin"), build).read_bytes()


@cache
def _version() -> tuple[int, int]:
    _, nvrtc = _bindings()
    status, major, minor = nvrtc.nvrtcVersion()
    _checked((status,))
    return major, minor


class DeviceLibrary:
    """A module on one GPU."""

    def __init__(self, code: bytes, device: torch.device) -> None:
        self._driver, _ = _bindings()
        self._device = device
        torch.cuda.init()
        number = _checked(self._driver.cuDeviceGet(device.index))
        self._context = _checked(self._driver.cuDevicePrimaryCtxRetain(number))
        self._functions: dict[str, Any] = {}
        with torch.cuda.device(device):
            _checked(self._driver.cuCtxSetCurrent(self._context))
            self._module = _checked(self._driver.cuModuleLoadData(code))

    def launch(self, kernel: str, grid: tuple[int, int], threads: int, arguments: Arguments) -> None:
        """Run a kernel in torch's current stream; see ``linverify.impls._compiled.launch``."""
        with torch.cuda.device(self._device):
            # autograd's own threads may not have met this GPU yet
            _checked(self._driver.cuCtxSetCurrent(self._context))
            if kernel not in self._functions:
                self._functions[kernel] = _checked(self._driver.cuModuleGetFunction(self._module, kernel.encode()))
            stream = torch.cuda.current_stream().cuda_stream
            _checked(
                self._driver.cuLaunchKernel(
                    self._functions[kernel], *grid, 1, threads, 1, 1, 0, stream, arguments.address, 0
                )
            )


def load(unit: Unit, device: torch.device) -> DeviceLibrary:
    """Build a unit for a GPU where it has not been built, and load it there.

    Raises:
        CompileError: there is no NVRTC, or it refuses the source.
    """
    major, minor = torch.cuda.get_device_capability(device)
    return DeviceLibrary(compiled(unit, f"sm_{major}{minor}"), device)
