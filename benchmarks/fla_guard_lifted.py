"""flash-linear-attention's gated chunk kernels with their Hopper guard lifted.

fla-core refuses the backward pass of `chunk_simple_gla`, `chunk_gated_delta_rule` and `chunk_gated_delta_product` on Hopper
with Triton 3.4 to 3.7.0, because their shared kernel `chunk_bwd_dqkwg` was seen to give wrong gradients there
(fla-org/flash-linear-attention on GitHub, issue 640). Lifting the guard lets that be looked at: whether, where and by how
much.

    linverify check benchmarks/fla_guard_lifted.py
"""

import os

# Where TileLang is installed fla would run its kernel in place of the guarded one.
os.environ["FLA_TILELANG"] = "0"

import linverify

try:
    from fla.ops import gated_delta_product, gated_delta_rule, simple_gla
    from fla.ops.common import chunk_o
except ImportError as error:
    raise ImportError(
        f"this file needs fla-core 0.6.0 ({error}); install it with: pip install 'linverify[fla]'"
    ) from error

GUARD = "TRITON_ABOVE_3_7_1"
if not hasattr(chunk_o, GUARD):
    raise ImportError(
        f"expected fla-core 0.6.0, whose {chunk_o.__name__} asks {GUARD}; the one installed has no such guard to lift"
    )
# The guard asks this name of the module at every call, and nothing else does.
setattr(chunk_o, GUARD, True)


@linverify.kernel("simple_gla", form="chunkwise", backend="triton")
def chunk_simple_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Call fla.ops.simple_gla.chunk_simple_gla."""
    return simple_gla.chunk_simple_gla(
        q,
        k,
        v,
        g,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@linverify.kernel("gated_delta_rule", form="chunkwise", backend="triton")
def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Call fla.ops.gated_delta_rule.chunk_gated_delta_rule; keys are used as given and beta as it is, fla's defaults."""
    return gated_delta_rule.chunk_gated_delta_rule(
        q,
        k,
        v,
        g,
        beta,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


@linverify.kernel("gated_delta_product", form="chunkwise", backend="triton")
def chunk_gated_delta_product(
    q, k, v, g, beta, num_householder, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """Call fla.ops.gated_delta_product.chunk_gated_delta_product; a token's delta steps lie along time."""
    return gated_delta_product.chunk_gated_delta_product(
        q,
        k,
        v,
        g,
        beta,
        num_householder,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )
