"""mamba-ssm's kernels as the operators mamba2 and mamba1, from its source distribution unpacked on the search path.

The package's own ``__init__`` needs its compiled extension; the Triton kernels do not, so it is left out.
"""

import importlib.util
import sys
import types
from pathlib import Path

_FOLDER = Path(importlib.util.find_spec("mamba_ssm").submodule_search_locations[0])
_package = types.ModuleType("mamba_ssm")
_package.__path__ = [str(_FOLDER)]
sys.modules["mamba_ssm"] = _package

from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # noqa: E402  # after the package is there


def chunk_scan(x, dt, A, B, C, initial_states=None, return_final_states=False):
    """mamba_chunk_scan_combined in chunks of 128; its cu_seqlens is for states alone."""
    return mamba_chunk_scan_combined(
        x, dt, A, B, C, 128, initial_states=initial_states, return_final_states=return_final_states
    )


def build(_=""):
    """Build the CUDA extension for the GPU at hand from the distribution's sources, under the name it is imported by."""
    if "selective_scan_cuda" not in sys.modules:
        from torch.utils.cpp_extension import load

        folder = _FOLDER.parent / "csrc" / "selective_scan"
        sources = [str(p) for p in sorted(folder.iterdir()) if p.suffix in (".cpp", ".cu")]
        flags = ["-O3", "--use_fast_math", "--expt-relaxed-constexpr", "--expt-extended-lambda"]
        undefined = [
            "HALF_OPERATORS",
            "HALF_CONVERSIONS",
            "BFLOAT16_OPERATORS",
            "BFLOAT16_CONVERSIONS",
            "BFLOAT162_OPERATORS",
            "BFLOAT162_CONVERSIONS",
        ]
        flags += [f"-U__CUDA_NO_{name}__" for name in undefined]
        sys.modules["selective_scan_cuda"] = load(
            name="selective_scan_cuda", sources=sources, extra_cuda_cflags=flags, extra_include_paths=[str(folder)]
        )


def selective_scan(u, dt, A, B, C):
    """selective_scan_fn: channels before time."""
    build()
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, dt, B, C = (x.transpose(1, 2).contiguous() for x in (u, dt, B, C))
    return selective_scan_fn(u, dt, A, B, C).transpose(1, 2)
