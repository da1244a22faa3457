"""fla-core 0.6.0: fused_recurrent_rwkv4 keeps its states for the backward pass in the keys' dtype.

    python fla_rwkv4_half_gradients.py        needs torch, a GPU and fla-core

`fused_recurrent_rwkv4_forward` (fla/ops/rwkv4/fused_recurrent.py) allocates the states of all tokens with k.new_empty, so that
with 16-bit keys the running maximum, an exponent, has 8 or 11 bits. The backward pass takes exp of its differences. Expected is
the same function on the same numbers in float32.
"""

import torch
from fla.ops.rwkv4 import fused_recurrent_rwkv4

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Print the RMS error of each gradient over its RMS value: the inputs' rounding alone would leave 0."""
    torch.manual_seed(0)
    B, T, C = 1, 64, 32
    w, u = torch.rand(C, device=DEVICE) * 2 - 5, torch.randn(C, device=DEVICE)
    k, v, do = (
        8 + 2 * torch.randn(B, T, C, device=DEVICE),
        torch.randn(B, T, C, device=DEVICE),
        torch.randn(B, T, C, device=DEVICE),
    )
    state = torch.zeros(B, 3, 1, C, device=DEVICE)
    state[:, 2] = -1e38
    dht = torch.zeros(B, 3, 1, C, device=DEVICE)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = [x.to(dtype) for x in (w, u, k, v)]
        found = []
        for kind in (torch.float32, dtype):
            leaves = [x.to(kind).requires_grad_() for x in rounded]
            o, final = fused_recurrent_rwkv4(*leaves, state)
            grads = torch.autograd.grad([o, final], leaves, [do.to(dtype).to(o), dht.to(final)])
            found.append([o.float(), final.float(), *(g.float() for g in grads)])
        print(dtype)
        for name, e, g in zip(("o", "state", "dw", "du", "dk", "dv"), *found, strict=True):
            print(f"  {name:5} {float((g - e).square().mean().sqrt() / e.square().mean().sqrt()):.2e}")


if __name__ == "__main__":
    main()
