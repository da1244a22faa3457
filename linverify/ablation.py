"""Ablation: what the smallest failing case cannot do without, and what it fails without.

Shrinking makes a case small and says nothing of what is left in it. Here each thing that a case still holds is taken out, one
at a time: where the law is broken all the same the case goes on without it, and where the law then holds the fault needs it.
What a target refuses, and what lies outside the law's space, is neither.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from linverify.case import Case
from linverify.errors import LinverifyError
from linverify.operator import Operator
from linverify.property import Space
from linverify.verdict import Status

Ask = Callable[[Case], Status]
# Two other draws of the tensors tell a fault of these very values from one of any.
_SEEDS = 2


@dataclass(frozen=True, slots=True)
class Ablated:
    """What is left of a case.

    Attributes:
        case: without what the fault does not need.
        needs: what it holds without which the law holds, a few words each.
        spare: what the law draws as well, and the case fails without.
    """

    case: Case
    needs: tuple[str, ...]
    spare: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Step:
    """A field, its plainer value, what to call the need; the last need of a key stands, `of` only from these values.

    What is `asked` for stays in the case that goes on: the more results it has, the more its right ones narrow down.
    """

    field: str
    plain: object
    said: str
    key: str = ""
    of: tuple[str, ...] = ()
    asked: bool = False


_UPSTREAM = {"o": "an upstream gradient of o", "state": "an upstream gradient of the final state"}
# The order is that in which a fault's causes are easiest to tell apart: what is unusual goes first.
_STEPS = (
    _Step("wrt", "all", "the gradient of {} alone asked for"),
    _Step("mixture", "usual", "a mixture of dtypes ({})"),
    _Step("lengths", (), "packed sequences"),
    _Step("offsets", "int64", "offsets in {}"),
    _Step("layout", "contiguous", "strided inputs ({})"),
    _Step("regime", "normal", "unusual inputs (regime {})"),
    _Step("gate", "none", "a gate (regime {})"),
    _Step("gate", "mild", "a gate (regime {}; mild is right)"),
    _Step("state", "absent", "an initial state"),
    _Step("state", "zero", "an initial state (zero is right)"),
    _Step("state", "normal", "an initial state ({}; of ordinary size it is right)", of=("large",)),
    _Step("cotangent", "none", "a backward pass", asked=True),
    _Step("cotangent", "o", _UPSTREAM["state"], "cotangent state", ("both",)),
    _Step("cotangent", "state", _UPSTREAM["o"], "cotangent o", ("both",)),
    _Step("cotangent", "o", "a strided upstream gradient", "cotangent layout", ("expanded", "strided")),
    _Step("final_state", False, "the final state asked for", asked=True),
    _Step("scale", "one", "a scale other than 1", "scale one"),
    _Step("scale", "default", "a scale other than the default", "scale default"),
    _Step("dtype", "fp32", "{}"),
    _Step("G", 0, "heads that share groups"),
    _Step("B", 1, "several batch rows"),
    _Step("H", 1, "several heads"),
)


@dataclass(eq=False)
class _Search:
    case: Case
    space: Space
    ask: Ask
    goes_on: bool
    found: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def tried(self, smaller: Case) -> Status:
        """What the law says; unchecked where fields go together, or the law does not ask such a case."""
        with suppress(LinverifyError):
            return self.ask(smaller)
        return Status.UNCHECKED

    def without(self, smaller: Case, key: str, said: str, *, asked: bool = False) -> None:
        """Take something out of the case."""
        status = self.tried(smaller)
        if status is Status.PASS:
            self.found[key] = said
        elif status is Status.VIOLATION and self.goes_on and not asked:
            self.case = smaller
        elif status is Status.VIOLATION and key not in self.found:
            self.lost.append(said.format(getattr(self.case, key, "")).partition(" (")[0])


def ablated(
    case: Case,
    operator: Operator,
    space: Space,
    ask: Ask,
    *,
    offers: frozenset[str] = frozenset(),
    dtypes: tuple[str, ...] = (),
    widths: tuple[int, int] | None = None,
    goes_on: bool = True,
) -> Ablated:
    """Take out of a failing case what its failure does not need, and say what it does.

    Args:
        case: the smallest that fails.
        operator: that it is of.
        space: of the law; nothing outside it is asked.
        ask: what the law says of a case.
        offers: what the target can do: initial_state, final_state, packed, gradients, scale.
        dtypes: of the run.
        widths: the least K and V that the law draws; None where others are dear to ask.
        goes_on: whether the case goes on without what it fails without; a case that is replayed stays as it is.
    """
    search = _Search(case, space, ask, goes_on)
    for step in _STEPS:
        if not _outside(step, search.case, space):
            changes = {step.field: step.plain, **({"offsets": "int64"} if step.field == "lengths" else {})}
            search.without(search.case.with_(**changes), step.key or step.field, step.said, asked=step.asked)
    if widths is not None:
        _widths(search, widths)
    _tokens(search)
    _values(search)
    needs = _named(search.found, search.case)
    spare = (*search.lost, *_absent(search.case, operator, space, offers, dtypes))
    kept = {need.partition(" (")[0] for need in needs}
    return Ablated(search.case, needs, tuple(dict.fromkeys(s for s in spare if s not in kept)))


def _named(found: dict[str, str], case: Case) -> tuple[str, ...]:
    """The needs, with the values that the case is left with."""
    either = {"cotangent o", "cotangent state"} & found.keys()
    upstream = _UPSTREAM.get(case.cotangent)
    said = {k: text.format(getattr(case, k, "")) for k, text in found.items() if k != "cotangent" or not either}
    if "cotangent" in said and upstream:
        said["cotangent"] = upstream
    return tuple(said.values())


def _outside(step: _Step, case: Case, space: Space) -> bool:
    """Whether the case has nothing to lose in this step, or the law asks no such case."""
    value = getattr(case, step.field)
    words: dict[str, tuple[str, ...]] = {
        "cotangent": space.cotangents,
        "state": space.states,
        "gate": space.gates,
        "scale": space.scales,
        "layout": space.layouts,
        "regime": space.regimes,
        "dtype": space.dtypes,
    }
    forced = {
        "lengths": space.packed is True,
        "final_state": space.final_state is True or case.cotangent in ("state", "both"),
        "B": space.min_B > 1 or bool(case.lengths),
        "H": space.min_H > 1,
    }
    plainer = {"state": ("absent", "zero", "normal", "large"), "cotangent": ("none", "o", "state", "both")}
    order = plainer.get(step.field, ())
    rises = value in order and step.plain in order and order.index(str(value)) <= order.index(str(step.plain))
    return (
        value == step.plain
        or rises
        or (bool(step.of) and value not in step.of)
        or (step.field == "gate" and value == "none")
        or (step.field == "scale" and value in ("one", "default"))
        or (bool(words.get(step.field)) and step.plain not in words[step.field])
        or forced.get(step.field, False)
    )


def _widths(search: _Search, least: tuple[int, int]) -> None:
    """The least heads that the law draws; then K and V alike, which hides what takes one for the other."""
    case = search.case
    K, V = least
    if case.K * case.V > K * V:
        said = f"wide heads (K={case.K}, V={case.V}; K={K}, V={V} is right)"
        search.without(case.with_(K=K, V=V), "widths", said)
    case = search.case
    if case.K != case.V and search.tried(case.with_(V=case.K)) is Status.PASS:
        search.found["K and V"] = f"K other than V (K=V={case.K} is right)"


def _tokens(search: _Search) -> None:
    """The fewest tokens, by halves: the number below them is right."""
    case, least = search.case, search.space.min_T
    if case.lengths or least >= case.T:
        return
    if not search.goes_on:
        if search.tried(case.with_(T=case.T - 1)) is Status.PASS:
            search.found["T"] = f"{case.T} tokens ({case.T - 1} are right)"
        return
    few, many = least, case.T
    first = search.tried(case.with_(T=few))
    if first is Status.VIOLATION:
        search.case = case.with_(T=few)
    if first is not Status.PASS:
        return
    while many - few > 1:
        middle = (few + many) // 2
        status = search.tried(case.with_(T=middle))
        if status is Status.VIOLATION:
            many = middle
        elif status is Status.PASS:
            few = middle
        else:
            return
    search.case = case.with_(T=many)
    search.found["T"] = f"{many} tokens ({few} {'is' if few == 1 else 'are'} right)"


def _values(search: _Search) -> None:
    """Whether any values do."""
    others = [search.case.with_(seed=search.case.seed + n) for n in range(1, _SEEDS + 1)]
    if all(search.tried(case) is Status.PASS for case in others):
        search.found["seed"] = f"values such as seed {search.case.seed} draws (of {_SEEDS} other seeds both are right)"


def _absent(
    case: Case, operator: Operator, space: Space, offers: frozenset[str], dtypes: tuple[str, ...]
) -> tuple[str, ...]:
    """What the law draws of this operator and target, and the case does without."""
    free = space.packed is not True and not case.lengths
    states = set(space.states or ("absent", "zero", "normal", "large")) if "initial_state" in offers else set[str]()
    upstream = set(space.cotangents) if "gradients" in offers else set[str]()
    scales = set(space.scales or ("one", "default", "other")) if "scale" in offers else set[str]()
    gates = set(space.gates or ("none", "strong")) if operator.gated else set[str]()
    held = {
        "packed sequences": "packed" in offers and space.packed is not False and not case.lengths,
        "strided inputs": len(space.layouts) > 1 and case.layout == "contiguous",
        "unusual inputs": len(space.regimes) != 1 and case.regime == "normal",
        "a gate": case.gate == "none" and gates > {"none"},
        "an initial state": case.state == "absent" and states > {"absent"},
        "a backward pass": case.cotangent == "none" and upstream > {"none"},
        _UPSTREAM["state"]: case.cotangent == "o" and "both" in upstream,
        _UPSTREAM["o"]: case.cotangent == "state" and "both" in upstream,
        "the final state asked for": not case.final_state and space.final_state is None and "final_state" in offers,
        "a scale other than 1": case.scale == "one" and scales > {"one"},
        "a scale of its own": case.scale == "default" and scales > {"default"},
        "16 bits": case.dtype == "fp32" and any(d in (space.dtypes or dtypes) for d in ("bf16", "fp16") if d in dtypes),
        "heads that share groups": operator.grouped and case.G in (0, case.H),
        "several batch rows": case.B == 1 and free,
        "several heads": case.H == 1,
        "several tokens": case.T == 1,
    }
    return tuple(what for what, absent in held.items() if absent)
