"""fla-core 0.6.0: chunk_hgrn gives no gradient to its initial state and none from its final state.

    python fla_chunk_hgrn_state_gradient.py        needs torch, a GPU and fla-core

h_t = exp(g_t) h_{t-1} + x_t. `ChunkHGRNFunction.backward(ctx, do, dht)` (fla/ops/hgrn/chunk.py) ends in
`return dx.to(o.dtype), dg, None, None`: dht is never used and the initial state's place holds None.
"""

import torch
from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn


def main() -> None:
    """Print the largest gradient of each input, expected and computed, for a loss on o and for one on the final state."""
    torch.manual_seed(0)
    B, T, D = 2, 300, 64
    x, g, h0 = torch.randn(B, T, D).cuda(), -torch.rand(B, T, D).cuda() / 8, torch.randn(B, D).cuda()
    do, dht = torch.randn(B, T, D).cuda(), torch.randn(B, D).cuda()

    def loss(o: torch.Tensor, ht: torch.Tensor, which: str) -> torch.Tensor:
        return (o * do.to(o)).sum() if which == "o" else (ht.reshape(B, D) * dht.to(ht)).sum()

    for which in ("o", "final state"):
        wide = [a.double().requires_grad_() for a in (x, g, h0)]
        state, outs = wide[2], []
        for t in range(T):
            state = wide[1][:, t].exp() * state + wide[0][:, t]
            outs.append(state)
        expected = torch.autograd.grad(loss(torch.stack(outs, 1), state, which), wide, allow_unused=True)
        for function in (chunk_hgrn, fused_recurrent_hgrn):
            leaves = [a.clone().requires_grad_() for a in (x, g, h0)]
            o, ht = function(*leaves, output_final_state=True)
            found = torch.autograd.grad(loss(o, ht, which), leaves, allow_unused=True)
            print(f"{function.__name__}, a loss on the {which}:")
            for name, e, a in zip(("dx", "dg", "dh0"), expected, found, strict=True):
                got = "None" if a is None else f"up to {float(a.abs().max()):.3f}"
                print(f"  {name:3} expected up to {float(e.abs().max()):.3f}, got {got}")


if __name__ == "__main__":
    main()
