"""fla-core 0.6.0: parallel_rebased rounds dividend and divisor to the inputs' dtype before it divides them.

    python fla_parallel_rebased_quotient.py        needs torch, a GPU and fla-core

The kernel adds both up in float32, and `o.sum(0).to(q.dtype), z.sum(0).to(q.dtype)` (fla/ops/rebased/parallel.py) rounds them.
In bfloat16 that costs two roundings more; in float16 a sum of squared scores above 65504 is infinite, and the quotient zero.
Expected is the definition in float64; divided in float32 is the same kernel on float32 copies of the same numbers.
"""

import torch
from fla.ops.rebased import parallel_rebased

EPS = 1e-5


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """All pairs of tokens."""
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5).square().tril()
    divisor = weights.sum(-1, keepdim=True) + EPS
    return torch.einsum("bhij,bjhd->bihd", weights / divisor, v)


def main() -> None:
    """Print the RMS error of the output over its RMS value, and how many outputs are exactly zero."""
    for size in (1.0, 2.0, 3.0):
        for dtype in (torch.bfloat16, torch.float16):
            torch.manual_seed(0)
            q, k = ((torch.randn(1, 2048, 2, 64, device="cuda") * size).to(dtype) for _ in range(2))
            v = torch.randn(1, 2048, 2, 64, device="cuda").to(dtype)
            expected = definition(q.double(), k.double(), v.double())
            given = parallel_rebased(q, k, v, eps=EPS)
            better = parallel_rebased(q.float(), k.float(), v.float(), eps=EPS).to(dtype)
            ratios = [
                float((x.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
                for x in (given, better)
            ]
            zero = float((given == 0).float().mean())
            print(
                f"q, k of about {size:.0f}, {dtype}: {ratios[0]:.1e}, divided in float32 {ratios[1]:.1e}; zeros: {zero:.1%}"
            )


if __name__ == "__main__":
    main()
