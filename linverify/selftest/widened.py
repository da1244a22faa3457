"""A source in float64: the same kernel with every float32 in it made wider, so that rounding hides no difference.

A kernel computes in float32 inside whatever it is given. Two such kernels that differ by their rounding alone cannot be told
from two that differ a little in what they compute; in float64 they can.
"""

import re

_WIDER = (
    (re.compile(r"\bfloat32\b"), "float64"),
    (re.compile(r"\.float\(\)"), ".double()"),
    (re.compile(r"\btorch\.float\b"), "torch.float64"),
)


def widened(source: str) -> str:
    """Return the source with float64 in the place of float32; lines stay where they are."""
    for pattern, wider in _WIDER:
        source = pattern.sub(wider, source)
    return source
