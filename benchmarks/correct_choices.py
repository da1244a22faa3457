"""Which correct kernels there are: the choices of `correct_kernels.Kernel`, drawn at random for an operator and a precision.

A choice is offered only where a published kernel makes it, or where a size is a free argument of one (`chunk_size` of
mamba_ssm, `block_size` of MiniMax-01): so chunks of 24, 40, 48 and 96 stand beside those of 16, 32, 64, 128 and 256.
"""

import random
from collections.abc import Sequence

from correct_kernels import Kernel

from linverify.fold import Rows

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
CHUNKS = (16, 24, 32, 40, 48, 64, 96, 128, 256)
# Sums of gates per channel over more tokens than this are left to sub-chunks of shorter chunks in every published kernel.
LONGEST_BY_CHANNEL = 128
# So are inverses of more rows (flash-linear-attention, utils/solve_tril.py: 16, 32 or 64); in float32 twice as many are asked.
LARGEST_INVERSE = 64


def kernel_for(rows: Rows, precision: str, choose: random.Random) -> Kernel:
    """A correct kernel of these rows' operator in a precision class."""

    def pick(*items: str) -> str:
        return choose.choice(items)

    gate, low_rank = rows.log_decay, rows.beta is not None or rows.a is not None
    scalar, channel = gate is not None and gate.shape[-1] == 1, gate is not None and gate.shape[-1] > 1
    length, ieee = rows.q.shape[1], precision == "fp32"
    half = precision in ("bf16", "fp16")
    operands = "fp32" if ieee else pick("tf32", "tf32", "tf32rn") if not half or choose.random() < 0.15 else precision
    form, chunk = _form(length, choose, LONGEST_BY_CHANNEL if channel else 10**6)
    largest = LARGEST_INVERSE * (2 if ieee else 1)
    if low_rank and form != "recurrent" and (chunk or length) > largest:
        form, chunk = "chunkwise", choose.choice([c for c in CHUNKS if c <= largest])
    native = operands == precision
    return Kernel(
        form=form,
        operands=operands,
        chunk=chunk,
        sub=choose.choice((8, 16, 24)) if channel else 16,
        blocks="fp32" if ieee else pick(operands, "tf32", "tf32rn") if channel else operands,
        anchor=pick("first", "last") if channel else "first",
        values="fp32" if ieee else pick(operands, operands, operands, "tf32") if half else operands,
        scale=pick("query", "stored", "result") if native else pick("query", "result"),
        scores=pick("once", "twice") if native and not channel else "once",
        # decayed keys vanish in fp16, and mamba_ssm's backward pass takes the decay after the product there
        write=pick("values", "keys") if scalar and operands != "fp16" else "values",
        read=pick("result", "query") if scalar else "result",
        sums=pick("whole", "reversed", "split"),
        first=pick("state", "own"),
        exponential=pick("exp", "exp2"),
        # a sum over the whole row is taken segment by segment where the form is quadratic, as ssd_minimal.py does
        gaps=("segments" if form == "quadratic" else pick("differences", "segments")) if scalar else "differences",
        solver=pick("library", "substitution", "blocked", "direct") if low_rank else "library",
        solve="fp32" if ieee or not low_rank else pick("fp32", "tf32", "tf32rn"),
        strength=pick("right", "inverse") if rows.beta is not None else "right",
        stored=pick("fp32", precision) if native and half and low_rank else "fp32",
        gate=pick("autograd", "reverse", "chunk") if gate is not None else "autograd",
        bonus=pick("weight", "state" if form == "recurrent" else "scores") if rows.bonus is not None else "weight",
    )


def _form(length: int, choose: random.Random, longest: int) -> tuple[str, int]:
    """A form and its chunk size; a row that is too long for the quadratic form gets chunks."""
    drawn = choose.random()
    if drawn < 0.15:
        return "recurrent", 0
    if drawn < 0.3 and length <= longest:
        return "quadratic", 0
    sizes: Sequence[int] = [c for c in CHUNKS if c <= longest]
    return "chunkwise", choose.choice(sizes)
