"""In the worker: import the target and say what is in it."""

import difflib
import importlib
import importlib.util
import inspect
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch

from linverify.binding import Description, FunctionInfo, Parameter
from linverify.errors import CannotCheckError, UsageError
from linverify.implementation import declared

Functions = dict[str, Callable[..., Any]]
_NOT_SEARCHED = (
    "torch",
    "numpy",
    "builtins",
    "functools",
    "typing",
    "math",
    "inspect",
    "contextlib",
    "collections",
    "triton",
)


def load(kind: str, location: str, function: str | None) -> tuple[Functions, Description]:
    """Import the target; return its functions by name and their description.

    Raises:
        UsageError: a syntax error, no such function, or nothing declared and nothing named.
        CannotCheckError: the import raises, or the backend of a function is not there.
    """
    started = time.perf_counter()
    label = Path(location).name if kind == "file" else location
    module = imported(kind, location)
    seconds = time.perf_counter() - started
    functions = _named(module, label, function) if function else _declared(module, label)
    for name, found in functions.items():
        if absent := next((c.absent for c in declared(found) if c.absent), ""):
            raise CannotCheckError(f"{name} in {label} cannot run here: {absent}")
    infos = tuple(_info(name, f) for name, f in functions.items())
    return functions, Description(infos, any(i.uses_triton for i in infos), seconds, _versions())


def imported(kind: str, location: str) -> ModuleType:
    """Import a file or a module.

    Raises:
        UsageError: there is no such module.
        CannotCheckError: the import raises.
    """
    label = Path(location).name if kind == "file" else location
    try:
        return _from_file(location) if kind == "file" else importlib.import_module(location)
    except ModuleNotFoundError as error:
        if kind == "module" and error.name and f"{location}.".startswith(f"{error.name}."):
            raise UsageError(
                f"no module named {error.name!r} (of {location}); install it, or start where it is"
            ) from None
        raise CannotCheckError(f"importing {label} raised {type(error).__name__}: {first_line(error)}") from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise CannotCheckError(f"importing {label} raised {type(error).__name__}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, at most 500 characters; never raises."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # the target's own __str__ may fail
        return "(the exception cannot be shown)"
    return lines[0][:500] if lines else ""


def _from_file(location: str) -> ModuleType:
    path = Path(location)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"linverify_target_{path.stem}"
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{location} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and Triton look their module up by name
    spec.loader.exec_module(module)
    return module


def _named(module: ModuleType, label: str, name: str) -> Functions:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n, f in vars(found).items() if callable(f) and not n.startswith("_")]
            near = difflib.get_close_matches(part, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known)[:12]) or 'no functions'}"
            raise UsageError(f"{label} has no function {part!r}; {hint}")
        found = getattr(found, part)
    if _is_kernel_object(found):
        raise UsageError(f"{name} in {label} is a Triton kernel; name the Python function that launches it")
    if not callable(found) or inspect.isclass(found):
        raise UsageError(f"{name} in {label} is a {type(found).__name__}; expected a function")
    return {name: found}


def _declared(module: ModuleType, label: str) -> Functions:
    functions: Functions = {}
    for name, value in vars(module).items():
        if callable(value) and declared(value) and value not in functions.values():
            functions[name] = value
    # A kernel file may import another's kernels for its own use; those are declared where they are written.
    own = {n: f for n, f in functions.items() if getattr(f, "__module__", module.__name__) == module.__name__}
    if own or functions:
        return own or functions
    raise UsageError(
        f"{label} has no function decorated with @linverify.kernel; "
        f"decorate one, or name one: {label}::function --op OPERATOR"
    )


def _info(name: str, function: Callable[..., Any]) -> FunctionInfo:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise UsageError(
            f"{name} has no readable signature; wrap it in a Python function with named parameters"
        ) from None
    parameters = tuple(_parameter(p) for p in signature.parameters.values())
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if isinstance(code, CodeType) else ("", 0)
    return FunctionInfo(name, parameters, declared(function), file, line, _reaches_triton(function))


def _parameter(p: inspect.Parameter) -> Parameter:
    required = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    try:
        default = "" if p.default is p.empty else repr(p.default)[:200]
    except Exception:  # the target's own __repr__ may fail
        default = f"<{type(p.default).__name__}>"
    return Parameter(p.name, p.kind.name, required, default)


def _is_kernel_object(value: object) -> bool:
    return any(base.__module__.partition(".")[0] == "triton" for base in type(value).__mro__)


def _reaches_triton(function: object) -> bool:
    """Follow the names that the code uses to the first Triton kernel."""
    pending, seen = [function], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_kernel_object(value):
            return True
        pending.extend(_used_by(value))
    return False


def _used_by(value: Any) -> Iterator[object]:
    """What a class holds, or what a function's code can reach through its globals, closure and wrappers."""
    if inspect.isclass(value):
        if _searched(value.__module__):
            yield from (getattr(member, "__func__", member) for member in vars(value).values())
        return
    if wrapped := getattr(value, "__wrapped__", None):
        yield wrapped
    function = getattr(value, "__func__", value)
    if inspect.isfunction(function) and _searched(str(function.__globals__.get("__name__", ""))):
        yield from (c.cell_contents for c in function.__closure__ or () if c != CellType())
        yield from _globals_of(function)


def _globals_of(function: FunctionType) -> Iterator[object]:
    used = _names_in(function.__code__)
    for name in used & function.__globals__.keys():
        found = function.__globals__[name]
        if not isinstance(found, ModuleType):
            yield found
        elif _searched(found.__name__):
            yield from (vars(found)[n] for n in used & vars(found).keys())


def _searched(module: str) -> bool:
    return module.partition(".")[0] not in _NOT_SEARCHED


def _names_in(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*(_names_in(c) for c in inner))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "fla"):
        if name in sys.modules:
            versions[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return versions
