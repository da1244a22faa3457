"""lightning-attn's kernel as the operator lightning_attention: heads first, the slopes as an argument, the scale in q."""

import torch
from lightning_attn.ops import lightning_attn_func as library_function

import linverify


@linverify.kernel("lightning_attention", form="chunkwise", backend="triton")
def lightning_attn_func(q, k, v, scale=None):
    """The slopes of layer 0: 8 h / H."""
    H, K = q.shape[2:]
    slopes = torch.arange(H, device=q.device, dtype=torch.float32)[:, None, None] * (8 / H)
    q = q * (K**-0.5 if scale is None else scale)
    return library_function(*(x.transpose(1, 2) for x in (q, k, v)), slopes).transpose(1, 2)
