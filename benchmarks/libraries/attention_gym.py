"""attn-gym's linear attention as the operators kda and gated_delta_rule: values first in states, int32 offsets."""

import torch
from attn_gym import linear

import linverify


def _called(function, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens, **more):
    o, state = function(
        *(q, k, v, g, beta),
        None if initial_state is None else initial_state.transpose(-1, -2).contiguous(),
        cu_seqlens=None if cu_seqlens is None else cu_seqlens.to(torch.int32),
        scale=scale,
        output_final_state=output_final_state,
        **more,
    )
    return (o, state.transpose(-1, -2)) if output_final_state else o


@linverify.kernel("kda", form="chunkwise", backend="triton")
def chunk_kda(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The fused chunkwise form, which needs CuTe DSL."""
    return _called(linear.chunk_kda, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens)


def chunk_kda_reference(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The chunkwise form in PyTorch, float32 inside."""
    more = {"impl": "reference"}
    return _called(linear.chunk_kda, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens, **more)


@linverify.kernel("kda", form="recurrent", backend="triton")
def recurrent_kda(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The recurrent form in Triton, for inference."""
    return _called(linear.recurrent_kda, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens)


@linverify.kernel("gated_delta_rule", form="chunkwise", backend="triton")
def chunk_gdn(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The fused chunkwise form, which needs CuTe DSL."""
    return _called(linear.chunk_gdn, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens)


def chunk_gdn_reference(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The chunkwise form in PyTorch, float32 inside."""
    more = {"impl": "reference"}
    return _called(linear.chunk_gdn, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens, **more)


@linverify.kernel("gated_delta_rule", form="recurrent", backend="triton")
def recurrent_gdn(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """The recurrent form in Triton, for inference."""
    return _called(linear.recurrent_gdn, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens)
