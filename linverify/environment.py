"""Where a run happens: versions, devices and switches, for the record and for ``linverify doctor``."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import linverify
from linverify.recipe import precision_class

_PACKAGES = ("torch", "triton", "numpy", "mpmath", "gmpy2", "hypothesis", "fla-core")
# Switches that change what a kernel computes; nothing else of the environment is anybody's business.
_SWITCHES = ("TRITON_", "CUDA_", "CUBLAS_", "PYTORCH_", "TORCH_", "NVIDIA_TF32_", "FLA_", "OMP_NUM_THREADS")
_PROBE_SECONDS = 120

State = Literal["ok", "limited", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was looked at, whether it serves, and what follows from it."""

    what: str
    state: State
    text: str


def environment(device: str = "cpu") -> dict[str, str]:
    """Return what a reader of the record must know to repeat the run, as text by name."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "linverify": linverify.__version__}
    found |= {name: version for name in _PACKAGES if (version := _version(name))}
    found["device"] = device
    found |= _gpu(device)
    found |= {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SWITCHES)}
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gpu(device: str) -> dict[str, str]:
    if not device.startswith("cuda"):
        return {}
    import torch

    properties = torch.cuda.get_device_properties(torch.device(device))
    capability = f"{properties.major}.{properties.minor}"
    return {"gpu": properties.name, "compute_capability": capability, "cuda": str(torch.version.cuda)}


def findings() -> tuple[Finding, ...]:
    """Look at this machine; takes a few seconds, since the CPU interpreter is tried out in a process of its own."""
    found = [
        Finding("linverify", "ok", f"{linverify.__version__} in {Path(linverify.__file__).parent}"),
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} processors"),
    ]
    found += [_package(name) for name in ("torch", "triton", "numpy", "mpmath", "hypothesis")]
    fast = bool(_version("gmpy2"))
    found.append(
        Finding("gmpy2", "ok", "makes mpmath fast")
        if fast
        else Finding("gmpy2", "limited", "not here; mpmath is slower")
    )
    devices = cuda_devices()
    found += [Finding(name, "ok", text) for name, text in devices.items()]
    if not devices:
        found.append(Finding("cuda", "limited", "no CUDA device; Triton kernels run in the CPU interpreter"))
    found.append(_interpreter())
    return tuple(found)


def _package(name: str) -> Finding:
    version = _version(name)
    if not version:
        return Finding(
            name, "missing", "not installed" + ("; Triton kernels cannot be checked" if name == "triton" else "")
        )
    return Finding(name, "ok", version)


def cuda_devices() -> Mapping[str, str]:
    """Return device texts and what is behind them; {} where there are none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    found = {}
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        memory = f"{p.total_memory / 2**30:.0f} GiB"
        found[f"cuda:{index}"] = f"{p.name}, compute capability {p.major}.{p.minor}, {memory}"
    return found


def _interpreter() -> Finding:
    what = "triton on cpu"
    if importlib.util.find_spec("triton") is None:
        return Finding(what, "missing", "no Triton, so no interpreter")
    folder = str(Path(linverify.__file__).resolve().parents[1])
    child = {**os.environ, "PYTHONPATH": folder, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-P", "-m", "linverify.interpreter_probe"]
    try:
        done = subprocess.run(command, env=child, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True)
        errors = {str(name): float(error) for name, error in json.loads(done.stdout).items()}
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(what, "limited", f"the interpreter does not run: {last}")
    except (subprocess.TimeoutExpired, ValueError) as error:
        return Finding(what, "limited", f"the interpreter could not be tried out: {type(error).__name__}")
    wrong = [name for name, error in errors.items() if error != 0]
    if wrong:
        text = f"the interpreter multiplies {', '.join(wrong)} matrices wrongly; such cases are unchecked on the CPU"
        return Finding(what, "limited", text)
    return Finding(what, "ok", f"the interpreter multiplies {', '.join(errors)} matrices rightly")


def precision_lines() -> tuple[str, ...]:
    """Return, for each device here, which precision class judges which dtype unless something else is claimed."""
    lines = []
    for device in ("cpu", *cuda_devices()):
        classes = ", ".join(f"{dtype} as {precision_class(dtype, device, {})}" for dtype in ("fp32", "bf16", "fp16"))
        lines.append(f"judged on {device}: {classes}")
    if len(lines) > 1:
        lines.append("--claims fp32=ieee has fp32 judged as IEEE arithmetic on a GPU too")
    return tuple(lines)
