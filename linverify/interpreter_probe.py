"""Whether Triton's CPU interpreter multiplies matrices rightly, dtype by dtype: measured, because it differs by version.

Run in a process of its own (``python -m linverify.interpreter_probe``), since TRITON_INTERPRET must be set before Triton is
imported. Prints one JSON object: dtype to the largest error of a 32 x 32 x 32 product, whose entries are exact in float32.
"""

import json
import os
import sys

SIZE = 32
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def measure() -> dict[str, float]:
    """Multiply small integers, which every format holds exactly, and return the largest error by dtype."""
    import torch
    import triton
    import triton.language as tl

    def product(a, b, c, N: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton reads the annotation of N alone
        i = tl.arange(0, N)
        at = i[:, None] * N + i[None, :]
        tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision="ieee"))

    # Triton reads a kernel's names from its globals, and must not be imported before measure() is called.
    product.__globals__["tl"] = tl
    run = triton.jit(product)
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for name, long_name in DTYPES.items():
        dtype = getattr(torch, long_name)
        a, b = (torch.randint(-3, 4, (SIZE, SIZE), generator=generator).to(dtype) for _ in range(2))
        c = torch.zeros(SIZE, SIZE)
        run[(1,)](a, b, c, N=SIZE)
        errors[name] = float((c.double() - a.double() @ b.double()).abs().max())
    return errors


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    json.dump(measure(), sys.stdout)
