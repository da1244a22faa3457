"""Whether a backend is there. A file of this room must import on every machine, and be listed, whatever is installed.

So a kernel's own language is imported by a helper module (``_triton_*.py``, ``_cuda_*.py``) that its file imports when it is
first called, and the file's functions carry what is missing: ``kernel(..., absent=absent("triton"))``. Triton's functions
annotate what Triton reads, constexpr alone, so such a helper starts with a line that tells mypy:
``# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators``.
"""

from importlib.util import find_spec

_HOW = {"triton": "Triton is not installed: pip install triton (there are wheels for Linux)"}


def absent(package: str) -> str:
    """Why a backend that is a Python package cannot be used here, and what to do; "" where it can.

    The package is looked for and not imported: Triton's interpreter must be asked for before its import.
    """
    if find_spec(package) is not None:
        return ""
    return _HOW.get(package, f"{package} is not installed: pip install {package}")
