"""linverify: does this linear-attention kernel compute what its equations say, to the accuracy its arithmetic allows?

Rooms: ``linverify`` (the engine), ``linverify.impls`` (the accused), ``linverify.properties`` (the laws),
``linverify.reports`` (the clerk). In the repository the last three are folders beside this one.
"""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "properties").is_dir():
    # In a checkout the rooms are siblings of this folder; an installed wheel has them inside it.
    __path__[:0] = [str(_checkout / "linverify"), str(_checkout)]

__version__ = "0.1.0"

from linverify.implementation import kernel as kernel

__all__ = ["__version__", "conformance", "kernel"]


def __getattr__(name: str) -> object:
    """Import the pytest entry point only when asked for, so that a kernel file pays for the decorator alone."""
    if name == "conformance":
        from linverify.pytest_items import conformance

        return conformance
    raise AttributeError(f"module 'linverify' has no attribute {name!r}")
