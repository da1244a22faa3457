"""mlstm-kernels 2.0.6: limit_chunk is wrong for heads of 32 values in 16 bits on an H100.

    python mlstm_limit_chunk_narrow_values.py        needs torch, a GPU and mlstm-kernels
    compute-sanitizer --tool memcheck python mlstm_limit_chunk_narrow_values.py 32 bfloat16

From the 17th token of the first chunk on o is something else, another thing from call to call, and later calls may end with an
illegal memory access. The sanitizer names line 170 of triton/chunkwise/limit_chunk/fw_kernel_parallel.py, the product of query
and state: "Out-of-range shared or local address". With 64 values, in float32, or in the parallel kernel nothing is wrong, so
Triton's compiler (seen in 3.6.0) may be what reads there.
"""

import sys

import torch
from mlstm_kernels.torch.chunkwise import mlstm_chunkwise__limit_chunk
from mlstm_kernels.torch.parallel.native import mlstm_parallel__native_autograd


def main(widths: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Print the median error of o, first 16 tokens and the others, over its median magnitude."""
    for width in widths:
        for dtype in dtypes:
            torch.manual_seed(0)
            q, k = (torch.randn(1, 2, 64, 64, device="cuda").to(dtype) for _ in range(2))
            v = torch.randn(1, 2, 64, width, device="cuda").to(dtype)
            i, f = (torch.randn(1, 2, 64, device="cuda").to(dtype) + shift for shift in (0, 4))
            expected = mlstm_parallel__native_autograd(*(x.float() for x in (q, k, v, i, f)))
            try:
                given = mlstm_chunkwise__limit_chunk(q, k, v, i, f, chunk_size=64, autocast_kernel_dtype=dtype).float()
                torch.cuda.synchronize()
            except RuntimeError as reason:  # the process cannot use its GPU any more
                sys.exit(f"{width} values, {dtype}: {str(reason).splitlines()[0]}")
            error, size = (given - expected).abs(), expected.abs().median()
            parts = [float(x.median() / size) for x in (error[:, :, :16], error[:, :, 16:])]
            print(f"{width} values, {dtype}: {parts[0]:.1e} in the first 16 tokens, {parts[1]:.1e} in the others")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        (int(given[0]),) if given else (64, 32),
        (getattr(torch, given[1]),) if given else (torch.float32, torch.bfloat16, torch.float16),
    )
