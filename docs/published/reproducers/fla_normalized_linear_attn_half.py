"""fla-core 0.6.0: normalised linear attention in float16 loses the gradient of its normaliser.

    python fla_normalized_linear_attn_half.py        needs torch, a GPU and fla-core

`StatefulNormalizeFunction` (fla/ops/linear_attn/utils.py) divides by denom * denom in the inputs' dtype. In float16 that is
infinite once denom = scale q . sum(k) is above 256, which positive features of 64 channels reach within some 30 tokens; the
gradient through the normaliser is then zero, without a NaN to tell. Expected values are computed here in float64 from the
definition.
"""

import torch
from fla.ops.linear_attn import chunk_linear_attn, fused_recurrent_linear_attn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """All pairs of tokens."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    scores = scores.tril()
    return torch.einsum("bhij,bjhd->bihd", scores / scores.sum(-1, keepdim=True), v)


def main() -> None:
    """Print the RMS error of each gradient over its RMS value, by length and dtype."""
    for T in (16, 64, 256) if DEVICE == "cuda" else (16, 64):
        torch.manual_seed(0)
        q, k = (torch.nn.functional.elu(torch.randn(1, T, 2, 64, device=DEVICE)) + 1 for _ in range(2))
        v, do = torch.randn(1, T, 2, 64, device=DEVICE), torch.randn(1, T, 2, 64, device=DEVICE)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            rounded = [x.to(dtype) for x in (q, k, v, do)]
            wide = [x.double().requires_grad_() for x in rounded[:3]]
            o = expected(*wide)
            denom = (wide[0] * wide[1].cumsum(1)).sum(-1) * 64**-0.5
            wanted = [o, *torch.autograd.grad(o, wide, rounded[3].double())]
            for function in (chunk_linear_attn, fused_recurrent_linear_attn):
                leaves = [x.clone().requires_grad_() for x in rounded[:3]]
                try:
                    found = function(*leaves, normalize=True)[0]
                    found = [found, *torch.autograd.grad(found, leaves, rounded[3])]
                except Exception as error:  # on a CPU the chunk form does not run
                    print(f"{function.__name__}: {type(error).__name__}")
                    continue
                errors = [
                    float((f.double() - w).square().mean().sqrt() / w.square().mean().sqrt())
                    for f, w in zip(found, wanted, strict=True)
                ]
                named = ", ".join(f"{n} {e:.1e}" for n, e in zip(("o", "dq", "dk", "dv"), errors, strict=True))
                print(f"T {T:4}, denom up to {float(denom.max()):7.1f}, {dtype}, {function.__name__}: {named}")


if __name__ == "__main__":
    main()
