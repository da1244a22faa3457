"""Regimes: named regions of the inputs in which kernels are known to differ from their mathematics.

A case names one region of the operands and one of the gates; ``linverify.draw`` samples them. All regions lie within the
domain in which an operator is defined and stable: gates at most zero, beta |k|^2 at most 2, step sizes not negative.

The exact regions hold integers so small that every form computes them without any rounding: |x| is at most 1 at the inputs,
every rounded operand an integer that 8 bits hold, every sum below 2^24, and each gate either 0 or so strong that its
exponential is zero in float32. Then all forms must agree bit for bit, in every dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass

from linverify.operator import Operator

INTEGER_REGIMES = ("integers", "onehot")
EXACT_GATES = ("none", "exact")
EXACT_MAX_T = 300
EXACT_MAX_WIDTH = 64


def _every(_: Operator) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Regime:
    """A named region.

    Attributes:
        name: as cases spell it.
        what: what is drawn, one sentence.
        why: which mistakes live there, one sentence.
        applies: which operators have it.
        not_in: dtypes whose range is too small for it.
        on_request: True where only a property that names it gets it.
    """

    name: str
    what: str
    why: str
    applies: Callable[[Operator], bool] = _every
    not_in: tuple[str, ...] = ()
    on_request: bool = False


def _delta(operator: Operator) -> bool:
    return bool(operator.of_kind("strength"))


def _keyed(operator: Operator) -> bool:
    """Tell whether keys (or what a low-rank term takes for keys) have a norm that matters for stability."""
    return bool(operator.of_kind("strength", "low_rank_a"))


def _gates_exactly(operator: Operator) -> bool:
    """Tell whether the decay can be exactly one: it is an input, or there is none."""
    return "X1" in operator.identities


def _gate_as_log(operator: Operator) -> bool:
    return bool(operator.of_kind("log_gate"))


def _gated(operator: Operator) -> bool:
    return operator.gated


OPERANDS: tuple[Regime, ...] = (
    Regime(
        "normal", "independent standard normal numbers; unit keys where the operator wants them", "the ordinary case"
    ),
    Regime("unit", "queries and keys of unit norm", "normalised attention layers feed these"),
    Regime(
        "positive", "no negative operand", "feature maps such as elu + 1 and ReLU; sums grow with T instead of its root"
    ),
    Regime("collinear", "keys that are nearly equal", "repeated tokens; triangular solves become ill-conditioned"),
    Regime(
        "outlier",
        "a few channels of k and v that are 30 to 100 times larger",
        "trained models have them; 16-bit states and scores lose the rest",
    ),
    Regime(
        "zeros",
        "a quarter of all rows of q, k and v exactly zero",
        "padding and ReLU; norms and inverses divide by zero",
    ),
    Regime(
        "range",
        "rows that differ by factors up to 2^12",
        "products that overflow or flush where the result does not",
        not_in=("fp16",),
    ),
    Regime(
        "offnorm",
        "keys off unit norm, with beta |k|^2 at most 2",
        "kernels that normalise keys by themselves",
        applies=_keyed,
    ),
    Regime(
        "reflecting",
        "strengths up to 2: transitions with negative eigenvalues",
        "triangular inverses at their worst",
        applies=_delta,
    ),
    Regime(
        "integers",
        "-1, 0 and 1 only: nothing rounds",
        "any wrong index, mask or order shows as a whole number",
        applies=lambda o: _gates_exactly(o) and not _keyed(o),
        on_request=True,
    ),
    Regime(
        "onehot",
        "one-hot keys, strengths 0 and 1, everything else -1, 0 and 1: nothing rounds",
        "any wrong index, mask or order shows as a whole number",
        applies=lambda o: _gates_exactly(o) and _keyed(o),
        on_request=True,
    ),
)

GATES: tuple[Regime, ...] = (
    Regime("none", "exactly zero: no decay", "the simplest case; the operator becomes its ungated relative"),
    Regime(
        "mild", "logsigmoid of normal numbers over 16, about -0.05", "a gated layer at initialisation", applies=_gated
    ),
    Regime("production", "mean about -0.8, down to -5", "a trained layer", applies=_gated),
    Regime("strong", "between -0.5 and -4.5", "factored decays overflow over a chunk", applies=_gated),
    Regime(
        "reset",
        "mostly zero, with some -60 and -256",
        "history is erased at once; masks must come before exp",
        applies=_gated,
    ),
    Regime("tiny", "about -0.0001", "sums of gates in 16 bits stall", applies=_gated),
    Regime(
        "exact",
        "0 or -256: the decay is exactly one or zero",
        "for the regions in which nothing rounds",
        applies=_gated,
        on_request=True,
    ),
    Regime(
        "inf", "some gates minus infinity", "chunkwise forms subtract infinities", applies=_gate_as_log, on_request=True
    ),
)

STATES: tuple[Regime, ...] = (
    Regime("absent", "no initial state is passed", "the ordinary case"),
    Regime("zero", "the state before any token, mostly zeros", "must equal an absent one"),
    Regime("normal", "normal numbers times one half", "decode after prefill"),
    Regime("large", "64 times that: far larger than any write", "history dominates; its rounding hides new tokens"),
)


def exact_regime(operator: Operator) -> str | None:
    """Return the name of the operand region in which nothing rounds; None where the operator has none."""
    return next((r.name for r in OPERANDS if r.name in INTEGER_REGIMES and r.applies(operator)), None)


def exact(operator: Operator) -> bool:
    """Tell whether some region of the operator's inputs is computed without any rounding by every form."""
    return exact_regime(operator) is not None


def operand_regimes(operator: Operator, *, on_request: bool = False) -> tuple[str, ...]:
    """Return the names of the operand regions that an operator has, simplest first; exact ones only on request."""
    return tuple(
        r.name
        for r in OPERANDS
        if r.applies(operator) and r.name not in operator.outside and (on_request or not r.on_request)
    )


def gate_regimes(operator: Operator, *, on_request: bool = False) -> tuple[str, ...]:
    """Return the names of the gate regions that an operator has, simplest first: ("none",) where it has no gate."""
    return tuple(r.name for r in GATES if r.applies(operator) and (on_request or not r.on_request))


def fits(regime: str, dtype: str) -> bool:
    """Tell whether a dtype has the range that an operand region needs."""
    return all(dtype not in r.not_in for r in OPERANDS if r.name == regime)
