"""Parameters of an operator, as ``--op NAME:key=value`` sets them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from linverify.errors import UsageError
from linverify.operator import Operator


def with_parameters(operator: Operator, given: Mapping[str, str]) -> Operator:
    """The operator with some of its parameters set, each read as its default's type.

    Raises:
        UsageError: the operator has no such parameter, or the value is none for it.
    """
    known = operator.parameters
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{operator.name} has no parameter {name!r} to set with --op; {has}")
        kind = type(known[name])
        try:
            values[name] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
        except ValueError as error:
            raise UsageError(f"{operator.name}: expected {kind.__name__} for {name}, got {text!r}") from error
    if operator.rebuild is None or not values:
        return operator
    try:
        rebuilt = operator.rebuild(**values)
        # a function with an argument of that name is told, too
        return replace(rebuilt, pins={**rebuilt.pins, **values})
    except ValueError as error:
        raise UsageError(f"{operator.name}: {error}") from error
