"""The worker: the process that imports the target and runs it, so that nothing the target does can reach the session.

``python -P -m linverify.worker FD`` starts a fork server that has imported torch and greets on that control socket.
It forks a *host* per target, which imports the target and describes it. A host that is still a fresh process (one
thread, no GPU opened) is a fork server itself: each *runner* forked from it has the target imported and nothing run.
Otherwise the host runs the calls itself and a restart imports again.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from linverify import autotune, codec, poison, wire
from linverify.contract import Assignment
from linverify.describe import Functions, first_line, load
from linverify.errors import LinverifyError, UsageError
from linverify.fingerprint import fingerprint
from linverify.forkserver import cap_memory, cap_processes, forkable, serve
from linverify.invoke import run_program
from linverify.problem import Breach, Launched, Program
from linverify.room import Room, Shelf
from linverify.watch import Watch

_LOST_DEVICE = ("illegal memory access", "device-side assert", "misaligned address", "unspecified launch failure")
_NO_ROOM = ("DefaultCPUAllocator", "out of memory", "can't allocate memory", "std::bad_alloc", "start new thread")
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Share of a GPU's memory that a process alone on it can have; the rest is the driver's and torch's.
_ROOM = 0.95


def main() -> None:
    """Greet, then fork hosts until the control socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    poison.install()
    cap_processes()
    _preload("torch.fx.experimental.symbolic_shapes")  # torch's first backward imports it, for half a second
    if os.environ.get("LINVERIFY_PRELOAD") == "triton":
        _preload("triton")
    gc.collect()
    gc.freeze()  # what is imported by now lives as long as the process; no collection looks at it again
    control.send(json.dumps(fingerprint()).encode())
    serve(control, _host)


def _preload(name: str) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)


def _preload_compiler() -> None:
    """What torch imports for the first tensor without numbers ("another device" of a CPU), for a second in every process.

    The import makes its compiler a folder for what it might compile: here it finds one that exists, and writes nothing to it.
    """
    given = os.environ.get(_COMPILED)
    os.environ[_COMPILED] = os.sep
    _preload("torch._dynamo")
    del os.environ[_COMPILED]
    if given is not None:
        os.environ[_COMPILED] = given


def _host(request: dict[str, Any], fds: list[int]) -> None:
    """Import the target, describe it, and run it or fork those who do."""
    control_fd, read_fd, write_fd, log_fd, room_fd = fds
    _redirect(log_fd)
    sys.path.extend(p for p in request["path"] if p not in sys.path)
    device = torch.device(request["device"])
    watch = Watch(request["location"])
    watch.install()
    try:
        if request["autotune"] not in autotune.MODES:
            known = " or ".join(autotune.MODES)
            raise UsageError(f"--autotune {request['autotune']} is not available; expected {known}")
        if device.type == "cuda" and not torch.cuda._is_compiled():
            raise UsageError(f"--device {device}: this torch was built without CUDA")
        autotune.install(request["autotune"])
        functions, description = load(request["kind"], request["location"], request["function"])
    except LinverifyError as error:
        wire.send(write_fd, {"error": str(error), "exit_code": error.exit_code})
        return
    shared = forkable()
    wire.send(write_fd, {"description": description.to_json(), "forks": shared})
    if not shared:
        os.close(control_fd)
        _serve_calls(functions, request, watch, (read_fd, write_fd, room_fd))
        return
    for fd in (read_fd, write_fd, room_fd):
        os.close(fd)

    def run(_: dict[str, Any], given: list[int]) -> None:
        read_fd, write_fd, log_fd, room_fd = given
        _redirect(log_fd)
        _serve_calls(functions, request, watch, (read_fd, write_fd, room_fd))

    serve(socket.socket(fileno=control_fd), run, _preload_compiler)


def _redirect(log_fd: int) -> None:
    # Whatever the target prints is log; the messages have descriptors of their own.
    for standard in (1, 2):
        os.dup2(log_fd, standard)
    os.close(log_fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    faulthandler.enable(file=2)


def _serve_calls(functions: Functions, request: dict[str, Any], watch: Watch, fds: tuple[int, int, int]) -> None:
    """Answer programs until the pipe is closed."""
    read_fd, write_fd, room_fd = fds
    device = torch.device(request["device"])
    torch.set_num_threads(request["threads"])
    if device.type == "cpu":
        cap_memory()
        poison.perturb_heap()
    else:
        try:
            torch.cuda.set_device(device)
        except (RuntimeError, AssertionError) as error:
            wire.send(write_fd, {"error": f"--device {device}: {first_line(error)}", "exit_code": 3})
            return
    assignment: Assignment | None = None
    share, room = 1.0, Room.over(room_fd)
    asked, answered = (None, None) if room is None else (room.question, room.answer)
    while True:
        try:
            body, tensors = wire.receive(read_fd, shelf=asked, copied=False)
        except wire.EndOfStreamError:
            return
        if "assign" in body:
            assignment = Assignment(**body["assign"])
            if device.type == "cuda":
                share = body["share"]
                torch.cuda.set_per_process_memory_fraction(share, device)
            continue
        if assignment is None:
            raise RuntimeError("a program came before the binding")
        function = functions[assignment.function]
        program = codec.unpack_program(body["run"], tensors)

        def waiting(begins: bool) -> None:
            wire.send(write_fd, {"waiting": begins})

        if answered is not None:
            answered.clear()
        with _all_memory(program, share, device):
            told = waiting if body.get("tell") else lambda _: None
            answer = _answer(function, assignment, program, device, watch, told, answered)
        content, results = answer
        wire.send(write_fd, {**content, "ticket": body.get("ticket")}, results, shelf=answered)
        del tensors, program, answer, results  # while the session reads


@contextlib.contextmanager
def _all_memory(program: Program, share: float, device: torch.device) -> Iterator[None]:
    """All memory that is free, while inputs reach gigabytes away: no share of a GPU is meant for them."""
    far = share < 1.0 and any(call.layout.startswith("distant") for call in program.calls)
    if far:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    try:
        yield
    finally:
        if far:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(share, device)


def _answer(
    function: Callable[..., Any],
    assignment: Assignment,
    program: Program,
    device: torch.device,
    watch: Watch,
    waiting: Callable[[bool], None],
    shelf: Shelf | None,
) -> Any:
    autotune.force(program.place, program.only)
    try:
        results = run_program(function, assignment, program, device, waiting, shelf)
        kernels = tuple(Launched(*kernel) for kernel in autotune.launched())
        results = tuple(replace(r, launched=kernels) for r in results) if kernels else results
        seen = tuple(Breach("interference", sentence) for sentence in watch.findings())
        return codec.pack_results(
            tuple(replace(r, breaches=(*r.breaches, *seen)) for r in results) if seen else results
        )
    except Exception as error:
        return {**_judge(error, device)}, []
    except BaseException as error:  # SystemExit, KeyboardInterrupt: the target tried to end the process
        code = f" with {error.code!r}" if isinstance(error, SystemExit) else ""
        return {"fault": "exit", "message": f"the target raised {type(error).__name__}{code}"}, []


def _judge(error: Exception, device: torch.device) -> dict[str, str]:
    """Tell a refusal from a fault that Python merely survived."""
    said = _all_lines(error)
    text = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(mark in said for mark in _NO_ROOM)
    ):
        taken = _taken(said, device)
        return (
            {"refused": type(error).__name__, "message": taken}
            if taken
            else {"fault": "out_of_memory", "message": text}
        )
    if any(mark in said for mark in _LOST_DEVICE) or not _usable(device):
        return {"fault": "crash", "message": text}
    return {"refused": type(error).__name__, "message": first_line(error)}


def _taken(said: str, device: torch.device) -> str:
    """Where a GPU alone would have had room for what was asked, and other processes have taken it, a sentence; else ""."""
    wanted = re.search(r"Tried to allocate ([\d.]+) ([KMG]iB)", said)
    if device.type != "cuda" or wanted is None:
        return ""
    size = float(wanted[1]) * _UNITS[wanted[2]]
    free, total = torch.cuda.mem_get_info(device)
    mine = torch.cuda.memory_reserved(device)
    if size <= free or mine + size > _ROOM * total:
        return ""
    held, asked, left, own = (f"{n / _UNITS['GiB']:.1f}" for n in (total - free - mine, size, free, mine))
    return (
        f"other processes hold {held} GiB of the GPU's memory: {asked} GiB were asked for, {left} GiB free ({own} held)"
    )


def _all_lines(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # the target's own __str__ may fail
        return ""


def _usable(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
    except Exception:  # an error of an earlier kernel stays with the context and comes back from every call
        return False
    return True


if __name__ == "__main__":
    main()
