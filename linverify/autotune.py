"""Autotuning: which configuration of a Triton kernel runs.

WHY. Triton times every configuration before the first call: more than two minutes a kernel on a GPU, impossible in
its CPU interpreter (no driver to time with), and another choice on every machine. Pinned, the first configuration
that fits the device runs, always the same one; on request another one, so that each can be checked. The patch goes in when
``triton.runtime.autotuner`` is imported, whoever imports it, so before any kernel is built.
"""

import builtins
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODES = ("pin", "native")

_MODULE = "triton.runtime.autotuner"


class _Asked:
    """What the calls to come are asked to do, and which autotuned kernels they have launched.

    Attributes:
        place: where among a kernel's configurations the search for one that fits begins, going round; a kernel that has
            fewer begins at the first.
        only: names of the kernels for which that holds; the others begin at the first. Empty for all.
        launched: by kernel and configurations: the one that ran (-1 for none), and those that did not fit.
    """

    place = 0
    only: frozenset[str] = frozenset()
    launched: dict[tuple[str, tuple[str, ...]], tuple[int, list[int]]] = {}  # noqa: RUF012  # one process, one record


def install(mode: str) -> None:
    """Arrange that Triton's autotuners obey `mode`, now or when Triton is imported.

    Args:
        mode: pin: the first configuration that fits, or the one asked for; native: whatever Triton does.
    """
    if mode == "native":
        return
    if _MODULE in sys.modules:
        _pin(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _PinWhenImported())


def force(place: int, only: Sequence[str] = ()) -> None:
    """Begin at another place among the configurations from now on, of these kernels or of all; forget what was launched."""
    _Asked.place, _Asked.only = place, frozenset(only)
    _Asked.launched.clear()


def launched() -> tuple[tuple[str, tuple[str, ...], int, tuple[int, ...]], ...]:
    """Return the autotuned kernels launched since `force`: name, configurations, which one ran (-1: none), which do not fit.

    One that prunes its list by shape may stand here twice.
    """
    return tuple((*kernel, ran, tuple(unfit)) for kernel, (ran, unfit) in _Asked.launched.items())


class _PinWhenImported(MetaPathFinder):
    """Patches the autotuner's module right after it is executed."""

    def find_spec(self, name: str, _path: Any = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _PinningLoader(spec.loader)
        return spec


class _PinningLoader(Loader):
    """The module's own loader, and then the patch."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _pin(module)


def _pin(module: ModuleType) -> None:
    tuner = module.Autotuner
    if getattr(tuner, "__linverify_pinned__", False):
        return
    tuner.__linverify_pinned__ = True
    tuner.run = _run_pinned


def _run_pinned(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the configuration that was asked for, or the next one that the device has room for; remember which."""
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    given = {**self.nargs, **kwargs}
    name = _name(self.fn)
    start = 0 if _Asked.only and name not in _Asked.only else _Asked.place
    key = (start, *(repr(given.get(n)) for n in self.keys if not hasattr(given.get(n), "data_ptr")))
    chosen: dict[Any, tuple[int, list[Any]]] = self.__dict__.setdefault("_linverify_chosen", {})
    if key in chosen:
        place, configs = chosen[key]
        places = [place]
    else:
        configs = _fitting(self, kwargs)
        begin = start if start < len(configs) else 0  # a shorter list has had its turn
        places = [(begin + i) % len(configs) for i in range(len(configs))]
    known = (name, tuple(str(c) for c in configs))
    ran, unfit = _Asked.launched.get(known, (-1, []))
    _Asked.launched[known] = ran, unfit
    try:
        for position, place in enumerate(places):
            config = configs[place]
            settings = config.all_kwargs()
            if config.pre_hook is not None:
                config.pre_hook({**given, **settings})
            try:
                result = self.fn.run(*args, **kwargs, **settings)
            except builtins.Exception as error:
                if position + 1 == len(places) or not _does_not_fit(error):
                    raise
                unfit.append(place)
                continue
            chosen[key] = place, configs
            _Asked.launched[known] = place, unfit
            self.best_config = config
            return result
    finally:
        self.nargs = None
    raise RuntimeError(f"no configuration of {self.fn} is left after pruning")


def _name(kernel: Any) -> str:
    """Module and name of a kernel's Python function, through everything that is wrapped around it."""
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    found = getattr(kernel, "__qualname__", type(kernel).__name__)
    return f"{getattr(kernel, '__module__', '')}.{found}".lstrip(".")


def _fitting(tuner: Any, kwargs: dict[str, Any]) -> list[Any]:
    if tuner.early_config_prune is None or len(tuner.configs) == 1:
        return list(tuner.configs)
    try:
        return list(tuner.early_config_prune(tuner.configs, tuner.nargs, **kwargs))
    except RuntimeError:
        # Under the interpreter there is no driver that a pruning rule could ask for the device's limits.
        if os.environ.get("TRITON_INTERPRET") == "1":
            return list(tuner.configs)
        raise


def _does_not_fit(error: BaseException) -> bool:
    # Looked up by name: the classes have moved between versions of Triton.
    return any(base.__name__ in ("OutOfResources", "PTXASError") for base in type(error).__mro__)
