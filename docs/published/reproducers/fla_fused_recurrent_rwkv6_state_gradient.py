"""fla-core 0.6.0: fused_recurrent_rwkv6 drops the upstream gradient of the final state.

    python fla_fused_recurrent_rwkv6_state_gradient.py        needs torch, a GPU and fla-core

A loss on the final state alone: S_t = exp(w_t) S_{t-1} + k_t v_t^T. Its gradients are computed here in float64 from that line.
`FusedRecurrentRWKV6Function.backward(ctx, do, dht)` (fla/ops/rwkv6/fused_recurrent.py) never uses dht.
"""

import torch
from fla.ops.rwkv6 import chunk_rwkv6, fused_recurrent_rwkv6

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Print the largest gradient of each input, expected and computed."""
    torch.manual_seed(0)
    B, T, H, D = 1, 32, 2, 64
    r, k, v = (torch.randn(B, T, H, D, device=DEVICE) for _ in range(3))
    w = -torch.rand(B, T, H, D, device=DEVICE) / 8
    u, h0 = torch.randn(H, D, device=DEVICE), torch.randn(B, H, D, D, device=DEVICE)
    dht = torch.randn(B, H, D, D, device=DEVICE)

    wide = [x.double().requires_grad_() for x in (k, v, w, h0)]
    state = wide[3]
    for t in range(T):
        state = wide[2][:, t].exp()[..., None] * state + wide[0][:, t, :, :, None] * wide[1][:, t, :, None, :]
    expected = torch.autograd.grad(state, wide, dht.double())

    for function in (fused_recurrent_rwkv6, chunk_rwkv6):
        leaves = [x.clone().requires_grad_() for x in (k, v, w, h0)]
        try:
            _, ht = function(r, *leaves[:3], u, initial_state=leaves[3], output_final_state=True)
            found = torch.autograd.grad(ht, leaves, dht)
        except Exception as error:  # on a CPU the chunk form does not run
            print(f"{function.__name__}: {type(error).__name__}")
            continue
        print(
            f"{function.__name__}: final state off by {float((ht - state).abs().max()):.1e} of {float(state.abs().max()):.1f}"
        )
        for name, e, g in zip(("dk", "dv", "dw", "dh0"), expected, found, strict=True):
            print(f"  {name:4} expected up to {float(e.abs().max()):8.3f}, got up to {float(g.abs().max()):8.3f}")


if __name__ == "__main__":
    main()
