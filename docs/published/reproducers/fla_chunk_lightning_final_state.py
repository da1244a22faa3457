"""fla-core 0.6.0: the final state of chunk_lightning_attn is NaN where the last chunk of 64 tokens is not full.

    python fla_chunk_lightning_final_state.py        needs torch, a GPU and fla-core

`chunk_fwd_kernel_h` (fla/ops/common/chunk_h.py) with constant decays (USE_G_GAMMA) multiplies the values of a chunk by
exp(gamma * (rows left in the chunk)). Rows behind the last token are not masked: there the exponent is positive, up to 63
times the decay's rate, and infinity times the zero that was loaded for such a value is NaN. The rate of lightning attention
is up to 8 a token, so that 12 rows suffice; retention's rates, at most 1/31, are too small for it. Expected is the
recurrence in float64.
"""

import torch
from fla.ops.lightning_attn import chunk_lightning_attn, fused_recurrent_lightning_attn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYER, LAYERS = 0, 12


def main() -> None:
    """Print by length how many elements of the final state are not finite, and the largest error of the others."""
    B, H, K, V = 1, 8, 64, 64
    rate = 8 / H * (1 - LAYER / LAYERS) * torch.arange(H, device=DEVICE).double()
    for T in (64, 65, 100, 127, 128):
        torch.manual_seed(0)
        q, k, v = (torch.randn(B, T, H, D, device=DEVICE) for D in (K, K, V))
        left = torch.arange(T - 1, -1, -1, device=DEVICE).double()
        expected = torch.einsum("th,bthk,bthv->bhkv", (-left[:, None] * rate).exp(), k.double(), v.double())
        for function in (chunk_lightning_attn, fused_recurrent_lightning_attn):
            _, state = function(q, k, v, layer_idx=LAYER, num_layers=LAYERS, output_final_state=True)
            fine = torch.isfinite(state)
            error = (state - expected)[fine].abs().max()
            heads = (~fine).flatten(2).any(-1)[0].nonzero().flatten().tolist()
            print(
                f"T {T:3}, {function.__name__}: {int((~fine).sum())} of {state.numel()} elements not finite, "
                f"in heads {heads}; the others off by up to {float(error):.1e}"
            )


if __name__ == "__main__":
    main()
