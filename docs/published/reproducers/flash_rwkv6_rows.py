"""flash-rwkv 0.3.0: rwkv6_cuda_linear_attention gives every batch row the state of row 0, and no gradients.

    python flash_rwkv6_rows.py        needs torch, a GPU, nvcc, ninja and flash-rwkv; it builds its kernels at import

The kernel (flash_rwkv/rwkv6/wkv6_kernel.cu) addresses its state as `_state += h*_N_*_N_ + i*_N_; // wrong if B > 1 !!!`,
without the row, and nothing refuses more than one: all rows read and write the state of row 0, whichever comes last. Expected:
each row alone. Its backward pass returns None for every input (wkv6_op.py), so that an output that says it has a gradient
trains nothing.
"""

import torch
from flash_rwkv import rwkv6_cuda_linear_attention


def main() -> None:
    """Print the largest error of the output and of the state of each row."""
    torch.manual_seed(0)
    B, T, H, N = 3, 16, 2, 64
    r, k, v = (torch.randn(B, T, H * N, device="cuda") for _ in range(3))
    w, u = torch.randn(B, T, H * N, device="cuda"), torch.randn(H, N, device="cuda")
    state = torch.randn(B, H, N, N, device="cuda")
    o, final = rwkv6_cuda_linear_attention(r, k, v, w, u, state)
    for b in range(B):
        row = slice(b, b + 1)
        alone, last = rwkv6_cuda_linear_attention(
            *(x[row].contiguous() for x in (r, k, v, w)), u, state[row].contiguous()
        )
        print(
            f"row {b}: o off by up to {float((o[row] - alone).abs().max()):.3f}, "
            f"state off by up to {float((final[row] - last).abs().max()):.3f}"
        )
    leaves = [x.requires_grad_() for x in (r, k, v, w, u, state)]
    o, final = rwkv6_cuda_linear_attention(*leaves)
    (o.sum() + final.sum()).backward()
    print(f"o.requires_grad {o.requires_grad}; gradients {[x.grad for x in leaves]}")


if __name__ == "__main__":
    main()
