"""mlstm-kernels 2.0.6: the native sequence kernel in bfloat16 reads its memory in bfloat16.

    python mlstm_native_bf16.py        needs torch and mlstm-kernels

The kernel carries memory and normaliser in float32, and rounds both products of a query with them, and their operands, to
the inputs' format (mlstm_kernels/torch/recurrent/native_step.py); the parallel form of the same library, on the same numbers in
float32, shows what rounding the result alone costs. Expected is the definition in float64.
"""

import torch
from mlstm_kernels.torch.parallel.native import mlstm_parallel__native_autograd
from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """All pairs of tokens, [B, H, T, D]; Beck et al. 2024, arXiv:2405.04517, appendix A."""
    total = torch.nn.functional.logsigmoid(f).cumsum(-1)
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    log_weights = (total[..., :, None] - total[..., None, :] + i[..., None, :]).masked_fill(later, -torch.inf)
    m = log_weights.amax(-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 * (log_weights - m).exp()
    return (scores / torch.maximum(scores.sum(-1, keepdim=True).abs(), (-m).exp())) @ v


def main() -> None:
    """Print the median over tokens of the error of o over its size, per token."""
    for T in (16, 64, 256):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 2, T, 64).bfloat16() for _ in range(3))
        i, f = (torch.randn(1, 2, T).bfloat16() + shift for shift in (0, 4))
        expected = definition(*(x.double() for x in (q, k, v, i, f)))
        found = {
            "native_recurrent in bfloat16": mlstm_recurrent_sequence__native_fw(q, k, v, i, f, eps=0.0),
            "parallel in float32, rounded": mlstm_parallel__native_autograd(
                *(x.float() for x in (q, k, v, i, f)), eps=0.0
            ).bfloat16(),
        }
        errors = {
            n: float(((o.double() - expected).norm(dim=-1) / expected.norm(dim=-1)).median()) for n, o in found.items()
        }
        print(f"T {T:3}: {', '.join(f'{n} {e:.1e}' for n, e in errors.items())}")


if __name__ == "__main__":
    main()
