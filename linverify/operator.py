"""An operator: the mathematics of one mechanism, stated once.

WHY. Nearly every linear-attention mechanism is one recurrence with different terms. A mechanism therefore states only which
terms it has and how its arguments fill them; every form, reference, gradient and error model is derived from that statement.

WHAT. With X_0 the initial state and Y the state after (or before) its decay,

    X^ = D_t X_{t-1};   X_t = X^ + b_t (a_t^T Y) + k_t v_t^T;   o_t = scale * q_t^T X_t                      (inclusive read)
                                                                o_t = scale * q_t^T (X_{t-1} + (u*k_t) v_t^T)  (exclusive read)

A delta operator gives `beta` instead of a and b: X_t = X^ + beta_t k_t (v_t - X^^T k_t)^T.

A mechanism may map its inputs on the way in (feature maps: part of `canonical`) and what was read on the way out (`readout`: a
normaliser kept as one more value column, a norm). One that is no such recurrence states its forms themselves, in operations
that torch tensors and mpmath arrays share (``linverify.arithmetic``); the first of them is its definition.

HOW to add one: a file in ``linverify/operators/`` that assigns ``OPERATOR = Operator(...)``. Nothing else changes.
The operator never names a property; a property decides from the declared facts whether it applies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

from linverify.mechanism import Mechanism

# A torch tensor, or an array of `linverify.arithmetic` that carries mpmath numbers: both spell * + - [...] .exp() alike.
Array = Any
Sizes = Mapping[str, int]
Kind = Literal[
    "query",
    "key",
    "value",
    "log_gate",
    "strength",
    "bonus",
    "low_rank_a",
    "low_rank_b",
    "step_size",
    "log_rate",
    "parameter",
    "weight",
]
Inputs = Mapping[str, Array]
# Maps inputs [B, T, ...], sizes and the scale to o. Sequences are dense: packed ones are run one by one. Of an operator with a
# state it maps to (o, final state), the latter as a function where it costs extra; the inputs then hold "initial_state" where
# there is one.
Form = Callable[[Inputs, Sizes, Array], Any]
# Draws an input in float64 from (generator, shape); what comes back is rounded to the case's dtype.
Draw = Callable[[Any, tuple[int, ...]], Any]
FORMS = ("naive", "recurrent", "chunkwise")
GATE_KINDS: tuple[Kind, ...] = ("log_gate", "step_size", "log_rate")
"""Kinds of the inputs that set the decay."""


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
        axes: letters of its shape, from B T H K V G and the operator's own. S, always right after T, is for the steps of a
            token; functions take both as one axis of T * S steps.
        kind: what it is; decides how regimes draw it and in which dtype (gates, rates and step sizes stay in float32
            when the operands are 16 bits wide; a bonus does not). A "parameter" is anything else; a "weight" too, one
            that stays float32.
        domain: the values it may take, for people.
        aliases: other spellings, most telling first.
        draw: how it is drawn, where its kind does not say enough; None leaves that to the kind (a parameter or weight is
            normal).
        read_only: True where only the read-out sees it, as a query or a bonus is seen whatever this says.
    """

    name: str
    axes: tuple[str, ...]
    kind: Kind
    domain: str = "real"
    aliases: tuple[str, ...] = ()
    draw: Draw | None = None
    read_only: bool = False

    @property
    def keeps_float32(self) -> bool:
        """True where the input stays float32 although the case's dtype has 16 bits."""
        return self.kind in ("log_gate", "step_size", "log_rate", "weight")


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
        canonical: maps named inputs (any arithmetic) and sizes to the recurrence; None where `forms` state the mathematics.
        mechanism: how scores become weights, where the recurrence alone does not show it (a divisor, a norm, an exponential):
            bounds of gradients follow from it (``linverify.mechanism``).
        readout: maps the scaled reads [B, T, H, .] of the recurrence, the inputs and sizes to o; None where they are o.
        forms: by name (naive, recurrent, chunkwise), the definition first; empty where `canonical` states the mathematics,
            since every form then follows from it.
        ways: other ways to compute it that sound kernels go, by name, as forms: they err otherwise, and the budget has to
            know; nobody asks for them by name.
        o_axes: letters of o's shape.
        own_axes: lengths of axis letters beyond B T H K V G, from those.
        rebuild: makes the operator anew with other parameters (eps, feature map ...); its keywords and their defaults are
            what ``--op NAME:key=value`` may set.
        default_scale: None stands for K**-0.5.
        state_axes: of initial and final state; N is B or the number of packed sequences.
        resumes_every: tokens of the blocks between which a sequence may be cut and resumed from its state.
        linear_state: False where a state is more than a sum of values (a normaliser, a running maximum): o is then linear in
            the values of a sequence that starts without one.
        state_domain: maps drawn numbers of the state's shape to a state that can be (torch); None where all can.
        blank_state: maps zeros of that shape to the state before any token (torch), where that is not zeros.
        identities: ids of the relations that hold, as named in ``linverify.identities``.
        hazards: where implementations usually go wrong, one sentence each.
        outside: names of the operand regimes that leave its domain (zero rows, where it divides by a norm).
        coupled_heads: True where a head's results depend on other heads' inputs: a norm runs over all of them.
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
    canonical: Callable[[Inputs, Sizes], Canonical] | None = None
    identities: frozenset[str] = frozenset()
    readout: Callable[[Array, Inputs, Sizes], Array] | None = None
    forms: Mapping[str, Form] = field(default_factory=dict)
    ways: Mapping[str, Form] = field(default_factory=dict)
    mechanism: Mechanism | None = None
    o_axes: tuple[str, ...] = ("B", "T", "H", "V")
    own_axes: Mapping[str, Callable[[Sizes], int]] = field(default_factory=dict)
    rebuild: Callable[..., "Operator"] | None = None
    aliases: tuple[str, ...] = ()
    default_scale: float | None = None
    state_axes: tuple[str, ...] = ("N", "H", "K", "V")
    resumes_every: int = 1
    linear_state: bool = True
    state_domain: Callable[[Array], Array] | None = None
    blank_state: Callable[[Array], Array] | None = None
    hazards: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    coupled_heads: bool = False
    unit_keys: bool = False
    grouped: bool = False
    reductions: tuple["Reduction", ...] = ()
    pins: Mapping[str, Any] = field(default_factory=dict)
    state_arguments: tuple[str, ...] = ("initial_state", "h0", "initial_states", "past_key_value", "state")
    final_state_arguments: tuple[str, ...] = ("output_final_state", "return_final_states", "return_final_state")
    value_first: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.canonical is None) == (not self.forms):
            raise ValueError(f"{self.name}: state either the recurrence (canonical) or the forms")
        if wrong := [f for f in self.forms if f not in FORMS]:
            raise ValueError(f"{self.name}: expected forms among {', '.join(FORMS)}, got {', '.join(wrong)}")

    @property
    def form_names(self) -> tuple[str, ...]:
        """The forms that there are; of a recurrence all of them."""
        return tuple(self.forms) or FORMS

    @property
    def parameters(self) -> dict[str, Any]:
        """What ``--op NAME:key=value`` may set, with its defaults."""
        return {} if self.rebuild is None else {n: p.default for n, p in signature(self.rebuild).parameters.items()}

    @property
    def recurrence(self) -> Callable[[Inputs, Sizes], Canonical]:
        """The statement as a recurrence.

        Raises:
            TypeError: this operator states forms instead.
        """
        if self.canonical is None:
            raise TypeError(f"{self.name} is no recurrence: it states its forms")
        return self.canonical

    @property
    def axes(self) -> frozenset[str]:
        """Letters of all its inputs."""
        return frozenset(a for i in self.inputs for a in i.axes)

    def all_sizes(self, sizes: Sizes) -> dict[str, int]:
        """Sizes with the operator's own axes."""
        return {**sizes, **{a: length(sizes) for a, length in self.own_axes.items()}}

    def sizes_of(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Axis letters to lengths, read off the inputs' shapes; H is 1 and G is H where no input shows them, K is 1 too."""
        found = {a: n for i in self.inputs for a, n in zip(i.axes, shapes[i.name], strict=True)}
        found.update(self.unseen)
        found.setdefault("H", 1)
        found.setdefault("K", 1)
        found.setdefault("G", found["H"])
        return found

    @property
    def unseen(self) -> dict[str, int]:
        """Lengths of the own axes that no input shows (of o alone); they do not depend on the sizes."""
        return {a: length({}) for a, length in self.own_axes.items() if a not in self.axes}

    def stated(
        self, form: str, inputs: Inputs, sizes: Sizes, scale: Array, *, final_state: bool
    ) -> tuple[Array, Array | None]:
        """O, and the final state where it is asked for, by one of the stated forms or other ways."""
        found = {**self.forms, **self.ways}[form](inputs, sizes, scale)
        o, state = found if self.state_axes else (found, None)
        return o, None if not final_state else state() if callable(state) else state

    def input(self, name: str) -> Input:
        """Return the input of that canonical name."""
        return next(i for i in self.inputs if i.name == name)

    def of_kind(self, *kinds: Kind) -> tuple[Input, ...]:
        """Return the inputs of these kinds, in canonical order."""
        return tuple(i for i in self.inputs if i.kind in kinds)

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the inputs that the state does not depend on."""
        return tuple(i.name for i in self.inputs if i.read_only or i.kind in ("query", "bonus"))

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
