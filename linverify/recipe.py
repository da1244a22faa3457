"""Precision recipes: where a kernel rounds, and to what. A family of recipes stands for a kernel of which nothing is known.

The rounding points of a chunkwise kernel are those of published ones (flash-linear-attention's chunk kernels: operands of each
tensor-core product, the stored state, the triangular inverse, and their cotangents); accumulation is float32.
"""

from dataclasses import dataclass, replace

from linverify.dtype import BF16, FP16, FP32, FP64, TF32, Format

POINTS = ("scores", "query", "key", "value", "state", "state_cotangent", "inverse", "w", "u")


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
        arithmetic: everything else: accumulation, gates, carried state.
        input: what tensor cores make of an operand straight from memory, where that is not its own format.
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
    arithmetic: Format = FP32
    input: Format | None = None

    def format(self, point: str) -> Format:
        """Format of a rounding point."""
        found = getattr(self, point, None) if point in (*POINTS, "folded_query", "input") else None
        return found if isinstance(found, Format) else self.arithmetic


def uniform(name: str, chunk: int, fmt: Format) -> Recipe:
    """Round every operand to one format."""
    return Recipe(name, chunk, *([fmt] * 9))


def exact(chunk: int) -> Recipe:
    """Round nowhere: the model then is the float64 mathematics."""
    return replace(uniform("exact", chunk, FP64), arithmetic=FP64)


PRECISION_CLASSES = ("fp64", "fp32", "tf32", "fp16", "bf16")

# All members of one stack share a chunk size and a structure, so that they run as one batch.
Stack = tuple[Recipe, ...]


def family(precision: str, *, scalar_gate: bool) -> tuple[Stack, ...]:
    """Recipes that stand for an unknown kernel of a precision class.

    fp32 means IEEE arithmetic throughout: chunks of 16 and 64, and token by token. tf32 truncates operands (as tensor cores
    do). In 16 bits A rounds every operand to the input's format and B keeps some in truncated TF32, since real 16-bit kernels
    contain TF32 products; with a scalar gate the decay may have been multiplied into the query first.
    """
    if precision in ("fp32", "fp64"):
        return (
            (uniform("fp32 C=16", 16, FP32),),
            (uniform("fp32 C=64", 64, FP32),),
            (uniform("fp32 recurrent", 0, FP32),),
        )
    if precision == "tf32":
        return tuple((replace(uniform(f"tf32 C={chunk}", chunk, TF32), input=TF32),) for chunk in (16, 64))
    fmt: Format = {"bf16": BF16, "fp16": FP16}[precision]

    def a(chunk: int) -> Recipe:
        return uniform(f"{precision} C={chunk}", chunk, fmt)

    def b(chunk: int) -> Recipe:
        return replace(
            a(chunk),
            name=f"{precision}+tf32 C={chunk}",
            scores=TF32,
            query=TF32,
            key=TF32,
            value=TF32,
            state_cotangent=TF32,
            inverse=TF32,
            w=TF32,
            u=TF32,
        )

    if not scalar_gate:
        return ((a(16), b(16)), (a(64), b(64)))
    folded = tuple(replace(a(64), name=f"{precision} C=64 decayed q in {f.name}", folded_query=f) for f in (fmt, TF32))
    return ((a(16), b(16)), folded)


def precision_class(dtype: str, device: str, claims: dict[str, str]) -> str:
    """The class that judges a case: float32 on a GPU is taken as truncated TF32 unless IEEE arithmetic is claimed."""
    if dtype == "fp32" and device.startswith("cuda") and claims.get("fp32") != "ieee":
        return "tf32"
    return dtype


def storage(dtype: str) -> Format:
    """Format in which a case's operands and outputs are stored."""
    return {"tf32": FP32, "fp32": FP32, "fp64": FP64, "bf16": BF16, "fp16": FP16}[dtype]
