"""All entries of the zoo, in the order of their kernels."""

from tests.zoo import correct, delta, gla, others, rwkv, simple_gla, simple_gla_backward, triton
from tests.zoo.record import Bug, Correct

_FILES = (simple_gla, simple_gla_backward, gla, rwkv, delta, others, triton)

BUGS: tuple[Bug, ...] = tuple(b for file in _FILES for b in file.BUGS)
CORRECT: tuple[Correct, ...] = correct.CORRECT
