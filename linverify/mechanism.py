"""The mechanism of an operator: how scores become weights, what divides them, and what follows for its gradients.

Many operators mix values by rows of weights,

    o_i = norm(m_i),   m_i = sum_j w(s_ij) v_j / D(Z_i),   Z_i = sum_j w(s_ij),

and then every derivative by a score is known in closed form. With r_ij = v_j - D'(Z_i) m_i and J the Jacobian of the norm,

    d(do_i . o_i) / ds_ij = w'(s_ij) / D(Z_i) * do_i^T J r_ij,   at most |do_i| |J| |w'(s_ij)| / |D(Z_i)| |r_ij|.

Softmax has w'/D = p, so nothing exceeds 1/4 of the values' diameter. Without an exponential the bound is 1 / D(Z): a small
divisor lifts it up to 1 / eps, and for ever where there is no eps. A norm in the divisor's place bounds it by 1 / sqrt(eps).

An operator states here what its recurrence does not show; scores of a recurrence without low-rank terms follow from it.

Source: Qin et al. 2022, arXiv:2210.10340, section 3 (unbounded gradients) and 4.1; the bounds here are the sharp ones.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Array = Any
Promise = Literal["bounded", "bounded by eps", "unbounded"]
BOUNDED: Promise = "bounded"
BY_EPS: Promise = "bounded by eps"
UNBOUNDED: Promise = "unbounded"


@dataclass(frozen=True, slots=True)
class Mechanism:
    """Facts of one operator.

    Attributes:
        weight: w, the identity or the exponential (of scores less their maximum: then Z is at least 1).
        divisor: D(Z): 1 (none), Z + eps (sum), max(Z, eps) (clamp), max(|Z|, 1) (floor).
        eps: of the divisor.
        least: a lower bound of one weight, so that Z is at least `least` times the number of tokens.
        norm: of the row: none, root mean square with eps under the root (rms) or beside it (rms_outside), layer norm (layer).
        norm_eps: of the norm.
        scores: maps inputs (torch), sizes and the scale to s [B, H, T, T]; None: products of the recurrence's q and k.
        hidden: mask [T, T] (numpy) of the pairs that do not see each other; None: later tokens.
        shrink: maps a query and a factor below one to the query whose scores are so much smaller; None: the factor times it.
        signed: whether scores of both signs occur, so that Z may cancel.
        lipschitz: L with |phi'| <= L phi for every component of the feature map of queries: then a query's own gradient is at
            most L times the values' diameter, however small Z is. None where there is no such number.
        added: what the feature map adds to what may be nearly its negative, as 1 + elu does: small features are what is left.
    """

    weight: Literal["identity", "exponential"] = "identity"
    divisor: Literal["none", "sum", "clamp", "floor"] = "none"
    eps: float = 0.0
    least: float = 0.0
    norm: Literal["none", "rms", "rms_outside", "layer"] = "none"
    norm_eps: float = 0.0
    scores: Callable[[Mapping[str, Array], Mapping[str, int], Array], Array] | None = None
    hidden: Callable[[int], Any] | None = None
    shrink: Callable[[Array, Array], Array] | None = None
    signed: bool = False
    lipschitz: float | None = None
    added: float = 0.0

    def __post_init__(self) -> None:
        if self.eps < 0 or self.norm_eps < 0 or self.least < 0:
            raise ValueError(f"expected eps, norm_eps and least of at least 0, got {self}")
        if self.divisor != "none" and self.norm != "none":
            raise ValueError(f"expected a divisor or a norm, got {self.divisor} and {self.norm}")

    @property
    def cap(self) -> float:
        """The largest derivative of a weight (of an output, behind a norm, by unit values) by a score, over all inputs."""
        if self.weight == "exponential":
            return 0.25
        if self.norm != "none":
            eps = self.norm_eps if self.norm == "rms_outside" else math.sqrt(self.norm_eps)
            return 1 / eps if eps else math.inf
        if self.divisor in ("none", "floor"):
            return 1.0
        if self.signed and self.divisor == "sum":
            return math.inf
        lowest = self.least + self.eps if self.divisor == "sum" else max(self.least, self.eps)
        return 1 / lowest if lowest else math.inf

    @property
    def promise(self) -> Promise:
        """What the mechanism says of its gradients by scores."""
        if math.isinf(self.cap):
            return UNBOUNDED
        return BY_EPS if (self.norm != "none" or self.divisor in ("sum", "clamp")) and not self.least else BOUNDED

    @property
    def slope(self) -> float:
        """Exponent with which the derivative grows as the divisor (or what is normed) shrinks, far above an eps."""
        shrinks = self.norm != "none" or self.divisor in ("sum", "clamp", "floor")
        return -1.0 if shrinks and self.weight == "identity" and not self.least else 0.0

    def crossover(self, width: int) -> float | None:
        """Where growth ends: the divisor's sum Z, or the length |m| of a row of that width before a norm; None if nowhere."""
        if self.slope == 0.0:
            return None
        if self.norm == "rms_outside":
            return math.sqrt(width) * self.norm_eps or None
        if self.norm != "none":
            return math.sqrt(width * self.norm_eps) or None
        return 1.0 if self.divisor == "floor" else self.eps or None

    @property
    def words(self) -> str:
        """The bound in one line, for people."""
        if self.weight == "exponential":
            return "p (1 - p), at most 1/4"
        if self.norm != "none":
            return {
                "rms": f"1 / sqrt(mean m^2 + {self.norm_eps:g})",
                "rms_outside": f"1 / (rms(m) + {self.norm_eps:g})",
                "layer": f"1 / sqrt(var m + {self.norm_eps:g})",
            }[self.norm]
        eps = f" + {self.eps:g}" if self.eps else ""
        return {
            "none": "1 (weights are the scores)",
            "sum": f"1 / (Z{eps})" + (f", Z at least {self.least:g} a token" if self.least else ""),
            "clamp": f"1 / max(Z, {self.eps:g})",
            "floor": "1 / max(|Z|, 1)",
        }[self.divisor]


def by_factor(x: Array, factor: Array) -> Array:
    """Shrink a query whose features are of degree one in it."""
    return x * factor


def by_logarithm(x: Array, factor: Array) -> Array:
    """Shrink a query whose features are exponentials of it."""
    return x + factor.log()


def of_elu1(x: Array, factor: Array) -> Array:
    """Shrink a query whose features are 1 + elu: the argument of the smaller feature."""
    feature = (x.clamp(min=0) + x.clamp(max=0).exp()) * factor
    return (feature - 1).where(feature > 1, feature.log())
