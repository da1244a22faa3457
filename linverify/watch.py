"""In the worker: does the target keep its hands off the checker and off what the checker relies on?

WHY. A kernel that is wrong can still look right: it can compute its answer with the checker's own reference, replace the
function that would have seen the fault, or write into the checker's files. Generated kernels have done all of these to other
checkers. Each leaves a trace: a name that now means something else, or an event that Python's audit hooks report.

What a process can do to itself cannot all be seen from inside it; docs/pages/isolation.md says what remains.
"""

import builtins
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from linverify.meanings import Meanings

# Modules that hold answers or decide about them. A target has no business with any of them.
_JUDGING = frozenset(
    {"reference", "judge", "budget", "ensemble", "model", "noise", "recipe", "session", "inquiry", "bench", "trial"}
    | {"statistics", "draw", "sample", "explore", "properties", "checking", "scout", "fold"}
)
# What decides whether a fault is seen, beyond linverify's own functions.
_TORCH = (
    *("equal", "empty", "empty_like", "empty_strided", "zeros", "zeros_like", "tensor", "cat", "isin", "arange"),
    *("no_grad", "set_grad_enabled", "view_as_real", "device", "Tensor", "UntypedStorage"),
)
_TENSOR = (
    *("clone", "detach", "cpu", "copy_", "fill_", "view", "contiguous", "is_contiguous", "reshape", "to", "set_"),
    *("untyped_storage", "data_ptr", "numel", "element_size", "requires_grad_", "numpy", "expand", "stride"),
    *("storage_offset", "any", "sum", "dim", "__getitem__", "__setitem__", "__ne__", "__eq__", "__torch_function__"),
    *("shape", "dtype", "layout", "grad_fn", "requires_grad"),
)
_THOROUGH = 16  # the first of so many looks asks for what no event tells
_OS = ("write", "writev", "read", "readv", "_exit", "close", "dup2")


class Watch:
    """Knows how things were before the target was imported, and hears what the interpreter reports since."""

    def __init__(self, location: str) -> None:
        """Take down how things are.

        Args:
            location: of the target; a built-in implementation may import the others.
        """
        self._home = str(Path(__file__).resolve().parent) + os.sep
        self._rooms = tuple(str(Path(self._home).parent / room) + os.sep for room in ("impls", "properties"))
        self._own = location.startswith("linverify.impls")
        self._heard: dict[str, None] = {}
        self._names, self._asked = Meanings(), 0
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "linverify":
                self._take(name, vars(module))
        self._names.take("torch", vars(torch), _TORCH)
        self._names.take("torch.Tensor", vars(torch.Tensor), _TENSOR)
        self._names.take("torch.autograd", vars(torch.autograd), ("grad", "backward"))
        self._names.take("torch.cuda", vars(torch.cuda), ("synchronize",))
        self._names.take("builtins", vars(builtins), [n for n in vars(builtins) if n != "_"])
        self._names.take("os", vars(os), _OS)
        self._names.take("json", vars(json), ("dumps", "loads"))
        self._names.take("time", vars(time), ("perf_counter", "monotonic"))
        self._skipped = tuple(str(Path(m.__file__ or "").parent) + os.sep for m in (torch, os))

    def install(self) -> None:
        """Listen from now on; an audit hook cannot be removed."""
        rules: dict[str, Callable[..., str]] = {
            "import": self._imported,
            "open": self._opened,
            "gc.get_objects": self._searched,
            "gc.get_referrers": self._searched,
            "object.__setattr__": self._recoded,
            "sys.settrace": self._traced,
            "sys.setprofile": self._traced,
            "subprocess.Popen": self._started,
            "os.kill": self._killed,
            "os.killpg": self._killed,
        }
        heard = self._heard

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            rule = rules.get(event)
            if rule is None:
                return
            with contextlib.suppress(Exception):  # an audit hook that raises would change what the target sees
                if sentence := rule(*arguments):
                    heard[sentence] = None

        sys.addaudithook(hook)

    def findings(self) -> tuple[str, ...]:
        """What was seen so far, each a sentence."""
        self._asked += 1
        for name in self._names.replaced(thorough=self._asked % _THOROUGH == 1):
            self._heard[f"the target replaced {name}"] = None
        return tuple(self._heard)

    def _take(self, label: str, module: Mapping[str, Any]) -> None:
        """Take down a module of ours, and what can be called in the classes that it defines."""
        own = {n: value for n, value in module.items() if not n.startswith("__")}
        self._names.take(label, module, own)
        for name, value in own.items():
            if isinstance(value, type) and value.__module__ == label:
                members = vars(value)
                self._names.take(f"{label}.{name}", members, [n for n, m in members.items() if callable(m)])

    def _imported(self, module: str, *_: Any) -> str:
        top, _dot, rest = module.partition(".")
        part = rest.partition(".")[0]
        if top != "linverify" or self._own or not (part in _JUDGING or part == "impls"):
            return ""
        return f"the target imports {module}, which belongs to the checker"

    def _opened(self, path: Any, mode: Any, flags: Any) -> str:
        name = os.path.realpath(os.fsdecode(path)) if isinstance(path, (str, bytes)) else ""
        if name.startswith("/proc/") and name.endswith("/mem") and name.split("/")[2] not in ("self", str(os.getpid())):
            return "the target opens the memory of another process"
        if not name.startswith((self._home, *self._rooms)):
            return ""
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) != 0
        if writing and "__pycache__" not in name:
            return f"the target opens {name} for writing, which belongs to the checker"
        if self._own or isinstance(mode, str) is False:
            return ""
        inside = Path(name.removeprefix(self._home)).parts[0].partition(".")[0]
        if name.startswith(self._home) and inside in _JUDGING:
            return f"the target reads {name}, which belongs to the checker"
        return ""

    def _searched(self, *_: Any) -> str:
        return "the target searches the interpreter's memory for objects" if self._by_target() else ""

    def _recoded(self, holder: Any, attribute: Any, *_: Any) -> str:
        name = self._names.name(holder) if attribute == "__code__" else ""
        return f"the target replaced {name}" if name else ""

    def _traced(self, *_: Any) -> str:
        return "the target traces the functions that call it" if self._by_target() else ""

    def _started(self, _program: Any, arguments: Any, *_: Any) -> str:
        words = arguments if isinstance(arguments, (list, tuple)) else [arguments]
        named = any("linverify" in (os.fsdecode(w) if isinstance(w, (str, bytes)) else "") for w in words)
        return "the target starts a process that runs the checker" if named and not self._own else ""

    def _killed(self, pid: int, *_: Any) -> str:
        return "the target sends a signal to the process that started it" if pid in (os.getppid(), -1, 0) else ""

    def _by_target(self) -> bool:
        """Whether the nearest caller is neither torch nor the standard library, nor this file."""
        own = (__file__, *self._skipped)
        return next((not f.startswith(own) for f in _callers() if f != __file__), False)


def _callers() -> Iterator[str]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename
        if frame.f_back is None:
            return
        frame = frame.f_back
