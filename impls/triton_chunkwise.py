"""The chunkwise form of the decay family in Triton: chunks of 64 tokens, quadratic inside, a state between them.

Lightning attention's split into intra and inter is this, its decay being a constant of the head. Gates are summed inside
chunks, in float32. No exponent is above 0: with one gate for all channels the difference of two sums is masked before exp; a
gate per channel takes secondary chunks of 16 tokens.

Matrix products take bf16 operands as bf16, fp16 ones as tf32 (which holds fp16 and does not overflow in a state), fp32 ones as
tf32 on a GPU. States between chunks are kept for backward: in float32 where a gate's gradient multiplies them by theirs,
otherwise in bf16 where the operands are. The final state is float32.

One configuration, not tuned: tiles of 64 by 64 (by 128 for o and dv, 64 by 32 for states), four warps, two stages (three for
states).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from linverify.impls._backend import absent
from linverify.impls._functions import functions
from linverify.operator import Canonical, Operator, Sizes

OPERATORS = ("linear_attention", "retention", "lightning_attention", "simple_gla", "gla")


def chunkwise(c: Canonical, scale: float, lengths: Sequence[int], initial: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernels: Triton is imported here, on the first call."""
    from linverify.impls import _triton_decay

    return _triton_decay.chunkwise(c, scale, lengths, initial)


def in_their_dtype(operator: Operator, inputs: Mapping[str, Tensor], sizes: Sizes) -> Canonical:
    """The terms with q, k and v in their common dtype, at most float32, and log gates in float32."""
    names = [i.name for i in operator.of_kind("query", "key", "value")]
    common = torch.float16 if all(inputs[n].dtype == torch.float16 for n in names) else torch.float32
    common = torch.bfloat16 if all(inputs[n].dtype == torch.bfloat16 for n in names) else common
    wide = {n: x.to(common if n in names else torch.float32) for n, x in inputs.items()}
    found = operator.recurrence(wide, sizes)
    if operator.gated or found.log_decay is None:
        return found
    # A decay that no input sets: in float32, from inputs without tokens.
    constant = operator.recurrence({n: x[:, :0].float() for n, x in wide.items()}, sizes).log_decay
    return Canonical(q=found.q, k=found.k, v=found.v, log_decay=constant)


globals().update(
    functions(
        __name__,
        form="chunkwise",
        run=chunkwise,
        terms_of=in_their_dtype,
        of=lambda operator: operator.name in OPERATORS,
        backend="triton",
        absent=absent("triton"),
    )
)
