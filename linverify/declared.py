"""Recipes in words: what a kernel declares of its own arithmetic, read into a `Recipe` for each dtype of a check.

    bf16                                     every operand in bfloat16, chunks of 64, float32 accumulation
    native,C=32,state=fp32                   operands in the case's own dtype, the stored state in float32
    bf16,scores=tf32,sub=16,output=bf16      single rounding points by name
    native,backward=separate                 a hand-written backward pass (see below)
    fp32:tf32;bf16,C=64                      one recipe for float32 cases, another for all others
    recurrent                                token by token; `quadratic` has one chunk of the whole length

`backward=separate` stands for what backward kernels do that automatic differentiation would not: gradients of operands and of
the state stay in float32, a scalar decay multiplies results, gate gradients are summed within chunks.
"""

from dataclasses import dataclass, replace

from linverify.dtype import BF16, FP16, FP32, TF32, TF32_NEAREST, Format
from linverify.errors import UsageError, unknown
from linverify.recipe import DECAYS, FURTHER, GATE_GRADIENTS, POINTS, Recipe, uniform

FORMATS: dict[str, Format] = {"fp32": FP32, "tf32": TF32, "tf32rn": TF32_NEAREST, "bf16": BF16, "fp16": FP16}
NATIVE = "native"
_NUMBERS = {"C": "chunk", "sub": "sub"}
_CHOICES = {"gate_gradient": GATE_GRADIENTS, "decay": DECAYS, "backward": ("mirrored", "separate")}
_DTYPES = ("fp32", "tf32", "bf16", "fp16")
_WHOLE = 2**30
_ORDERS = {"recurrent": 0, "quadratic": _WHOLE}


@dataclass(frozen=True, slots=True)
class _Words:
    """One recipe as written: its base format, and what it says besides."""

    text: str
    base: str
    said: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a kernel declares: one recipe for all dtypes, or some for single ones.

    Attributes:
        text: as written.
    """

    text: str
    _by_dtype: tuple[tuple[str, _Words], ...]

    def recipe(self, dtype: str, precision: str) -> Recipe | None:
        """The recipe for cases of a dtype; None where it declares none, and for float64.

        Args:
            dtype: of the case.
            precision: class that judges the case without a declaration; what `native` means.
        """
        words = dict(self._by_dtype)
        found = words.get(dtype, words.get(""))
        return None if found is None or dtype == "fp64" else _built(found, precision)


def declared(text: str | None) -> Declaration | None:
    """Read a declaration; None for None.

    Raises:
        UsageError: a word of it is not understood.
    """
    if text is None:
        return None
    entries: dict[str, _Words] = {}
    for part in text.split(";"):
        dtype, colon, rest = part.strip().rpartition(":")
        if colon and dtype not in _DTYPES:
            raise unknown("dtype of a recipe", dtype, _DTYPES)
        if dtype in entries:
            raise UsageError(f"recipe {text!r}: {dtype or 'all dtypes'} is given twice")
        entries[dtype] = _words(rest.strip(), text)
    return Declaration(text, tuple(entries.items()))


def _words(text: str, whole: str) -> _Words:
    items = [w.strip() for w in text.split(",")]
    named = [w for w in items if "=" in w]
    plain = [w for w in items if "=" not in w]
    for word in plain:
        if word not in (*FORMATS, NATIVE, *_ORDERS):
            raise _wrong(whole, unknown("word in a recipe", word, (*FORMATS, NATIVE, *_ORDERS)))
    bases, orders = [w for w in plain if w not in _ORDERS], [w for w in plain if w in _ORDERS]
    if len(bases) > 1 or len(orders) > 1:
        raise UsageError(f"recipe {whole!r}: expected one format and one form at the start, got {', '.join(plain)}")
    said: dict[str, str] = {}
    for item in named:
        key, _, value = (part.strip() for part in item.partition("="))
        if key in said or (key == "C" and orders):
            raise UsageError(f"recipe {whole!r}: {key} is given twice")
        said[key] = _checked(key, value, whole)
    if orders:
        said["C"] = str(_ORDERS[orders[0]])
    words = _Words(text, bases[0] if bases else NATIVE, tuple(said.items()))
    _built(words, "fp32")
    return words


def _checked(key: str, value: str, whole: str) -> str:
    """A value that fits its key.

    Raises:
        UsageError: it does not, or there is no such key.
    """
    known = (*_NUMBERS, *POINTS, *FURTHER, *_CHOICES)
    if key not in known:
        raise _wrong(whole, unknown("rounding point", key, known))
    if key in _NUMBERS:
        if not value.isdigit() or (int(value) == 0 and key == "sub"):
            raise UsageError(f"recipe {whole!r}: expected {key}=a number of tokens, got {value!r}")
    elif key in _CHOICES:
        if value not in _CHOICES[key]:
            raise _wrong(whole, unknown(key, value, _CHOICES[key]))
    elif value not in (*FORMATS, NATIVE):
        raise _wrong(whole, unknown(f"format of {key}", value, (*FORMATS, NATIVE)))
    return value


def _wrong(whole: str, error: UsageError) -> UsageError:
    return UsageError(f"recipe {whole!r}: {error}")


def _format(word: str, precision: str) -> Format:
    return FORMATS[precision] if word == NATIVE else FORMATS[word]


def _built(words: _Words, precision: str) -> Recipe:
    """The recipe that words mean in a precision class.

    Raises:
        UsageError: the chunk is no whole number of sub-chunks.
    """
    base, said = _format(words.base, precision), dict(words.said)
    chunk, sub = int(said.pop("C", 64)), int(said.pop("sub", 16))
    if chunk > sub and chunk % sub:
        raise UsageError(f"recipe {words.text!r}: expected C to be a multiple of sub={sub}, got C={chunk}")
    found = replace(uniform(words.text, chunk, base), operands=base, sub=sub)
    if said.pop("backward", "mirrored") == "separate":
        found = replace(found, cotangents=FP32, decay="result", gate_gradient="chunk" if chunk else "")
    changes = {k: v if k in _CHOICES else _format(v, precision) for k, v in said.items()}
    return replace(found, **changes)  # type: ignore[arg-type]  # keys and values were checked
