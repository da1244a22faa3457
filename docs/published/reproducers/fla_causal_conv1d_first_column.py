"""fla-core 0.6.0: causal_conv1d drops the gradient of the first column of its final state.

    python fla_causal_conv1d_first_column.py        needs torch, a GPU and fla-core

The final state [B, D, W] holds the last W inputs; its gradient belongs to the last W tokens, and the backward kernel
(fla/modules/causal_conv1d/ops.py, start_tok = T - (W - 1)) adds it to the last W - 1. A convolution that goes on from the state
reads W - 1 columns, so that nothing is lost there; a loss on the state as it is returned loses one of its W columns.
"""

import torch
from fla.modules.causal_conv1d import causal_conv1d


def main() -> None:
    """Print the gradient of the last inputs for a loss that sums the final state: 1 for each of W tokens."""
    B, T, D, W = 1, 32, 64, 4
    x = torch.randn(B, T, D, device="cuda", requires_grad=True)
    weight = torch.randn(D, W, device="cuda")
    _, state = causal_conv1d(x, weight, output_final_state=True)
    print(f"the state is the last {W} inputs: {torch.equal(state, x[:, -W:].transpose(1, 2))}")
    (dx,) = torch.autograd.grad(state.sum(), x)
    print(f"dx of the last {W + 1} tokens, expected 0, 1, 1, 1, 1: {dx[0, -W - 1 :, 0].tolist()}")


if __name__ == "__main__":
    main()
