"""A case: sizes, dtype, regime, layout, flags and seed of one question. Its text id rebuilds it exactly.

Hypothesis draws and shrinks cases, never tensor elements: tensors follow from the seed (``linverify.draw``).
"""

import dataclasses
from dataclasses import dataclass

from linverify.errors import UsageError

_SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class Case:
    """One question to a target.

    Attributes:
        operator: its name.
        B, T, H, K, V, G: sizes; T counts all tokens of a packed case; G is the number of groups (H where there are none).
        dtype: short format name of the operands.
        regime: named region of the operands (``linverify.regime``).
        gate: named region of the gates; "none" where the operator has none.
        layout: memory layout of the inputs: contiguous, strided, offset, expanded.
        state: initial state: absent, zero, normal, large.
        final_state: whether the final state is asked for.
        cotangent: what is back-propagated: none, o, state, both, expanded (o with stride 0), strided.
        wrt: "all", or one input's name: which inputs require a gradient.
        lengths: lengths of packed sequences; () for a dense batch.
        mixture: dtypes of a 16-bit case: usual (gates, rates, step sizes and the initial state in float32), gates (these in
            the case's dtype too), state (the initial state in the case's dtype), wide (strengths and bonuses in float32).
        offsets: dtype of the offsets of packed sequences, int64 or int32.
        scale: default (not passed), one, sqrt (K**-0.5, passed), other.
        seed: of the tensors.
    """

    operator: str
    B: int = 1
    T: int = 1
    H: int = 1
    K: int = 16
    V: int = 16
    G: int = 0
    dtype: str = "fp32"
    regime: str = "normal"
    gate: str = "none"
    layout: str = "contiguous"
    state: str = "absent"
    final_state: bool = False
    cotangent: str = "none"
    wrt: str = "all"
    lengths: tuple[int, ...] = ()
    scale: str = "default"
    mixture: str = "usual"
    offsets: str = "int64"
    seed: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Axis letters to lengths; N is the number of states."""
        packed = len(self.lengths)
        return {
            "B": self.B,
            "T": self.T,
            "H": self.H,
            "K": self.K,
            "V": self.V,
            "G": self.G or self.H,
            "N": packed or self.B,
        }

    @property
    def id(self) -> str:
        """The text that rebuilds this case: ``gla/B1.T33.H2.K16.V24/bf16/...``, default fields left out."""
        sizes = ".".join(f"{a}{getattr(self, a)}" for a in "BTHKV") + (f".G{self.G}" if self.G else "")
        parts = [self.operator, sizes, self.dtype]
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in ("operator", "B", "T", "H", "K", "V", "G", "dtype") or value == f.default:
                continue
            if f.name == "lengths":
                value = ".".join(str(n) for n in value)
            parts.append(f"{f.name}={int(value) if isinstance(value, bool) else value}")
        return _SEPARATOR.join(parts)

    def with_(self, **changes: object) -> "Case":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # field names are checked by replace


def parse_case(text: str) -> Case:
    """Rebuild a case from its id.

    Raises:
        UsageError: the text is no case id.
    """
    try:
        operator, sizes, dtype, *rest = text.strip().split(_SEPARATOR)
        fields: dict[str, object] = {"operator": operator, "dtype": dtype}
        fields.update({item[0]: int(item[1:]) for item in sizes.split(".")})
        types = {f.name: f.type for f in dataclasses.fields(Case)}
        for item in rest:
            name, value = item.split("=", 1)
            if name == "lengths":
                fields[name] = tuple(int(n) for n in value.split("."))
            elif types[name] is bool:
                fields[name] = bool(int(value))
            elif types[name] is int:
                fields[name] = int(value)
            else:
                fields[name] = value
        return Case(**fields)  # type: ignore[arg-type]  # unknown names raise TypeError, caught below
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"not a case id: {text!r}; expected something like 'gla/B1.T33.H2.K16.V24/bf16/gate=mild/seed=7'"
        ) from error
