"""All entries of the zoo, in the order of their kernels."""

from tests.zoo import delta, gla, rwkv, simple_gla, triton
from tests.zoo.record import Bug, Correct

_FILES = (simple_gla, gla, rwkv, delta, triton)

BUGS: tuple[Bug, ...] = tuple(b for file in _FILES for b in file.BUGS)
CORRECT: tuple[Correct, ...] = tuple(c for file in _FILES for c in getattr(file, "CORRECT", ()))
