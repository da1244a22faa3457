"""pytorch-fast-transformers 0.4.0: causal_dot_product on a CPU reads what is not contiguous as if it were.

    python fast_transformers_strides.py        needs torch and pytorch-fast-transformers, no GPU

`causal_dot_product` and `causal_dot_backward` (fast_transformers/causal_product/causal_product_cpu.cpp) take the address of a
row's first element and walk on from there, so the last stride is taken to be 1, and nothing makes the tensors contiguous or
refuses them. The upstream gradient of `o.sum()` has strides of 0: four bytes that are read as a whole row, the rest being
whatever memory holds behind them. The CUDA form asserts the stride instead and ends the process. Expected is the definition
in float64.
"""

import torch
from fast_transformers.causal_product import causal_dot_product


def definition(Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """All pairs of tokens."""
    return torch.einsum("nhle,nhse->nhls", Q, K).tril() @ V


def told(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Print the largest error beside the largest value."""
    off = (found - expected).abs().nan_to_num(torch.inf).max()
    print(f"  {name:2} expected up to {float(expected.abs().max()):8.2f}, off by up to {float(off):.3g}")


def main() -> None:
    """Print the errors for a contiguous upstream gradient, that of a plain sum, and a transposed input."""
    torch.manual_seed(0)
    Q, K, V = (torch.randn(2, 3, 50, D, requires_grad=True) for D in (16, 16, 24))
    wide = [x.detach().double().requires_grad_() for x in (Q, K, V)]
    ones = torch.ones(2, 3, 50, 24)
    expected = torch.autograd.grad(definition(*wide), wide, ones.double())
    for name, upstream in (
        ("a contiguous gradient of ones", ones),
        ("the gradient of o.sum()", torch.ones(()).expand_as(ones)),
    ):
        print(name)
        found = torch.autograd.grad(causal_dot_product(Q, K, V), (Q, K, V), upstream)
        for n, f, e in zip(("dQ", "dK", "dV"), found, expected, strict=True):
            told(n, f, e)
    print("Q a transposed view")
    view = Q.detach().transpose(2, 3).contiguous().transpose(2, 3)
    told("o", causal_dot_product(view, K, V).detach(), definition(*wide).detach())


if __name__ == "__main__":
    main()
