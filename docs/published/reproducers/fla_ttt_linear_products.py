"""fla-core 0.6.0: chunk_ttt_linear and fused_chunk_ttt_linear multiply step sizes, keys and norms in 16 bits.

    python fla_ttt_linear_products.py        needs torch, a GPU and fla-core

`b_eta_last * b_k`, `b_eta * b_A.to(b_v.dtype)` and the terms of the norm's slope (fla/ops/ttt) are products of 16-bit numbers,
rounded before tensor cores multiply them. The comparison rounds what tensor cores multiply once, and all else is float32, as in
the library's other kernels. Expected is the definition in float64.
"""

import torch
from fla.ops.ttt import chunk_ttt_linear, fused_chunk_ttt_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 16


def definition(q, k, v, w, b, eta, dtype=None):
    """Mini-batches of 16 tokens, heads first; `dtype`: what operands of products are rounded to."""

    def times(x, y):
        return x @ y if dtype is None else x.to(dtype).to(x.dtype) @ y.to(dtype).to(y.dtype)

    def hat(x):
        return (x - x.mean(-1, True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    B, H, T, D = q.shape
    W, bias, outs = q.new_zeros(B, H, D, D), q.new_zeros(B, H, 1, D), []
    for s in range(0, T, SIZE):
        Q, K, V, E = (x[:, :, s : s + SIZE] for x in (q * D**-0.5, k, v, eta))
        u = times(K, W) + bias
        n, spread = hat(u), (u.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        g = (w * n + b - (V - K)) * w
        d = (g - g.mean(-1, True) - n * (g * n).mean(-1, True)) / spread
        z = (
            times(Q, W)
            + bias
            - times((E * times(Q, K.mT)).tril(), d)
            - times(E.expand(-1, -1, -1, Q.shape[2]).tril(), d)
        )
        W, bias = W - times((E[:, :, -1:] * K).mT, d), bias - (E[:, :, -1:] * d).sum(2, True)
        outs.append(z + hat(z) * w + b)
    return torch.cat(outs, 2)


def main() -> None:
    """Print the RMS error of o over its RMS value."""
    for dtype in (torch.bfloat16, torch.float16):
        for T in (64, 256):
            torch.manual_seed(0)
            q, k, v = (torch.randn(1, T, 2, 64, device=DEVICE).to(dtype) for _ in range(3))
            w, b = ((torch.randn(2, 64, device=DEVICE) * 0.2 + shift).to(dtype) for shift in (1, 0))
            eta = (torch.rand(1, T, 2, 1, device=DEVICE) * 0.09 + 0.01).to(dtype)
            first = [*(x.transpose(1, 2) for x in (q, k, v)), w[:, None], b[:, None], eta.transpose(1, 2)]
            expected = definition(*(x.double() for x in first)).transpose(1, 2)
            found = {"rounded once": definition(*(x.float() for x in first), dtype).transpose(1, 2).to(dtype)}
            for function in (chunk_ttt_linear, fused_chunk_ttt_linear):
                found[function.__name__] = function(q, k, v, w, b, eta, chunk_size=SIZE)[0]
            errors = {n: float((o.double() - expected).norm() / expected.norm()) for n, o in found.items()}
            print(f"{dtype}, T {T:3}: {', '.join(f'{n} {e:.1e}' for n, e in errors.items())}")


if __name__ == "__main__":
    main()
