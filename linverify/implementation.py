"""Implementations: functions that claim to compute an operator, and the decorator that says so.

This module is all that a kernel file imports; it must stay free of torch and of the engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_MARK = "__linverify_kernels__"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a function says of itself.

    Attributes:
        operator: name, perhaps with parameters ("gla", "retention:...").
        form: naive, recurrent or chunkwise; "" where it does not say.
        backend: torch, triton, cuda, external; "" where it does not say.
        claims: promises that sharpen the judgement, by key ("fp32": "ieee").
        settings: extra keyword arguments to pass.
        absent: why its backend is not there on this machine, and what to do; "" where it is.
    """

    operator: str
    form: str = ""
    backend: str = ""
    claims: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""


def kernel(
    operator: str,
    *,
    form: str = "",
    backend: str = "",
    claims: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    absent: str = "",
) -> Callable[[_Function], _Function]:
    """Declare that a function computes an operator; the function itself is returned unchanged.

    Args:
        operator: name as in ``linverify list operators``.
        form: naive (alias parallel), recurrent or chunkwise.
        backend: torch, triton, cuda or external.
        claims: promises, as of ``--claims``: fp32=ieee, deterministic=true, state_dtype=input ...
        settings: extra keyword arguments for every call, as of ``--set``.
        absent: why the backend is not there on this machine and what to do about it, in one line; "" where it is. Such a
            function is listed, and asking for it says this line instead of importing or calling anything.
    """
    named = {"parallel": "naive"}.get(form, form)
    claim = Claim(operator, named, backend, dict(claims or {}), dict(settings or {}), absent)

    def declare(function: _Function) -> _Function:
        marks = [*getattr(function, _MARK, ()), claim]
        setattr(function, _MARK, tuple(marks))
        return function

    return declare


def declared(function: object) -> tuple[Claim, ...]:
    """The claims that the decorator left on a function; () where there are none."""
    marks = getattr(function, _MARK, ())
    return marks if isinstance(marks, tuple) else ()
