"""The plain process: a target, torch and a pipe each way.

This text is put behind those of `room`, `wire` and `autotune` and run with ``python -``, so that nothing there bears the
checker's name: no module, no variable, no patched function of torch; a pinned autotuner at most. Lines that import from
linverify are left out there.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from linverify.autotune import install
from linverify.wire import EndOfStreamError, receive, send


def main() -> None:
    """Import the function, then answer questions until the pipe is closed."""
    read_fd, write_fd, parent = (int(text) for text in sys.argv[1:])
    del sys.argv[1:]
    if parent:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: end with the one who asks
    if parent and os.getppid() != parent:
        return
    request, _ = receive(read_fd)
    try:
        function = _function(request)
    except (Exception, SystemExit) as error:
        send(write_fd, {"refused": type(error).__name__, "message": str(error)[:500]})
        return
    send(write_fd, {"ready": True})
    with contextlib.suppress(RuntimeError):  # what is amiss with a GPU, a question tells
        torch.empty(1, device=request["device"])  # opened while nobody waits
    while True:
        try:
            body, tensors = receive(read_fd)
        except EndOfStreamError:
            return
        try:
            answer, results = _answer(function, body, tensors, torch.device(request["device"]))
        except Exception as error:
            answer, results = {"refused": type(error).__name__, "message": str(error)[:500]}, []
        send(write_fd, answer, results)


def _function(request: dict[str, Any]) -> Any:
    sys.path.extend(p for p in request["path"] if p not in sys.path)
    install(request["autotune"])
    location = request["location"]
    if request["kind"] == "file":
        path = Path(location)
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{location} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(location)
    found: Any = module
    for part in request["function"].split("."):
        found = getattr(found, part)
    return found


def _answer(
    function: Any, body: dict[str, Any], tensors: list[torch.Tensor], device: torch.device
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    given = {name: tensors[place].to(device) for name, place in body["tensors"].items()}
    for name in body["wrt"]:
        given[name].requires_grad_()
    with torch.set_grad_enabled(bool(body["cotangents"])):
        returned = function(**body["constants"], **given)
    found = returned if isinstance(returned, tuple) else (returned,)
    named = {n: t for n, t in zip(("o", "state"), found, strict=False) if isinstance(t, torch.Tensor)}
    if not body["state"]:
        named.pop("state", None)
    results = {name: tensor.detach().cpu() for name, tensor in named.items()}
    roots = [n for n in body["cotangents"] if n in named and named[n].requires_grad]
    if roots:
        upstream = [tensors[body["cotangents"][n]].to(device, named[n].dtype) for n in roots]
        leaves = [given[n] for n in body["wrt"]]
        grads = torch.autograd.grad([named[n] for n in roots], leaves, upstream, allow_unused=True)
        results.update(_named(body["wrt"], grads))
    names = list(results)
    return {"results": names, "gradients": bool(roots)}, [results[n] for n in names]


def _named(names: list[str], grads: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
    return {f"d{n}": g.cpu() for n, g in zip(names, grads, strict=True) if g is not None}


if __name__ == "__main__":
    main()
