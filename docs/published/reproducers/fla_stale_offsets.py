"""fla-core 0.6.0: offsets refilled in place are read as they were at the first call.

    python fla_stale_offsets.py        needs torch and fla-core; the second half needs a GPU

`prepare_chunk_indices` (fla/ops/utils/index.py) is memoised by the identity of its arguments (`tensor_cache`), so a cu_seqlens
tensor that is overwritten keeps the chunk grid of its first values. Reported by others as pull request 1274 of
fla-org/flash-linear-attention, open when fla-core 0.6.0 was released; FLA_DISABLE_TENSOR_CACHE=1 turns the memory off.
"""

import torch
from fla.ops.gla import chunk_gla
from fla.ops.utils import prepare_chunk_indices


def main() -> None:
    """Print the chunk grid after a refill, and the outputs of packed GLA."""
    offsets = torch.tensor([0, 200, 256])
    prepare_chunk_indices(offsets, 64)
    offsets.copy_(torch.tensor([0, 56, 256]))
    print("borders 0, 56, 256 in chunks of 64: (sequence, chunk)")
    print("  expected", prepare_chunk_indices(offsets.clone(), 64).tolist())
    print("  got     ", prepare_chunk_indices(offsets, 64).tolist())

    if not torch.cuda.is_available():
        return
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 256, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    g = -torch.rand(1, 256, 2, 64, device="cuda") / 8
    offsets = torch.tensor([0, 200, 256], device="cuda")
    chunk_gla(q, k, v, g, cu_seqlens=offsets)
    offsets.copy_(torch.tensor([0, 56, 256]))
    expected = chunk_gla(q, k, v, g, cu_seqlens=offsets.clone())[0].float()
    junk = torch.full((2**24,), float("nan"), device="cuda")  # what fresh memory holds next
    del junk
    found = chunk_gla(q, k, v, g, cu_seqlens=offsets)[0].float()
    wrong = (found != expected).flatten(2).any(-1)[0]
    print(
        f"chunk_gla, packed, after the refill: {int(wrong.sum())} of 256 tokens differ from a call with a fresh tensor"
    )
    print(f"  not finite: {int((~torch.isfinite(found)).sum())} of {found.numel()} elements")


if __name__ == "__main__":
    main()
