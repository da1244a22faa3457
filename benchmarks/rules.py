"""The rules by which others judge a kernel's results: what objects to a tensor, given its reference in float64.

* RMS ratio: flash-linear-attention, `assert_close` in fla/utils; 0.005 for most results. On its CI a ratio below 0.01 or an
  error below 0.3 only warns (FLA_CI_ENV).
* 1e-2: KernelBench, `torch.allclose` with atol = rtol = 1e-2 on the output.
* 2x eager: FlashAttention's tests, at most twice the largest error of the same thing in eager torch in the same dtype.
"""

from torch import Tensor, allclose

from linverify.dtype import format_of, round_to


def error(value: Tensor, ref: Tensor) -> Tensor:
    """The error in float64; infinite where the value is no number."""
    return (value.double() - ref).nan_to_num(nan=float("inf"))


def rms_ratio(value: Tensor, ref: Tensor, limit: float) -> bool:
    """Whether the RMS of the error exceeds a share of the reference's."""
    return bool(error(value, ref).square().mean().sqrt() > limit * ref.square().mean().sqrt())


def rms_ratio_waived(value: Tensor, ref: Tensor, limit: float) -> bool:
    """The same, where a small ratio or a small error is only warned of."""
    return rms_ratio(value, ref, max(limit, 0.01)) and float(error(value, ref).abs().max()) > 0.3


def not_close(value: Tensor, ref: Tensor, rtol: float, atol: float) -> bool:
    """Whether `torch.allclose` objects to the value, against the reference in the value's dtype."""
    return not allclose(value, round_to(ref, format_of(value.dtype)).to(value.dtype), rtol=rtol, atol=atol)


def beyond_twice(value: Tensor, ref: Tensor, eager: Tensor) -> bool:
    """Whether the largest error is more than twice that of eager torch, and a little."""
    twice = 2 * float(error(eager, ref).abs().max()) + 1e-5 * float(ref.abs().max())
    return float(error(value, ref).abs().max()) > twice
