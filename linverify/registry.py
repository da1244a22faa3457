"""What there is: operators, properties and built-in implementations, found by scanning their rooms.

Adding a file to a room is all it takes. Scanning goes through the packages' own search paths, so it works alike in a wheel,
in an editable install and in a checkout, where the rooms are folders beside the package. Modules whose name starts with an
underscore are helpers and hold nothing to find.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from linverify.errors import LinverifyError, unknown
from linverify.implementation import declared
from linverify.operator import Operator
from linverify.property import Property


@dataclass(frozen=True, slots=True)
class ImplementationInfo:
    """A built-in implementation.

    Attributes:
        name: "torch_recurrent:gla".
        operator: name of what it claims to compute.
        form: naive, recurrent or chunkwise; "" where it does not say.
        backend: torch, triton, cuda or external; "" where it does not say.
        target_text: what to write after ``linverify check``.
        absent: why its backend is not there on this machine; "" where it is.
    """

    name: str
    operator: str
    form: str
    backend: str
    target_text: str
    absent: str = ""


def modules(package: str) -> Iterator[ModuleType]:
    """Import and yield the modules of a package in alphabetical order, helpers left out."""
    parent = importlib.import_module(package)
    for found in sorted(pkgutil.iter_modules(parent.__path__), key=lambda m: m.name):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{package}.{found.name}")


def _collect(package: str, attribute: str, kind: type) -> Iterator[tuple[str, object]]:
    for module in modules(package):
        found = getattr(module, attribute, None)
        if not isinstance(found, kind):
            raise LinverifyError(
                f"{module.__name__} must assign {attribute} = {kind.__name__}(...), found {type(found).__name__}; "
                "a helper module's name starts with an underscore"
            )
        yield module.__name__, found


def _claim(owners: dict[str, str], name: str, module: str, kind: str) -> None:
    """Note that `module` owns `name`; raise where another one does already."""
    if name in owners:
        raise LinverifyError(f"two {kind} are called {name!r}: in {owners[name]} and in {module}; rename one")
    owners[name] = module


@cache
def _operators() -> tuple[dict[str, Operator], dict[str, str]]:
    """Operators by name, and names by every word for them."""
    found: dict[str, Operator] = {}
    words: dict[str, str] = {}
    owners: dict[str, str] = {}
    for module, item in _collect("linverify.operators", "OPERATOR", Operator):
        assert isinstance(item, Operator)
        found[item.name] = item
        for word in (item.name, *item.aliases):
            _claim(owners, word, module, "operators")
            words[word] = item.name
    return found, words


def operators() -> dict[str, Operator]:
    """Return every operator by its name."""
    return dict(_operators()[0])


def operator(name: str) -> Operator:
    """Return the operator called `name`; aliases, hyphens and capitals are understood.

    Raises:
        UsageError: no operator has that name.
    """
    found, words = _operators()
    key = name.strip().lower().replace("-", "_")
    if key not in words:
        raise unknown("operator", name, words)
    return found[words[key]]


@cache
def _properties() -> dict[str, Property]:
    found: dict[str, Property] = {}
    owners: dict[str, str] = {}
    for module, item in _collect("linverify.properties", "PROPERTY", Property):
        assert isinstance(item, Property)
        _claim(owners, item.name, module, "properties")
        found[item.name] = item
    return found


def properties() -> dict[str, Property]:
    """Return every property by its name."""
    return dict(_properties())


def property_named(name: str) -> Property:
    """Return the property called `name`; hyphens and capitals are understood.

    Raises:
        UsageError: no property has that name.
    """
    found = _properties()
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    if key not in found:
        raise unknown("property", name, found)
    return found[key]


def _functions(module: ModuleType) -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield the public functions that a module lets itself be asked for, in order of definition."""
    for name, value in vars(module).items():
        if callable(value) and not name.startswith("_") and declared(value):
            yield name, value


@cache
def implementations() -> tuple[ImplementationInfo, ...]:
    """Return the built-in implementations, by module and order of definition."""
    found: list[ImplementationInfo] = []
    owners: dict[str, str] = {}
    for module in modules("linverify.impls"):
        short = module.__name__.rpartition(".")[2]
        for name, function in _functions(module):
            for claim in declared(function):
                _claim(owners, f"{short}:{name} ({claim.operator})", module.__name__, "implementations")
                text = f"{module.__name__}:{name}"
                found.append(
                    ImplementationInfo(f"{short}:{name}", claim.operator, claim.form, claim.backend, text, claim.absent)
                )
    return tuple(found)
