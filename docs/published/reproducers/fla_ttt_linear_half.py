"""fla-core 0.6.0: the backward passes of chunk_ttt_linear and fused_chunk_ttt_linear overflow in float16.

    python fla_ttt_linear_half.py        needs torch, a GPU and fla-core

Gradients between the kernels' steps are kept in the inputs' dtype (`b_dh.to(b_k.dtype)`, fla/ops/ttt), and grow from token to
token faster than the results: beyond 65504 they are infinite in float16, and what is made of them is not finite, where the
same kernels in float32 give results that float16 could hold.
"""

import torch
from fla.ops.ttt import chunk_ttt_linear, fused_chunk_ttt_linear

NAMES = ("q", "k", "v", "w", "b", "eta")


def main() -> None:
    """Print how many elements of each gradient are not finite in float16, and the largest of each in float32."""
    for function in (chunk_ttt_linear, fused_chunk_ttt_linear):
        for rate in (0.1, 0.3, 1.0):
            torch.manual_seed(0)
            B, T, H, D = 2, 64, 2, 64
            q, k, v, do = (torch.randn(B, T, H, D, device="cuda").half() for _ in range(4))
            w, b = (1 + 0.1 * torch.randn(H, D, device="cuda")).half(), (0.1 * torch.randn(H, D, device="cuda")).half()
            eta = (torch.rand(B, T, H, 1, device="cuda") * rate).half()
            found = {}
            for dtype in (torch.float32, torch.float16):
                leaves = [x.to(dtype).clone().requires_grad_() for x in (q, k, v, w, b, eta)]
                o = function(*leaves, chunk_size=16)[0]
                found[dtype] = torch.autograd.grad(o, leaves, do.to(dtype))
            bad = {
                f"d{n}": f"{int((~torch.isfinite(x)).sum())} of {x.numel()} (float32: at most {float(y.abs().max()):.2g})"
                for n, x, y in zip(NAMES, found[torch.float16], found[torch.float32], strict=True)
                if not torch.isfinite(x).all()
            }
            print(f"{function.__name__}, step sizes up to {rate}: not finite in float16: {bad or 'nothing'}")


if __name__ == "__main__":
    main()
