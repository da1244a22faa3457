"""fla-core 0.6.0: fused_chunk_based adds keys and values up in 16 bits.

    python fla_fused_chunk_based_sums.py        needs torch, a GPU and fla-core

`tl.sum` adds in its input's type, and the kernel (fla/ops/based/fused_chunk.py) sums the values, keys and squared keys of a
chunk as they come, in 16 bits, into the float32 statistics that all later tokens read; parallel_based, which does not, is the
comparison. Of random values the loss is less than the output's own rounding; of values that a sum of two cannot hold it is an
error that all outputs share. Expected is the definition in float64.
"""

import torch
from fla.ops.based import fused_chunk_based, parallel_based

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """All pairs of tokens."""
    s = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    weights = (1 + s + s * s / 2).tril()
    return torch.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdim=True), v)


def main() -> None:
    """Print the mean of the output's error in units of the format's spacing at 1, and its RMS value."""
    for T in (256, 2048):
        for dtype in (torch.bfloat16, torch.float16):
            torch.manual_seed(0)
            spacing = torch.finfo(dtype).eps
            q, k = (torch.randn(1, T, 2, 16, device=DEVICE).to(dtype) for _ in range(2))
            # 1 or the next number: what a sum of two in 16 bits cannot hold, it drops
            v = (1 + spacing * torch.randint(0, 2, (1, T, 2, 32), device=DEVICE)).to(dtype)
            expected = definition(q.double(), k.double(), v.double())
            for function in (fused_chunk_based, parallel_based):
                error = (function(q, k, v).double() - expected) / spacing
                mean, rms = float(error.mean()), float(error.square().mean().sqrt())
                print(f"T {T:4}, {dtype}, {function.__name__}: mean error {mean:+.3f} spacings, RMS {rms:.3f}")


if __name__ == "__main__":
    main()
