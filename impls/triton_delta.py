"""The delta family in Triton, chunkwise, forward and backward: chunks of 64 tokens, each one triangular system.

What a chunk does to the state is a matrix product once its triangular system is solved (the WY or UT representation), so all
chunks are solved at once, a short pass carries the state through them, and all chunks read their states at once. Operands of
products have the inputs' dtype; sums of products, gates, the triangle's inverse and the carried state are float32.

Intermediates that the backward needs are kept, not recomputed: about twelve times the size of q.

No product becomes one of Hopper's wgmma instructions, which Triton 3.6.0's assembler gets wrong in the backward walk:
`_triton_delta` says how that is kept from happening. `docs/published/implementations-h100.md` has what ran on a GPU.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from linverify.impls._backend import absent
from linverify.impls._functions import functions
from linverify.operator import Canonical, Operator, Sizes

OPERATORS = ("delta_rule", "gated_delta_rule", "gated_delta_product", "kda")


def chunkwise(c: Canonical, scale: float, lengths: Sequence[int], initial: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernels: Triton is imported here, on the first call."""
    from linverify.impls import _triton_delta

    return _triton_delta.chunkwise(c, scale, lengths, initial)


def as_given(operator: Operator, inputs: Mapping[str, Tensor], sizes: Sizes) -> Canonical:
    """The terms in the inputs' own dtypes: those of these operators are the inputs, laid out anew."""
    return operator.recurrence(inputs, sizes)


globals().update(
    functions(
        __name__,
        form="chunkwise",
        run=chunkwise,
        terms_of=as_given,
        of=lambda operator: operator.name in OPERATORS,
        backend="triton",
        absent=absent("triton"),
    )
)
