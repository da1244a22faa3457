"""An operator: the mathematics of one mechanism, stated once.

WHY. Nearly every linear-attention mechanism is one recurrence with different terms. A mechanism therefore states only which
terms it has and how its arguments fill them; every form, reference, gradient and error model is derived from that statement.

WHAT. With X_0 the initial state and Y the state after (or before) its decay,

    X^ = D_t X_{t-1};   X_t = X^ + b_t (a_t^T Y) + k_t v_t^T;   o_t = scale * q_t^T X_t                      (inclusive read)
                                                                o_t = scale * q_t^T (X_{t-1} + (u*k_t) v_t^T)  (exclusive read)

A delta operator gives `beta` instead of a and b: X_t = X^ + beta_t k_t (v_t - X^^T k_t)^T.

HOW to add one: a file in ``linverify/operators/`` that assigns ``OPERATOR = Operator(...)``. Nothing else changes.
The operator never names a property; a property decides from the declared facts whether it applies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# A torch tensor, or an array of `linverify.arithmetic` that carries mpmath numbers: both spell * + - [...] .exp() alike.
Array = Any
Sizes = Mapping[str, int]
Kind = Literal[
    "query", "key", "value", "log_gate", "strength", "bonus", "low_rank_a", "low_rank_b", "step_size", "log_rate"
]


@dataclass(frozen=True, slots=True)
class Canonical:
    """The terms of the recurrence, layout [B, T, H, .], as torch tensors or mpmath arrays.

    Attributes:
        q: [B, T, H, K].
        k: [B, T, H, K]; of a delta operator, the key before it is multiplied by beta.
        v: [B, T, H, V].
        log_decay: None, [B, T, H, 1] or [B, T, H, K]; natural logarithm.
        beta: None or [B, T, H, 1]: write strength of a delta operator, whose low-rank term reads the decayed state.
        a: None or [B, T, H, K]: reads the state.
        b: None or [B, T, H, K]: writes what `a` read.
        low_rank_on: whether `a` reads the decayed or the undecayed state.
        read: whether o_t sees the write of token t ("inclusive") or only a bonus of it ("exclusive").
        bonus: None or [H, K]: u of the exclusive read.
    """

    q: Array
    k: Array
    v: Array
    log_decay: Array | None = None
    beta: Array | None = None
    a: Array | None = None
    b: Array | None = None
    low_rank_on: Literal["decayed", "undecayed"] = "decayed"
    read: Literal["inclusive", "exclusive"] = "inclusive"
    bonus: Array | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One argument of an operator.

    Attributes:
        name: canonical name.
        axes: letters of its shape, from B T H K V G.
        kind: what it is; decides how regimes draw it and in which dtype (gates, rates and step sizes stay in float32
            when the operands are 16 bits wide; a bonus does not).
        domain: the values it may take, for people.
        aliases: other spellings, most telling first.
    """

    name: str
    axes: tuple[str, ...]
    kind: Kind
    domain: str = "real"
    aliases: tuple[str, ...] = ()

    @property
    def keeps_float32(self) -> bool:
        """True where the input stays float32 although the case's dtype has 16 bits."""
        return self.kind in ("log_gate", "step_size", "log_rate")


@dataclass(frozen=True, slots=True)
class Operator:
    """The statement of one mechanism.

    Attributes:
        name: the word of ``--op``.
        aliases: other words for it.
        summary: one sentence.
        equations: the step and the read-out, in plain text, one a line.
        source: paper and equation.
        inputs: in canonical order.
        canonical: maps named inputs (any arithmetic) and sizes to the recurrence.
        default_scale: None stands for K**-0.5.
        state_axes: of initial and final state; N is B or the number of packed sequences.
        identities: ids of the relations that hold, as named in ``linverify.identities``.
        hazards: where implementations usually go wrong, one sentence each.
        unit_keys: True where keys are drawn with unit norm by default.
        same_as: facts of the form ("gla", {...}) are stated as reductions in ``reductions``.
        reductions: (target operator, human condition, function from this operator's inputs to the target's): with inputs
            restricted by the condition both operators agree.
        pins: keyword arguments that make a library's function compute this operator, passed where the signature has them.
        state_arguments: other spellings of initial_state; those in `value_first` take [N, H, V, K].
        value_first: spellings of the initial state whose layout has the value axis first.
    """

    name: str
    summary: str
    equations: str
    source: str
    inputs: tuple[Input, ...]
    canonical: Callable[[Mapping[str, Array], Sizes], Canonical]
    identities: frozenset[str]
    aliases: tuple[str, ...] = ()
    default_scale: float | None = None
    state_axes: tuple[str, ...] = ("N", "H", "K", "V")
    hazards: tuple[str, ...] = ()
    unit_keys: bool = False
    grouped: bool = False
    reductions: tuple["Reduction", ...] = ()
    pins: Mapping[str, Any] = field(default_factory=dict)
    state_arguments: tuple[str, ...] = ("initial_state", "h0", "initial_states", "past_key_value", "state")
    final_state_arguments: tuple[str, ...] = ("output_final_state", "return_final_states", "return_final_state")
    value_first: tuple[str, ...] = ()

    def input(self, name: str) -> Input:
        """Return the input of that canonical name."""
        return next(i for i in self.inputs if i.name == name)

    def of_kind(self, *kinds: Kind) -> tuple[Input, ...]:
        """Return the inputs of these kinds, in canonical order."""
        return tuple(i for i in self.inputs if i.kind in kinds)

    @property
    def value_name(self) -> str:
        """Name of the value input: o has its dtype and shape."""
        return self.of_kind("value")[0].name

    @property
    def gated(self) -> bool:
        """True where some input sets the decay."""
        return bool(self.of_kind("log_gate", "step_size"))

    def scale_for(self, sizes: Sizes) -> float:
        """The scale that holds when the caller gives none."""
        return float(sizes["K"]) ** -0.5 if self.default_scale is None else self.default_scale


@dataclass(frozen=True, slots=True)
class Reduction:
    """A simpler operator that this one becomes when its inputs are restricted.

    Attributes:
        to: name of the simpler operator.
        when: the restriction, for people.
        restrict: maps drawn inputs (torch) to inputs that meet the restriction, exactly representable in their dtypes.
        translate: maps restricted inputs to the inputs of the simpler operator.
    """

    to: str
    when: str
    restrict: Callable[[Mapping[str, Array]], dict[str, Array]]
    translate: Callable[[Mapping[str, Array]], dict[str, Array]]


def per_head(values: Sequence[float], like: Array) -> Array:
    """Return one constant a head as [1, 1, H, 1], in the arithmetic of `like`.

    Values that are dyadic stay exact in every arithmetic; take their logarithm with ``.log()`` afterwards.
    """
    return like.new_tensor(list(values))[None, None, :, None]
