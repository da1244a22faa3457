"""fla-core 0.6.0: fused_chunk_based adds keys and values up in 16 bits.

    python fla_fused_chunk_based_sums.py        needs torch, a GPU and fla-core

`tl.sum` adds in its input's type, and the kernel (fla/ops/based/fused_chunk.py) sums the values, keys and squared keys of a
chunk as they come, in 16 bits, into the float32 statistics that all later tokens read; parallel_based, which does not, is the
comparison. Expected is the definition in float64.
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
    """Print the RMS error of the output over its RMS value, for all tokens and for the last 256."""
    for T in (256, 2048):
        for dtype in (torch.bfloat16, torch.float16):
            torch.manual_seed(0)
            q, k = (torch.randn(1, T, 2, 16, device=DEVICE).to(dtype) for _ in range(2))
            v = (torch.rand(1, T, 2, 32, device=DEVICE) + 0.5).to(dtype)
            expected = definition(q.double(), k.double(), v.double())
            for function in (fused_chunk_based, parallel_based):
                error = function(q, k, v).double() - expected
                ratios = [
                    float(error[:, -n:].square().mean().sqrt() / expected.square().mean().sqrt()) for n in (T, 256)
                ]
                print(f"T {T:4}, {dtype}, {function.__name__}: {ratios[0]:.1e}, last 256 tokens {ratios[1]:.1e}")


if __name__ == "__main__":
    main()
