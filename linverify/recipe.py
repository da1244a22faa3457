"""Precision recipes: where a kernel rounds, and to what. A family of recipes stands for a kernel of which nothing is known.

The rounding points of a chunkwise kernel are those of published ones (flash-linear-attention's chunk kernels: operands of each
tensor-core product, the stored state, the triangular inverse, and their cotangents); accumulation is float32.
"""

import math
from dataclasses import dataclass, replace

from linverify.dtype import BF16, FP16, FP32, FP64, TF32, Format

# Points that every recipe sets, and points that most leave alone.
POINTS = ("scores", "query", "key", "value", "state", "state_cotangent", "inverse", "w", "u")
FURTHER = (
    *("folded_query", "folded_key", "scaled_query", "strong_key", "operands", "input", "blocks", "carry", "gates"),
    *("accumulation", "cotangents", "partials", "key_partials", "backward_scores", "output", "merge"),
)
# Rows of a triangular inverse that kernels find row by row, to merge such blocks (flash-linear-attention, utils/solve_tril.py).
SMALLEST_BLOCK = 16
GATE_GRADIENTS = ("direct", "reverse", "prefix", "chunk")
DECAYS = ("operand", "result")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A set of rounding points.

    Attributes:
        name: for reports.
        chunk: chunk size; 0 means token by token.
        scores, query, key, value: operands of products, after their decay where they carry one.
        state: the stored state as an operand.
        state_cotangent: cotangent of the writes.
        inverse, w, u: of the low-rank term in chunks (UT transform).
        folded_query: the decay is multiplied into the query before the product with the state (both roundings in this
            format), instead of into the product.
        folded_key: a scalar decay is multiplied into the key of a write to the state, instead of into its value.
        scaled_query: the query times the scale, before anything else.
        arithmetic: everything that is not named: accumulation, gates, carried state.
        input: what tensor cores make of an operand straight from memory, where that is not its own format.
        operands: the same, at every use instead of once: what is decayed first is not rounded before.
        blocks: operands of the score products between two sub-chunks, where a gate per channel needs sub-chunks.
        carry: the state that goes from chunk to chunk (or step to step), and its cotangent.
        gates: the stored running sum of log gates.
        accumulation: what a product's result is left in.
        strong_key: a key times its write strength, before its decay.
        cotangents: cotangents of decayed operands and of the stored state; None rounds them like the operands.
        backward_scores: the scores that the backward pass multiplies with, where it recomputes them.
        partials: parts of dv that one kernel leaves in memory for another.
        key_partials: the same of dk: what the writes give, and what the triangular system gives.
        output: o and the gradients, where the kernel rounds them to less than their own dtype.
        merge: operands of the products that merge inverses of 16 rows to that of a chunk; None finds it row by row.
        sub: size of a sub-chunk.
        lead: null tokens before the first: by so much the first chunk is shorter.
        decay: where backward products take a scalar decay: in an operand, before it is rounded, or in their result.
        gate_gradient: how the log gate's gradient is formed: one of GATE_GRADIENTS; "" for any.
    """

    name: str
    chunk: int
    scores: Format
    query: Format
    key: Format
    value: Format
    state: Format
    state_cotangent: Format
    inverse: Format
    w: Format
    u: Format
    folded_query: Format | None = None
    folded_key: Format | None = None
    scaled_query: Format | None = None
    strong_key: Format | None = None
    arithmetic: Format = FP32
    input: Format | None = None
    operands: Format | None = None
    blocks: Format | None = None
    carry: Format | None = None
    gates: Format | None = None
    accumulation: Format | None = None
    cotangents: Format | None = None
    partials: Format | None = None
    key_partials: Format | None = None
    backward_scores: Format | None = None
    output: Format | None = None
    merge: Format | None = None
    sub: int = 16
    lead: int = 0
    decay: str = "operand"
    gate_gradient: str = ""

    def format(self, point: str) -> Format:
        """Format of a rounding point."""
        found = getattr(self, point, None) if point in (*POINTS, *FURTHER) else None
        return found if isinstance(found, Format) else self.arithmetic

    @property
    def coarsest(self) -> Format:
        """The format with the largest unit roundoff among all points."""
        return max((self.format(p) for p in (*POINTS, *FURTHER)), key=lambda f: f.unit_roundoff)

    @property
    def precision(self) -> str:
        """The precision class that this recipe belongs to."""
        return self.coarsest.name if self.coarsest.name in PRECISION_CLASSES else "tf32"


def power_of_two(scale: float) -> bool:
    """Whether a factor leaves all digits as they are."""
    return abs(math.frexp(scale)[0]) == 0.5


def uniform(name: str, chunk: int, fmt: Format) -> Recipe:
    """Round every operand to one format."""
    return Recipe(name, chunk, fmt, fmt, fmt, fmt, fmt, fmt, fmt, fmt, fmt)


def exact(chunk: int) -> Recipe:
    """Round nowhere: the model then is the float64 mathematics."""
    return replace(uniform("exact", chunk, FP64), arithmetic=FP64)


PRECISION_CLASSES = ("fp64", "fp32", "tf32", "fp16", "bf16")

# All members of one stack share a chunk size and a structure, so that they run as one batch.
Stack = tuple[Recipe, ...]

# Token by token in float32.
STEPWISE: Stack = (uniform("fp32 recurrent", 0, FP32),)
# Tokens of a row that is one chunk of every kernel: the smallest chunks are of 16.
FEW = 16
# Tokens of the longest chunk of a published kernel, where all channels share a gate and nothing is solved for.
LONGEST = 256


def family(
    precision: str, *, gate: str = "", low_rank: bool = False, scale: float = 1.0, tokens: int = FEW + 1
) -> tuple[Stack, ...]:
    """Recipes that stand for an unknown kernel of a precision class.

    fp32 means IEEE arithmetic throughout: chunks of 16, 64 and 128 (sums of gates lose digits as they grow), and token by
    token. tf32 truncates operands (as tensor cores do). In 16 bits A rounds every operand to the input's format and B keeps
    them in truncated TF32, since real 16-bit kernels contain TF32 products; with a scalar gate the decay may have been
    multiplied into the query first, or in bf16 into the key of a write (mamba_ssm/ops/triton/ssd_chunk_state.py,
    github.com/state-spaces/mamba): what a key loses is lost along a row of the state, what a value loses along a column.
    A decay of less than 2^-9 is lost altogether there, and the result grows by it: most where the decay of a whole chunk is of
    that size, so those chunks are of 16, 64 and 256 tokens, the longest of a published kernel (mamba_ssm's `chunk_size`). In
    fp16 a decay over many tokens falls below the normal numbers, and what it multiplies keeps few digits: most in the
    quadratic form, which is one chunk, so that chunk is twice as long. With a gate per channel it is cotangents of scores that
    fall there, where the products between sub-chunks take them in fp16 (Yang et al. 2023, arXiv:2312.06635, section 4.3).
    Kernels that multiply the scale into the query round it there, A to the format and B to TF32, unless it is a power of two.

    The last stacks put the boundaries of chunks elsewhere, half a chunk later. What a token reads across a boundary, it reads
    through operands that are rounded; inside a chunk a score that happens to be small has a small error, and a gate per channel
    leaves no product at all. The smallest tile of a tensor core is 8 wide (PTX ISA, mma.m16n8k8), so a boundary of chunks, or
    of sub-chunks, may lie at any multiple of 8: half of these are boundaries of the first stacks. A low-rank term has errors of
    another kind: all tokens of a chunk share what is lost where its triangular system cancels, while across a boundary a
    loss is forgotten as the state forgets. Its inverse is merged of blocks' inverses, in TF32 where operands are rounded, and
    a boundary where nearly equal keys have left next to nothing shows what the merges of the chunk after it lost: chunks of 64
    begin at every multiple of 8 there. In IEEE arithmetic sums of gates span chunks, too: a decay between two tokens of a chunk
    is the difference of two sums from its beginning. Of two sets of chunks half a chunk apart one holds any half a chunk whole.

    Of few tokens the gradient of a gate may be no more than what float32 leaves of terms that cancel, q dq - k dk. In a chunk
    both come of one score, and where that happens to be small so is what is left; kernels that go token by token sum each of
    them over the values, whatever the operands' format. So they are in the family there.

    Args:
        precision: the class.
        gate: "scalar", "channel", or "" where nothing decays.
        low_rank: whether there is a low-rank term.
        scale: factor on o.
        tokens: of the longest row.
    """
    first = _family(precision, scalar=gate == "scalar", scale=scale)
    operands_round = precision not in ("fp32", "fp64")
    if low_rank and operands_round:
        first = tuple(_merging(stack) for stack in (*first, *_solving(precision, gate)) if stack[0].chunk < LONGEST)
    chunked = [stack for stack in first if 0 < stack[0].chunk < LONGEST]
    smallest, largest = (pick(chunked, key=lambda stack: stack[0].chunk) for pick in (min, max))
    elsewhere = [_shifted(smallest, 2)] if operands_round else []
    if low_rank or (gate and not operands_round):
        elsewhere.append(_shifted(largest, 2))
    if low_rank and operands_round:
        elsewhere += [_shifted(largest, 8, n) for n in (2, 6, 1, 3, 5, 7)]
    if gate == "channel" and precision == "fp16":
        coarse = (replace(uniform("fp16 C=64, sub-chunks in fp16", 64, FP16), blocks=FP16, sub=8),)
        elsewhere += [coarse, _shifted(coarse, 2)]
    if gate and operands_round and tokens <= FEW:
        elsewhere.append(STEPWISE)
    return (*first, *elsewhere)


def _shifted(stack: Stack, parts: int, left_out: int = 1) -> Stack:
    """The same with so many of the parts of a chunk left out of the first."""
    lead = stack[0].chunk * left_out // parts
    return tuple(replace(r, name=f"{r.name} from {r.chunk - lead}", lead=lead) for r in stack)


def _merging(stack: Stack) -> Stack:
    """Recipes that merge inverses in TF32, beside one that merges them in float32 where there is one recipe alone."""
    if stack[0].chunk <= SMALLEST_BLOCK:
        return stack
    merged = tuple(replace(r, name=f"{r.name} merged", merge=TF32) for r in stack)
    return merged if len(stack) > 1 else (*merged, *stack)


def _solving(precision: str, gate: str) -> tuple[Stack, ...]:
    """In 16 bits, what truncates nothing but what is solved for: it is taken from a state, which so grows.

    And keys that carry a scalar decay, in TF32 beside fp16: writes of equal keys no longer cancel where their decays differ.
    """
    if precision == "tf32":
        return ()
    recipe = uniform(f"{precision} C=64, solved in tf32", 64, storage(precision))
    solved = replace(recipe, value=TF32, inverse=TF32, w=TF32, u=TF32)
    if precision == "bf16" or gate != "scalar":
        return ((solved,),)
    decayed = replace(recipe, name="fp16 C=64 decayed q and k in tf32", folded_query=TF32, folded_key=TF32)
    return ((solved,), (decayed,))


def _family(precision: str, *, scalar: bool, scale: float) -> tuple[Stack, ...]:
    """The stacks whose first chunk begins with the first token."""
    if precision in ("fp32", "fp64"):
        return (
            (uniform("fp32 C=16", 16, FP32),),
            (uniform("fp32 C=64", 64, FP32),),
            (uniform("fp32 C=128", 128, FP32),),
            STEPWISE,
        )
    if precision == "tf32":
        return tuple((replace(uniform(f"tf32 C={chunk}", chunk, TF32), input=TF32),) for chunk in (16, 64))
    fmt = storage(precision)

    def a(chunk: int) -> Recipe:
        return uniform(f"{precision} C={chunk}", chunk, fmt)

    scaled = replace(a(16), scaled_query=None if power_of_two(scale) else fmt)

    def b(chunk: int) -> Recipe:
        return replace(
            a(chunk),
            name=f"{precision}+tf32 C={chunk}",
            scores=TF32,
            query=TF32,
            key=TF32,
            value=TF32,
            state=TF32,
            state_cotangent=TF32,
            inverse=TF32,
            w=TF32,
            u=TF32,
        )

    loaded = replace(b(16), scaled_query=None if power_of_two(scale) else TF32)
    if not scalar:
        return ((scaled, loaded), (a(64), b(64)))
    folded = tuple(replace(a(64), name=f"{precision} C=64 decayed q in {f.name}", folded_query=f) for f in (fmt, TF32))
    if precision == "fp16":  # truncated TF32 operands err as much as keys in fp16, and as coherently
        return ((scaled, loaded), folded, (a(2 * LONGEST),))
    both = tuple(
        (replace(a(chunk), name=f"{precision} C={chunk} decayed q and k", folded_query=fmt, folded_key=fmt),)
        for chunk in (64, 16, LONGEST)
    )
    return ((scaled, loaded), folded, *both)


def precision_class(dtype: str, device: str, claims: dict[str, str]) -> str:
    """The class that judges a case: float32 on a GPU is taken as truncated TF32 unless IEEE arithmetic is claimed."""
    if dtype == "fp32" and device.startswith("cuda") and claims.get("fp32") != "ieee":
        return "tf32"
    return dtype


def storage(dtype: str) -> Format:
    """Format in which a case's operands and outputs are stored."""
    return {"tf32": FP32, "fp32": FP32, "fp64": FP64, "bf16": BF16, "fp16": FP16}[dtype]
