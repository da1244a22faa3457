"""Number formats: their constants, and rounding to them, exactly as hardware does it.

Source of the constants: IEEE 754-2019 (binary16/32/64); bfloat16 and TF32 as in NVIDIA's A100 white paper, 2020.
The unit roundoff u is half the spacing at 1. Tensor cores drop the low mantissa bits of a TF32 operand, so the truncated
format has a unit of 2^-10 where rounding to nearest would have 2^-11.
"""

from dataclasses import dataclass

import torch

from linverify.errors import unknown


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format.

    Attributes:
        name: short name used in cases and reports.
        torch_dtype: the dtype that stores it (TF32 is stored as float32).
        precision: significant bits p, the hidden one included.
        min_exponent: exponent of the smallest normal number.
        largest: the largest finite number.
        truncates: True where operands are cut, not rounded.
    """

    name: str
    torch_dtype: torch.dtype
    precision: int
    min_exponent: int
    largest: float
    truncates: bool = False

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one conversion to this format."""
        return 2.0 ** (1 - self.precision) if self.truncates else 2.0**-self.precision

    @property
    def smallest_subnormal(self) -> float:
        """Spacing of the subnormal numbers."""
        return 2.0 ** (self.min_exponent - self.precision + 1)


FP64 = Format("fp64", torch.float64, 53, -1022, float.fromhex("0x1.fffffffffffffp+1023"))
FP32 = Format("fp32", torch.float32, 24, -126, float.fromhex("0x1.fffffep+127"))
TF32 = Format("tf32", torch.float32, 11, -126, float.fromhex("0x1.ffcp+127"), truncates=True)
TF32_NEAREST = Format("tf32rn", torch.float32, 11, -126, float.fromhex("0x1.ffcp+127"))
BF16 = Format("bf16", torch.bfloat16, 8, -126, float.fromhex("0x1.fep+127"))
FP16 = Format("fp16", torch.float16, 11, -14, 65504.0)

FORMATS: dict[str, Format] = {f.name: f for f in (FP64, FP32, TF32, BF16, FP16)}
_LONG = {
    "float64": "fp64",
    "double": "fp64",
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
}


def parse(name: str) -> Format:
    """Return the format called `name` (``bf16`` or torch's ``bfloat16``).

    Raises:
        UsageError: no format has that name.
    """
    short = _LONG.get(name.removeprefix("torch."), name)
    if short not in FORMATS:
        raise unknown("dtype", name, [*FORMATS, *_LONG])
    return FORMATS[short]


def format_of(dtype: torch.dtype) -> Format:
    """Return the format that a torch dtype stores; float32 means IEEE binary32."""
    for f in (FP64, FP32, BF16, FP16):
        if f.torch_dtype == dtype:
            return f
    raise ValueError(f"expected a floating dtype of {[f.name for f in FORMATS.values()]}, got {dtype}")


def round_to(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Round `x` to `fmt` and return it in x's own dtype.

    TF32 is truncated (towards zero), the others round to nearest even; software that converts by itself has TF32_NEAREST.
    """
    if fmt is FP64 or (fmt is FP32 and x.dtype == torch.float32):
        return x
    if fmt is TF32:
        bits = x.to(torch.float32).contiguous().view(torch.int32) & ~0x1FFF
        return bits.view(torch.float32).to(x.dtype)
    if fmt is TF32_NEAREST:
        bits = x.to(torch.float32).contiguous().view(torch.int32)
        even = bits + 0xFFF + ((bits >> 13) & 1)
        return torch.where(torch.isfinite(x), (even & ~0x1FFF).view(torch.float32).to(x.dtype), x)
    return x.to(fmt.torch_dtype).to(x.dtype)


def ulp(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Spacing of `fmt` at each element of `x` (float64)."""
    _, exponent = torch.frexp(x.double())
    exponent = (exponent - 1).clamp(min=fmt.min_exponent)
    return torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent - fmt.precision + 1)
