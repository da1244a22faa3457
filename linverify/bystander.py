"""A plain process beside the worker, which holds nothing of the checker: what does the target answer when nobody seems to look?

WHY. A function can tell that it is being checked, by a module, an environment variable, a frame above it or poison in fresh
memory, and be careful only then. The same question asked in a process without any of these must get the same answer.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from linverify import wire
from linverify.ahead import environment
from linverify.binding import Binding
from linverify.contract import merged
from linverify.problem import Fault, Problem, Refused, Result
from linverify.processes import DeadlineError
from linverify.target import TargetSpec

_START_SECONDS = 600.0
_PARTS = ("room", "wire", "autotune", "bystander_body")


@dataclass(frozen=True, slots=True)
class Subject:
    """A function as another process must know it.

    Attributes:
        spec: what to import.
        binding: how it is called.
        axes: letters of each input's shape.
        device: "cpu" or "cuda:0".
        autotune: pin or native.
    """

    spec: TargetSpec
    binding: Binding
    axes: Mapping[str, str]
    device: str
    autotune: str


class Bystander:
    """One function in a plain process; not for use by several threads at once."""

    def __init__(self, subject: Subject, *, before: Sequence[str] = (), extra: Mapping[str, str] | None = None) -> None:
        """Start the process; it imports the target while others work.

        Args:
            subject: what is asked.
            before: words of a program that runs the process, a sanitizer for example.
            extra: additional environment variables.
        """
        self._before, self._extra = tuple(before), dict(extra or {})
        self._binding, self._axes, self._device = subject.binding, subject.axes, subject.device
        self._request = {
            "kind": subject.spec.kind,
            "location": subject.spec.location,
            "function": subject.binding.function,
            "device": subject.device,
            "autotune": subject.autotune,
            "path": [p for p in dict.fromkeys([*sys.path, os.getcwd()]) if p],  # noqa: PTH109  # text, as in sys.path
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._start()

    def ask(self, problem: Problem, *, time_limit: float) -> Result:
        """Ask one problem in contiguous tensors.

        Raises:
            Refused: the target raised an exception.
            Fault: it crashed, ended or hung; the next question starts afresh.
        """
        if self._process is None:
            self._start()
        try:
            if not self._ready:
                body, _ = self._receive(_START_SECONDS)
                self._raise_refusal(body)
                self._ready = True
            wire.send(self._write, *self._question(problem))
            body, tensors = self._receive(time_limit)
        except DeadlineError:
            self.close()
            raise Fault("hang", f"no answer within {time_limit:.3g} s in a plain process") from None
        except (wire.EndOfStreamError, BrokenPipeError):
            status = self.close()
            raise Fault("crash", f"a plain process that runs it ended with status {status}") from None
        except wire.WireError as error:
            self.close()
            raise Fault("crash", f"a plain process that runs it garbled its answer: {error}") from None
        self._raise_refusal(body)
        return self._result(problem, body, tensors)

    def close(self, *, patience: float = 1.0) -> int | None:
        """End the process and everything in its group and return its status; idempotent.

        Args:
            patience: seconds to let it end by itself.
        """
        if self._process is None:
            return None
        os.close(self._write)
        process, self._process = self._process, None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(self._read)
        return process.returncode

    def _start(self) -> None:
        their_read, self._write = os.pipe2(os.O_CLOEXEC)
        self._read, their_write = os.pipe2(os.O_CLOEXEC)
        parent = 0 if self._before else os.getpid()
        command = [*self._before, sys.executable, "-P", "-", str(their_read), str(their_write), str(parent)]
        try:
            self._process = subprocess.Popen(
                command,
                env={**_plain(environment(self._device, None, preload_triton=False)), **self._extra},
                pass_fds=[their_read, their_write],
                stdin=subprocess.PIPE,  # the script: a command line could be read
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(their_read)
            os.close(their_write)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as script:
            script.write(_script().encode())
        self._ready = False
        wire.send(self._write, self._request)

    def _receive(self, seconds: float) -> tuple[dict[str, Any], list[torch.Tensor]]:
        deadline = time.monotonic() + seconds
        poller = select.poll()
        poller.register(self._read, select.POLLIN)

        def wait() -> None:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise DeadlineError

        return wire.receive(self._read, wait=wait)

    def _raise_refusal(self, body: Mapping[str, Any]) -> None:
        if "refused" in body:
            if not self._ready:
                self.close()
            raise Refused(str(body["refused"]), str(body.get("message", "")).partition("\n")[0])

    def _question(self, problem: Problem) -> tuple[dict[str, Any], list[torch.Tensor]]:
        names, state = self._binding.names, problem.initial_state
        tensors = {names[n]: merged(self._axes.get(n, ""), t) for n, t in problem.tensors.items()}
        if state is not None:
            tensors[names["initial_state"]] = self._outward(state)
        if problem.lengths:
            tensors[names["cu_seqlens"]] = torch.tensor([0, *problem.lengths], dtype=torch.int64).cumsum(0)
        cotangents = {n: self._outward(t) if n == "state" else t for n, t in problem.cotangents.items()}
        constants: dict[str, Any] = dict(self._binding.settings)
        if "output_final_state" in names:
            constants[names["output_final_state"]] = problem.final_state
        if problem.scale is not None:
            constants[names["scale"]] = problem.scale
        body = {
            "tensors": {name: place for place, name in enumerate(tensors)},
            "cotangents": {name: len(tensors) + place for place, name in enumerate(cotangents)},
            "wrt": [names[n] for n in problem.wrt],
            "state": problem.final_state,
            "constants": constants,
        }
        return body, [*tensors.values(), *cotangents.values()]

    def _result(self, problem: Problem, body: Mapping[str, Any], tensors: list[torch.Tensor]) -> Result:
        found = dict(zip(body["results"], tensors, strict=True))
        state = found.get("state")
        grads = {n: found[f"d{self._binding.names[n]}"] for n in problem.wrt if f"d{self._binding.names[n]}" in found}
        for name, whole in problem.tensors.items():
            if name in grads and grads[name].shape == merged(self._axes.get(name, ""), whole).shape:
                grads[name] = grads[name].reshape(whole.shape)
        if "initial_state" in grads:
            grads["initial_state"] = self._outward(grads["initial_state"])
        offers = bool(body["gradients"]) or not problem.cotangents
        return Result(found.get("o"), None if state is None else self._outward(state), grads, offers)

    def _outward(self, state: torch.Tensor) -> torch.Tensor:
        value_first = self._binding.state_value_first and state.dim() >= 2
        return state.transpose(-1, -2).contiguous() if value_first else state


def _script() -> str:
    folder = Path(__file__).resolve().parent
    lines = [line for part in _PARTS for line in (folder / f"{part}.py").read_text(encoding="utf-8").splitlines()]
    kept = "\n".join(line for line in lines if not line.startswith("from linverify"))
    return kept.replace("linverify", "kernels")


def _plain(given: Mapping[str, str]) -> dict[str, str]:
    """The environment without a word of the checker, and with the paths that the user had."""
    found = {k: v for k, v in given.items() if not k.startswith("LINVERIFY") and k != "PYTHONPATH"}
    if "PYTHONPATH" in os.environ:
        found["PYTHONPATH"] = os.environ["PYTHONPATH"]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        found.pop(name, None)
        if name in os.environ:
            found[name] = os.environ[name]
    return found
