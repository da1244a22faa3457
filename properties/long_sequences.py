"""Long sequences: what is right at a thousand tokens is right at a million.

Asked with the profile "thorough", or by name. The reference streams past in segments, so the length is bounded by the memory
that the target itself takes.
"""

from linverify.operator import Operator
from linverify.property import Property, Space, Trial


def plain_recurrence(operator: Operator) -> bool:
    """Whether o is what is read from a state, which one segment hands to the next."""
    return operator.canonical is not None and operator.readout is None and bool(operator.state_axes)


def check(trial: Trial) -> None:
    """Judge o, the final state and all gradients of one long sequence, segment by segment."""
    trial.agree_in_segments()


PROPERTY = Property(
    name="long_sequences",
    law="Of a sequence as long as memory allows, up to 1,048,576 tokens, the output, the final state and every gradient "
    "equal the equations, up to the rounding that so many tokens leave.",
    check=check,
    applies=plain_recurrence,
    needs=frozenset({"long"}),
    space=Space(min_T=8192, cotangents=("none", "o", "both"), dtypes=("fp32", "tf32", "bf16", "fp16"), streamed=True),
    why="Offsets beyond 2^31 wrap in 32 bits, sums kept in 16 bits stand still once they are large, and a gradient that "
    "is summed over a million tokens keeps no digits: none of it shows at the sizes of a test.",
    against="what long sequences alone bring out",
)
