"""``[tool.linverify]``: the options of ``linverify check``, written once for a project.

    [tool.linverify]
    profile = "quick"
    dtype = ["bf16", "fp32"]
    claims = { fp32 = "ieee" }

A key is an option's name without its dashes. What the command line says wins, option by option.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from linverify import dtype as formats
from linverify import options, registry
from linverify.errors import CannotCheckError, ConfigError, LinverifyError, UsageError, unknown
from linverify.profile import PROFILES
from linverify.project import table

_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("text", (str,)),
}


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line knows of one option.

    Attributes:
        key: its name without dashes, as the table spells it.
        parameter: of the function behind it.
        kind: bool, int, float or str.
        repeatable: whether it may be given several times.
    """

    key: str
    parameter: str
    kind: type
    repeatable: bool = False


def known(command: Callable[..., object]) -> dict[str, Option]:
    """Return the long options of a command, read from the annotations of its function."""
    found = {}
    for parameter, hint in get_type_hints(command, include_extras=True).items():
        notes = getattr(hint, "__metadata__", ())
        # typer keeps the first word of an annotated option where its default would be
        words = [
            word for n in notes for word in (getattr(n, "default", None), *(getattr(n, "param_decls", None) or ()))
        ]
        long = next((word for word in words if isinstance(word, str) and word.startswith("--")), None)
        if long is None:
            continue
        plain = hint.__origin__
        (plain,) = [a for a in get_args(plain) if a is not NoneType] if get_origin(plain) is UnionType else [plain]
        kind = plain if plain in _KINDS else str
        found[long[2:]] = Option(long[2:], parameter, kind, repeatable=get_origin(plain) is list)
    return found


def values(folder: Path, options_known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the values of the nearest table by parameter name, checked.

    Raises:
        ConfigError: a line for each key that is wrong.
    """
    path, given = table(folder)
    wrong: list[str] = []
    found: dict[str, Any] = {}
    for key, value in given.items():
        try:
            if key not in options_known:
                raise unknown("key", key, options_known)
            option = options_known[key]
            found[option.parameter] = _items(option, value) if option.repeatable else _scalar(option, value)
            _MEANING.get(key, repr)(found[option.parameter])
        except LinverifyError as error:
            wrong.append(f"{path}, [tool.linverify] {key}: {error}")
    if wrong:
        raise ConfigError(wrong)
    return found


def _items(option: Option, value: Any) -> list[str]:
    """A repeatable option's values as the command line would give them: text, a list of text, or a table of NAME = VALUE."""
    if isinstance(value, dict) and option.key in ("set", "claims"):
        return [f"{name}={_spelled(item, literal=option.key == 'set')}" for name, item in value.items()]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UsageError(f"expected text or a list of text, got {value!r}")
    return list(items)


def _spelled(value: Any, *, literal: bool) -> str:
    """A value of ``--set`` is a Python literal, one of ``--claims`` the bare word."""
    if literal:
        return repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _scalar(option: Option, value: Any) -> Any:
    wanted, kinds = _KINDS.get(option.kind, _KINDS[str])
    if not isinstance(value, kinds) or (isinstance(value, bool) and option.kind is not bool):
        raise UsageError(f"expected {wanted}, got {value!r}")
    return float(value) if isinstance(value, int) and option.kind is float else value


def _operator(text: str) -> None:
    name, _ = options.operator_option(text)
    assert name is not None
    registry.operator(name)


def _device(text: str) -> None:
    try:
        options.device_option(text)
    except CannotCheckError:
        return  # another machine may have it; this one says so when it is asked for


# What more is asked of a value than its type; each raises for a wrong one.
_MEANING: dict[str, Callable[[Any], object]] = {
    "op": _operator,
    "set": options.settings_option,
    "claims": options.claims_option,
    "recipe": lambda text: options.with_recipe((), text),
    "dtype": lambda names: [formats.parse(name) for name in names],
    "property": lambda names: [registry.property_named(name) for name in names],
    "require": lambda names: [registry.property_named(name) for name in names],
    "device": _device,
    "profile": lambda name: options.one_of("profile", name, PROFILES),
    "autotune": lambda name: options.one_of("autotune mode", name, options.AUTOTUNE),
    "time": options.time_option,
    "workers": options.workers_option,
}
