"""fla-core 0.6.0: the backward pass of chunk_mesa_net keeps a gradient in float16, which large values overflow.

    python fla_mesa_backward_half.py        needs torch, a GPU and fla-core

The gradient that comes out of the conjugate gradient solver is stored in torch.float16 (fla/ops/mesa_net/chunk.py,
chunk_fwd_mesa_net_bwd), whatever the inputs' dtype: beyond 65504 it is infinite, and dk and dbeta are made of it. The forward
pass, reported as issue 1187 of fla-org/flash-linear-attention, keeps that state in bfloat16 by now and is finite.
"""

import torch
from fla.ops.mesa_net import chunk_mesa_net


def main() -> None:
    """Print how many elements of each result are not finite, by the size of the values."""
    B, T, H, D = 1, 2048, 4, 128
    for size in (1, 100, 300, 1000):
        torch.manual_seed(0)
        q, k, v, do = (torch.randn(B, T, H, D, device="cuda").bfloat16() for _ in range(4))
        g = torch.full((B, T, H), -0.001, device="cuda")
        beta, lamb = torch.rand(B, T, H, device="cuda"), torch.rand(H, D, device="cuda") * 0.75 + 0.25
        leaves = [x.detach().requires_grad_() for x in (q, k, v * size, g, beta, lamb)]
        o = chunk_mesa_net(*leaves, use_qk_l2norm_in_kernel=True)[0]
        grads = torch.autograd.grad(o, leaves, do)
        named = dict(zip(("o", "dq", "dk", "dv", "dg", "dbeta", "dlamb"), (o, *grads), strict=True))
        bad = {n: int((~torch.isfinite(x)).sum()) for n, x in named.items() if not torch.isfinite(x).all()}
        largest = float(grads[0][torch.isfinite(grads[0])].abs().max())
        print(f"values of about {size:4}: largest dq {largest:9.3g}; not finite: {bad or 'nothing'}")


if __name__ == "__main__":
    main()
