"""mlstm-kernels' Triton kernels as the operator mlstm: heads first, padded to whole chunks by the library's own wrapper."""

from mlstm_kernels.torch.chunkwise import mlstm_chunkwise__limit_chunk, mlstm_chunkwise__xl_chunk
from mlstm_kernels.torch.kernel_wrappers import wrap_chunkwise__pad_zeros
from mlstm_kernels.torch.parallel import mlstm_parallel__limit_headdim
from torch.nn.functional import pad


def _padded(kernel, chunk_size, q, k, v, i, f, eps):
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v, f, i)]
    o = wrap_chunkwise__pad_zeros(kernel, *heads_first, eps=eps, autocast_kernel_dtype=q.dtype, chunk_size=chunk_size)
    return o.transpose(1, 2)


def xl_chunk(q, k, v, i, f, eps=1e-30):
    """Chunks of 128 tokens, split over programs."""
    return _padded(mlstm_chunkwise__xl_chunk, 128, q, k, v, i, f, eps)


def limit_chunk(q, k, v, i, f, eps=1e-30):
    """Chunks of 64 tokens, one program each."""
    return _padded(mlstm_chunkwise__limit_chunk, 64, q, k, v, i, f, eps)


def limit_headdim(q, k, v, i, f, eps=1e-30):
    """The parallel form, which wants heads as wide for values as for keys: narrower values are padded."""
    V = v.shape[-1]
    v = pad(v, (0, max(0, q.shape[-1] - V)))
    return _padded(mlstm_parallel__limit_headdim, 64, q, k, v, i, f, eps)[..., :V]
