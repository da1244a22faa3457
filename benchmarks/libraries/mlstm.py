"""mlstm-kernels' Triton and PyTorch forms as the operator mlstm: heads first, whole chunks by its own wrapper."""

from mlstm_kernels.torch.chunkwise import mlstm_chunkwise__limit_chunk, mlstm_chunkwise__xl_chunk
from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_custbw
from mlstm_kernels.torch.kernel_wrappers import wrap_chunkwise__pad_zeros
from mlstm_kernels.torch.parallel import mlstm_parallel__limit_headdim
from mlstm_kernels.torch.parallel.native import mlstm_parallel__native_custbw
from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw
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


def native_chunkwise(q, k, v, i, f, eps=1e-30):
    """PyTorch, chunks of 64 tokens, with the library's own backward pass."""
    return _padded(mlstm_chunkwise__native_custbw, 64, q, k, v, i, f, eps)


def native_parallel(q, k, v, i, f, eps=1e-30):
    """PyTorch, all pairs of tokens, with the library's own backward pass."""
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v, i, f)]
    return mlstm_parallel__native_custbw(*heads_first, eps=eps, autocast_kernel_dtype=q.dtype).transpose(1, 2)


def native_recurrent(q, k, v, i, f, eps=1e-30):
    """PyTorch, token by token."""
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v, i, f)]
    return mlstm_recurrent_sequence__native_fw(*heads_first, eps=eps).transpose(1, 2)
