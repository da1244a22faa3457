"""Binding: which parameter of a function takes which argument of an operator.

WHY. Libraries spell the same argument differently (g, gk, w; initial_state, h0) and order them differently, so
arguments go by name. Nothing is guessed: what cannot be matched by name is an error that says what to rename or to
set.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from linverify.errors import UsageError
from linverify.implementation import Claim
from linverify.operator import Input, Operator

_SCALE = ("scale", "sm_scale", "softmax_scale")
_OFFSETS = ("cu_seqlens", "cu_seq_lens", "offsets")
_STATE_FLAGS = ("state_v_first", "transpose_state_layout")
_NAMED = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a signature: its `inspect` kind by name, whether it must be filled, its default as text."""

    name: str
    kind: str
    required: bool
    default_repr: str = ""


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """A function of the target, as the worker described it.

    Attributes:
        name: within the target.
        parameters: in order.
        claims: what decorators declared.
        file, line: where it is defined; "" and 0 where unknown.
        uses_triton: whether a Triton kernel is reachable from it.
    """

    name: str
    parameters: tuple[Parameter, ...]
    claims: tuple[Claim, ...] = ()
    file: str = ""
    line: int = 0
    uses_triton: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """A target after import: its functions, whether any of them uses Triton, import seconds, versions of what computes."""

    functions: tuple[FunctionInfo, ...]
    uses_triton: bool
    import_seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Description":
        """Rebuild a description; KeyError or TypeError where `content` is none."""
        functions = [
            FunctionInfo(
                **{
                    **f,
                    "parameters": tuple(Parameter(**p) for p in f["parameters"]),
                    "claims": tuple(Claim(**c) for c in f["claims"]),
                }
            )
            for f in content["functions"]
        ]
        return cls(tuple(functions), content["uses_triton"], content["import_seconds"], dict(content["versions"]))


@dataclass(frozen=True, slots=True)
class Binding:
    """How a function is called for an operator.

    Attributes:
        function: name of the function.
        names: canonical argument to parameter name; besides inputs: scale, initial_state, output_final_state, cu_seqlens.
        capabilities: of scale, initial_state, final_state, packed, gradients, groups.
        settings: keyword arguments of every call, the operator's pins included.
        state_value_first: the function's states are [N, H, V, K].
        notes: what a reader of the report should know.
        claims: promises that sharpen the judgement.
    """

    function: str
    names: Mapping[str, str]
    capabilities: frozenset[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    state_value_first: bool = False
    notes: tuple[str, ...] = ()
    claims: Mapping[str, str] = field(default_factory=dict)


def bind(
    operator: Operator,
    function: FunctionInfo,
    *,
    settings: Mapping[str, Any] | None = None,
    claims: Mapping[str, str] | None = None,
) -> Binding:
    """Match an operator's arguments to a function's parameters.

    Raises:
        UsageError: an input has no parameter, a required parameter has no filling, or a setting names no parameter.
    """
    settings, claims = dict(settings or {}), dict(claims or {})
    parameters = {p.name: p for p in function.parameters if p.kind in _NAMED}
    if hidden := [p.name for p in function.parameters if p.kind == "POSITIONAL_ONLY" and p.required]:
        raise UsageError(
            f"{function.name}: parameter {hidden[0]!r} takes no keyword; arguments go by name, remove the '/'"
        )
    open_ended = any(p.kind == "VAR_KEYWORD" for p in function.parameters)
    _check_settings(function, settings, parameters, open_ended=open_ended)
    names = _match_inputs(operator, function, list(parameters))
    free = [name for name in parameters if name not in names.values()]
    stateful = bool(operator.state_axes)
    for canonical, spellings in (
        ("scale", _SCALE),
        ("initial_state", ("initial_state", *operator.state_arguments) if stateful else ()),
        ("output_final_state", ("output_final_state", *operator.final_state_arguments) if stateful else ()),
        ("cu_seqlens", _OFFSETS),
    ):
        found = _first(spellings, free)
        if found is not None:
            names[canonical] = found
    for canonical, name in names.items():
        if name in settings:
            raise UsageError(f"{function.name}: {name!r} is filled for every case (it is {canonical!r}); do not set it")
    # A pin that repeats the default changes nothing, and naming a deprecated argument can raise.
    pins = {
        name: value
        for name, value in operator.pins.items()
        if name in free and name not in {*names.values(), *settings} and parameters[name].default_repr != repr(value)
    }
    _check_filled(function, {*names.values(), *settings, *pins})
    value_first = names.get("initial_state") in operator.value_first or any(
        settings.get(f) is True for f in _STATE_FLAGS
    )
    offered = {
        "gradients": True,
        "scale": "scale" in names,
        "initial_state": "initial_state" in names,
        "final_state": "output_final_state" in names,
        "packed": "cu_seqlens" in names,
        "groups": operator.grouped or str(claims.get("gva", "")).lower() == "true",
    }
    return Binding(
        function.name,
        names,
        frozenset(name for name, holds in offered.items() if holds),
        {**pins, **settings},
        value_first,
        tuple(_notes(operator, function, names, pins)),
        claims,
    )


def _first(spellings: Iterable[str], free: Iterable[str]) -> str | None:
    known = set(free)
    return next((s for s in spellings if s in known), None)


def _spellings(operand: Input) -> tuple[str, ...]:
    # Where a function has both, "g" is the gate of a head and "gk" that of a channel.
    channel = operand.kind == "log_gate" and "K" in operand.axes and "gk" in operand.aliases
    return (*(("gk",) if channel else ()), operand.name, *operand.aliases)


def _match_inputs(operator: Operator, function: FunctionInfo, free: list[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    # Exact names first: an alias of one input may be the name of another.
    exact = {i.name for i in operator.inputs if _first(_spellings(i)[:1], free)}
    for operand in operator.inputs:
        taken = {*names.values(), *(exact - {operand.name})}
        found = _first(_spellings(operand), [n for n in free if n not in taken])
        if found is None:
            raise UsageError(
                f"{function.name} has no parameter for input {operand.name!r} of {operator.name}; "
                f"expected one named {', '.join(_spellings(operand))}; it has {', '.join(free) or 'none'}"
            )
        names[operand.name] = found
    return names


def _check_settings(
    function: FunctionInfo, settings: Mapping[str, Any], parameters: Mapping[str, Parameter], *, open_ended: bool
) -> None:
    for name in settings:
        if name not in parameters and not open_ended:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(parameters) or 'none'}"
            raise UsageError(f"{function.name} has no parameter {name!r} to set; {hint}")


def _check_filled(function: FunctionInfo, filled: set[str]) -> None:
    for p in function.parameters:
        if not p.required:
            continue
        if p.name not in filled:
            raise UsageError(
                f"{function.name}: required parameter {p.name!r} cannot be filled; "
                f"pass --set {p.name}=VALUE or rename it to the argument it stands for"
            )


def _notes(
    operator: Operator, function: FunctionInfo, names: Mapping[str, str], pins: Mapping[str, Any]
) -> Iterable[str]:
    for name, value in pins.items():
        yield f"passed {name}={value!r}: that is what makes {function.name} compute {operator.name}"
    scale = next((p for p in function.parameters if p.name == names.get("scale")), None)
    usual = "None" if operator.default_scale is None else repr(operator.default_scale)
    if scale is not None and not scale.required and scale.default_repr not in (usual, "None"):
        meant = "K**-0.5" if operator.default_scale is None else usual
        yield f"the signature's default {scale.name}={scale.default_repr} differs from {operator.name}'s {meant}"
