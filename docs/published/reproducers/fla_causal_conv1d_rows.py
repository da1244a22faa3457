"""fla-core 0.6.0: the weight's gradient of causal_conv1d is wrong for cu_seqlens together with more than one row.

    python fla_causal_conv1d_rows.py        needs torch, a GPU and fla-core

`causal_conv1d_bwd` (fla/modules/causal_conv1d/ops.py) allocates B * NT partial sums with new_empty, writes NT of them where
cu_seqlens is given, and adds up all. Reported by others as pull request 955 of fla-org/flash-linear-attention, open when
fla-core 0.6.0 was released. The expected value is the same call with the two rows laid end to end.
"""

import torch
from fla.modules.causal_conv1d import causal_conv1d


def main() -> None:
    """Print the gradient's error with fresh memory holding zeros, ones and NaN."""
    torch.manual_seed(0)
    B, T, D, W = 2, 1024, 768, 4
    x, dy = torch.randn(B, T, D, device="cuda"), torch.randn(B, T, D, device="cuda")
    weight = torch.randn(D, W, device="cuda", requires_grad=True)
    offsets = torch.tensor([0, T, 2 * T], device="cuda")

    def gradient(rows: int, fill: float) -> torch.Tensor:
        y, _ = causal_conv1d(x.reshape(rows, -1, D), weight, cu_seqlens=offsets)
        junk = [torch.full((2**e,), fill, device="cuda") for e in range(8, 24)]
        del junk
        return torch.autograd.grad(y, weight, dy.reshape(rows, -1, D))[0]

    expected = gradient(1, 0.0)
    for fill in (0.0, 1.0, float("nan")):
        found = gradient(B, fill)
        print(
            f"fresh memory {fill}: dweight expected up to {float(expected.abs().max()):.2f}, off by up to "
            f"{float((found - expected).abs().max()):.4g}"
        )


if __name__ == "__main__":
    main()
