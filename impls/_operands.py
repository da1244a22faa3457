"""What the CUDA kernels ask of their operands: shapes that fit, one dtype, sequences as offsets."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from linverify.impls._compiled import ELEMENTS

# The state of a thread is an array of this many numbers at most; more than fit in registers already lie in local memory.
WIDEST = 256


def shaped(operator: str, tensors: Mapping[str, tuple[Tensor, str]]) -> dict[str, int]:
    """Return axis letters to lengths, after a look that tensors agree on them, lie on one device and are not too wide.

    Args:
        operator: for messages.
        tensors: by name, each with the letters of its axes.

    Raises:
        ValueError: a shape, device or dtype is not what the others say, or the key or value width is above `WIDEST`.
    """
    sizes: dict[str, int] = {}
    device = next(iter(tensors.values()))[0].device
    for name, (x, axes) in tensors.items():
        shape = tuple(x.shape)
        if len(shape) != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape, strict=True)):
            wanted = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
            raise ValueError(f"{operator}: expected {name} of shape [{wanted}], got {list(shape)}")
        if x.device != device:
            raise ValueError(f"{operator}: expected {name} on {device}, got {x.device}")
        if x.dtype not in ELEMENTS:
            known = ", ".join(str(d).removeprefix("torch.") for d in ELEMENTS)
            raise ValueError(f"{operator}: expected {name} in {known}, got {str(x.dtype).removeprefix('torch.')}")
    return sizes


def narrow_enough(operator: str, **widths: int) -> None:
    """Refuse widths that a thread's state would not fit.

    Raises:
        ValueError: a width is 0 or above `WIDEST`.
    """
    for name, width in widths.items():
        if not 0 < width <= WIDEST:
            raise ValueError(
                f"{operator}: expected {name} from 1 to {WIDEST}, got {width}; these kernels hold it in registers"
            )


def one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in the dtype that they share, or in the dtype that is computed in where they share none."""
    found = {x.dtype for x in tensors}
    wide = torch.float64 if torch.float64 in found else torch.float32
    return tensors if len(found) == 1 else tuple(x.to(wide) for x in tensors)


def offsets(cu_seqlens: Tensor | None, sizes: Mapping[str, int], device: torch.device) -> Tensor:
    """Where sequences start in the flat list of tokens, and where the last one ends: [N + 1], int64.

    Raises:
        ValueError: cu_seqlens does not rise from 0 to T, or B is not 1.
    """
    if cu_seqlens is None:
        return torch.arange(sizes["B"] + 1, device=device) * sizes["T"]
    ends = cu_seqlens.tolist()
    if sizes["B"] != 1 or not ends or ends[0] != 0 or ends[-1] != sizes["T"] or any(a > b for a, b in pairwise(ends)):
        raise ValueError(
            f"expected cu_seqlens to rise from 0 to T={sizes['T']} with B=1, got {ends} with B={sizes['B']}; "
            "pack the sequences along T"
        )
    return cu_seqlens.to(device, torch.int64).contiguous()
