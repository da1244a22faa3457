"""Attempts at the reported defects of flash-linear-attention's short convolution, which is no operator of ours."""

import torch
from crew import Finding
from direct import DEVICE, offsets, poison, rms_ratio
from torch import Tensor


def causal(x: Tensor, weight: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution [B, T, D] by [D, W] from its definition, and the last W inputs [B, D, W]."""
    B, _, D = x.shape
    W = weight.shape[1]
    before = x.new_zeros(B, D, W) if state is None else state
    full = torch.cat([before.transpose(1, 2), x], 1)
    y = sum(full[:, w + 1 : w + 1 + x.shape[1]] * weight[:, w] for w in range(W))
    return torch.as_tensor(y), full[:, -W:].transpose(1, 2)


def issue_955() -> Finding:
    """The weight's gradient of causal_conv1d with cu_seqlens and two rows; the thread's own sizes."""
    from fla.modules.causal_conv1d import causal_conv1d

    torch.manual_seed(0)
    B, T, D, W = 2, 1024, 768, 4
    x = torch.randn(B, T, D, device=DEVICE).bfloat16()
    weight = (torch.randn(D, W, device=DEVICE) * 0.1).bfloat16().requires_grad_()
    dy = torch.randn(B, T, D, device=DEVICE).bfloat16()
    poison()
    try:
        y, _ = causal_conv1d(x, weight, cu_seqlens=offsets((T, T)))
        (found,) = torch.autograd.grad(y, weight, dy)
    except ValueError as error:
        return Finding("not reproduced", f"refused: {str(error)[:90]}")
    wide = weight.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(causal(x.double(), wide)[0], wide, dy.double())
    ratio = rms_ratio(expected, found)
    return Finding.of(not ratio < 0.02, f"RMS error of dweight over its RMS value {ratio:.3g}")


def short_or_expanded(T: int, *, expanded: bool, first_column: bool = False) -> Finding:
    """Gradients with a state in and out: fewer tokens than the width (issue 1140), or a dy with strides of 0 (issue 1138).

    Args:
        T: tokens.
        expanded: whether dy has strides of 0.
        first_column: whether a gradient comes back for the final state's first column, too, which no later token reads.
    """
    from fla.modules.causal_conv1d import causal_conv1d

    torch.manual_seed(0)
    B, D, W = 2, 64, 4
    x, weight, state = (torch.randn(*s, device=DEVICE) for s in ((B, T, D), (D, W), (B, D, W)))
    leaves = [a.requires_grad_() for a in (x, weight, state)]
    dy = torch.ones(1, device=DEVICE).expand(B, T, D) if expanded else torch.randn(B, T, D, device=DEVICE)
    dht = torch.randn(B, D, W, device=DEVICE)
    dht[:, :, 0] *= first_column
    y, final = causal_conv1d(x, weight, initial_state=state, output_final_state=True, activation="silu")
    found = torch.autograd.grad([y, final], leaves, [dy, dht])
    wide = [a.detach().double().requires_grad_() for a in leaves]
    y64, final64 = causal(*wide)
    expected = torch.autograd.grad([torch.nn.functional.silu(y64), final64], wide, [dy.double(), dht.double()])
    ratios = {n: rms_ratio(e, g) for n, e, g in zip(("dx", "dweight", "dstate"), expected, found, strict=True)}
    return Finding.of(
        not max(ratios.values()) < 0.005,
        "RMS error over RMS value: " + ", ".join(f"{n} {r:.2g}" for n, r in ratios.items()),
    )
