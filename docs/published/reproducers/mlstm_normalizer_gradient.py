"""mlstm-kernels 2.0.6: the backward passes take the normaliser for a constant.

    python mlstm_normalizer_gradient.py        needs torch and mlstm-kernels; the Triton kernels need a GPU

h = C q / max(|n q|, exp(-m)): the backward passes divide the upstream gradient by the normaliser and go no further into it
(mlstm_kernels/torch/parallel/native/bw.py and its Triton and chunkwise twins), so dq, dk, di and df lack a term. That term
vanishes where a normalisation of each head's h follows, as in the xLSTM block, and with it the error; the library's tests
take such a loss (LayerNorm, then squares). With any other loss the gradients are others than those of the library's own
``native_autograd``. Expected is autograd through the definition in float64.
"""

import torch
from mlstm_kernels.torch import get_mlstm_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NATIVE = (
    "parallel--native_autograd",
    "parallel--native_custbw",
    "chunkwise--native_autograd",
    "chunkwise--native_custbw",
)
TRITON = ("parallel--triton_limit_headdim", "chunkwise--triton_limit_chunk", "chunkwise--triton_xl_chunk")


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """All pairs of tokens, [B, H, T, D]; Beck et al. 2024, arXiv:2405.04517, appendix A."""
    total = torch.nn.functional.logsigmoid(f).cumsum(-1)
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    log_weights = (total[..., :, None] - total[..., None, :] + i[..., None, :]).masked_fill(later, -torch.inf)
    m = log_weights.amax(-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 * (log_weights - m).exp()
    return (scores / torch.maximum(scores.sum(-1, keepdim=True).abs(), (-m).exp())) @ v


def main() -> None:
    """Print the RMS error of each gradient over its RMS value: the projection of h as a loss, and its LayerNorm's."""
    torch.manual_seed(0)
    B, H, T, D = 1, 2, 128, 64
    inputs = [torch.randn(B, H, T, D, device=DEVICE) for _ in range(3)] + [
        torch.randn(B, H, T, device=DEVICE) for _ in range(2)
    ]
    inputs[4] += 3  # forget gates
    weight = torch.randn(B, H, T, D, device=DEVICE)
    losses = {
        "(h * w).sum()": lambda h: (h * weight.to(h.dtype)).sum(),
        "(layer_norm(h) * w).sum()": lambda h: (
            torch.nn.functional.layer_norm(h, (D,), eps=0) * weight.to(h.dtype)
        ).sum(),
    }
    for name, loss in losses.items():
        wide = [x.double().requires_grad_() for x in inputs]
        expected = torch.autograd.grad(loss(definition(*wide)), wide)
        print(name)
        for kernel in NATIVE + (TRITON if DEVICE == "cuda" else ()):
            leaves = [x.clone().requires_grad_() for x in inputs]
            try:
                h = get_mlstm_kernel(kernel)(*leaves, eps=1e-30)
                found = torch.autograd.grad(loss(h.float()), leaves)
            except Exception as error:
                print(f"  {kernel:31} {type(error).__name__}")
                continue
            errors = [
                float((g - e).square().mean().sqrt() / e.square().mean().sqrt())
                for g, e in zip(found, expected, strict=True)
            ]
            print(f"  {kernel:31} " + ", ".join(f"d{n} {e:.1e}" for n, e in zip("qkvif", errors, strict=True)))


if __name__ == "__main__":
    main()
