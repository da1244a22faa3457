"""fla-core 0.6.0: chunk_rwkv6 and chunk_rwkv7 sum float32 log gates in TF32 on Hopper.

    python fla_chunk_rwkv6_log_gates.py        needs torch, a GPU and fla-core

`chunk_rwkv6_fwd_cumsum_kernel` (fla/ops/rwkv6/chunk.py) forms running sums of the log gates as `tl.dot(m_i, b_s)`, whose
default for float32 on Hopper is TF32: every gate loses 13 bits first. One token, an initial state, no keys: the final state
is exp(w) h0, so its relative error is that of the gate alone.
"""

import torch
from fla.ops.rwkv6 import chunk_rwkv6, fused_recurrent_rwkv6


def main() -> None:
    """Print the relative error of the final state by the size of the gate."""
    torch.manual_seed(0)
    D = 64
    zero = torch.zeros(1, 1, 1, D, device="cuda")
    u, h0 = torch.zeros(1, D, device="cuda"), torch.ones(1, 1, D, D, device="cuda")
    print(
        "gate      chunk_rwkv6   fused_recurrent_rwkv6   (largest relative error of the final state; float32 allows 1e-6)"
    )
    for size in (0.1, 1.0, 2.5, 5.0):
        w = -size * (1 + torch.rand(1, 1, 1, D, device="cuda") / 64)
        expected = w.double().exp()[0, 0, 0][:, None]
        errors = []
        for function in (chunk_rwkv6, fused_recurrent_rwkv6):
            _, ht = function(zero, zero, zero, w, u, initial_state=h0, output_final_state=True)
            errors.append(float(((ht[0, 0].double() - expected) / expected).abs().max()))
        print(f"-{size:<6}   {errors[0]:11.1e}   {errors[1]:11.1e}")


if __name__ == "__main__":
    main()
