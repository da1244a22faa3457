"""flash-linear-attention's functions whose signature is not an operator's as it stands; nothing here but the mapping.

Each takes an operator's arguments in linverify's layout and calls fla-core. The others are checked as they are
(``benchmarks/trial_targets.py``).
"""

import torch
from fla.ops.linear_attn import chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn
from fla.ops.rwkv4 import fused_recurrent_rwkv4 as fla_fused_recurrent_rwkv4
from fla.ops.ttt import chunk_ttt_linear as fla_chunk_ttt_linear
from fla.ops.ttt import fused_chunk_ttt_linear as fla_fused_chunk_ttt_linear

# What a RWKV-4 state has for its running maximum before any token.
NO_MAXIMUM = -1e38


def chunk_ttt_linear(q, k, v, w, b, eta, scale=None, eps=1e-6, chunk_size=16, cu_seqlens=None):
    """ttt_linear: fla returns the output, the state and the state's bias."""
    return fla_chunk_ttt_linear(q, k, v, w, b, eta, scale=scale, eps=eps, chunk_size=chunk_size, cu_seqlens=cu_seqlens)[
        0
    ]


def fused_chunk_ttt_linear(q, k, v, w, b, eta, scale=None, eps=1e-6, chunk_size=16, cu_seqlens=None):
    """ttt_linear: as above."""
    return fla_fused_chunk_ttt_linear(
        q, k, v, w, b, eta, scale=scale, eps=eps, chunk_size=chunk_size, cu_seqlens=cu_seqlens
    )[0]


def fused_recurrent_rwkv4(w, u, k, v, initial_state=None, output_final_state=False):
    """rwkv4: fla asks for a state, and always returns one."""
    if initial_state is None:
        initial_state = k.new_zeros(k.shape[0], 3, 1, k.shape[-1], dtype=torch.float32)
        initial_state[:, 2] = NO_MAXIMUM
    o, state = fla_fused_recurrent_rwkv4(w, u, k, v, initial_state)
    return (o, state) if output_final_state else o


def _elu1(x):
    """1 + elu, rounded once: exp(x) below 0."""
    wide = x.float()
    return torch.where(wide > 0, wide + 1, wide.clamp(max=0).exp()).to(x.dtype)


def normalized_chunk(q, k, v, scale=None, cu_seqlens=None):
    """normalized_linear_attention (eps=1e-10): the feature map is the caller's business in fla."""
    return chunk_linear_attn(_elu1(q), _elu1(k), v, scale=scale, normalize=True, cu_seqlens=cu_seqlens)[0]


def normalized_fused_chunk(q, k, v, scale=None, cu_seqlens=None):
    """normalized_linear_attention (eps=1e-10): as above."""
    return fused_chunk_linear_attn(_elu1(q), _elu1(k), v, scale=scale, normalize=True, cu_seqlens=cu_seqlens)[0]


def normalized_fused_recurrent(q, k, v, scale=None, cu_seqlens=None):
    """normalized_linear_attention (eps=1e-10): as above."""
    return fused_recurrent_linear_attn(_elu1(q), _elu1(k), v, scale=scale, normalize=True, cu_seqlens=cu_seqlens)[0]
