"""Autotuning: which configuration of a Triton kernel runs.

WHY. Triton times every configuration before the first call: more than two minutes a kernel on a GPU, impossible in
its CPU interpreter (no driver to time with), and another choice on every machine. Pinned, the first configuration
that fits the device runs, always the same one. The patch goes in when ``triton.runtime.autotuner`` is imported,
whoever imports it, so before any kernel is built.
"""

import builtins
import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODES = ("pin", "native")


class _Start:
    """The place among a kernel's configurations where the search for one that fits begins."""

    place = 0


_MODULE = "triton.runtime.autotuner"


def install(mode: str) -> None:
    """Arrange that Triton's autotuners obey `mode`, now or when Triton is imported.

    Args:
        mode: pin: the first configuration that fits; pin:N: the one N places after the first, going round; native: whatever
            Triton does.
    """
    mode, _, number = mode.partition(":")
    _Start.place = int(number or 0)
    if mode == "native":
        return
    if _MODULE in sys.modules:
        _pin(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _PinWhenImported())


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
    """Run the first configuration that the device has room for; remember which, per tuning key."""
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    given = {**self.nargs, **kwargs}
    key = tuple(repr(given.get(name)) for name in self.keys if not hasattr(given.get(name), "data_ptr"))
    chosen: dict[Any, Any] = self.__dict__.setdefault("_linverify_chosen", {})
    candidates = [chosen[key]] if key in chosen else _from_the_start(_fitting(self, kwargs))
    try:
        for position, config in enumerate(candidates):
            settings = config.all_kwargs()
            if config.pre_hook is not None:
                config.pre_hook({**given, **settings})
            try:
                result = self.fn.run(*args, **kwargs, **settings)
            except builtins.Exception as error:
                if position + 1 == len(candidates) or not _does_not_fit(error):
                    raise
                continue
            chosen[key] = config
            self.best_config = config
            return result
    finally:
        self.nargs = None
    raise RuntimeError(f"no configuration of {self.fn} is left after pruning")


def _from_the_start(configs: list[Any]) -> list[Any]:
    start = _Start.place % max(len(configs), 1)
    return configs[start:] + configs[:start]


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
