"""References: the ladder of oracles. Written apart from every working-precision form and from the error model.

mpmath (small cases, two precisions) certifies the stepwise float64 recurrence with its hand-written adjoint, which certifies
the chunkwise float64 form, the fast path.
"""

from linverify.reference.chunkwise import chunkwise as chunkwise
from linverify.reference.highprecision import highprecision as highprecision
from linverify.reference.stepwise import stepwise as stepwise

__all__ = ["chunkwise", "highprecision", "stepwise"]
