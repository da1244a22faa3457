"""fla-core 0.6.0: fused_recurrent_hgrn returns its final state in the inputs' 16 bits.

    python fla_fused_recurrent_hgrn_state.py        needs torch, a GPU and fla-core

`x.new_empty(N, D)` (fla/ops/hgrn/fused_recurrent.py) makes the state as the inputs are; chunk_hgrn and every other operator of
the library return float32. A sequence that is handed on in pieces is rounded at every cut.
"""

import torch
from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Print each state's format, and how far 64 pieces of one token are from the whole, over the state's RMS value."""
    torch.manual_seed(0)
    x = torch.randn(2, 64, 128, device=DEVICE).bfloat16()
    g = torch.nn.functional.logsigmoid(torch.randn(2, 64, 128, device=DEVICE) + 4).bfloat16()
    expected = x.new_zeros(2, 128, dtype=torch.float64)
    for t in range(64):
        expected = g[:, t].double().exp() * expected + x[:, t].double()
    for function in (fused_recurrent_hgrn, chunk_hgrn):
        whole = function(x, g, output_final_state=True)[1]
        state = None
        for t in range(64):
            state = function(x[:, t : t + 1], g[:, t : t + 1], initial_state=state, output_final_state=True)[1]
        errors = [float((s.double().reshape(2, 128) - expected).norm() / expected.norm()) for s in (whole, state)]
        print(f"{function.__name__}: {whole.dtype}, whole {errors[0]:.1e}, in pieces {errors[1]:.1e}")


if __name__ == "__main__":
    main()
