"""The runner: asks a target, in a process of its own, what it computes; a crash or a hang there is an answer here.

    with Runner(parse("kernels.py::gla"), device="cpu") as runner:
        function = runner.describe().functions[0]
        runner.bind(bind(operator, function), operator)
        results = runner.run(program, time_limit=60.0)

The target is imported once, in a host. Each runner process is forked from the host with nothing run in it, so a restart after a
fault costs a fork. A host that cannot be forked (the import opened the GPU or started threads) runs the calls itself.
"""

import contextlib
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from linverify import codec
from linverify.ahead import environment
from linverify.amid import DEVICE
from linverify.binding import Binding, Description
from linverify.errors import CannotCheckError, UsageError
from linverify.forkserver import OWN_ERROR, OWN_EXIT
from linverify.operator import Operator
from linverify.problem import Fault, Program, Refused, Result
from linverify.processes import Child, DeadlineError, EndedError, shared_server
from linverify.target import TargetSpec
from linverify.wire import WireError

_IMPORT_SECONDS = 600.0


class Runner:
    """One target on one device; not for use by several threads at once.

    Attributes:
        starts: processes that were started to run calls, the first included.
        phase_seconds: wall time by phase: start, import, calls.
        share: part of the GPU's memory that the next process may take; the others on the GPU have theirs.
    """

    def __init__(
        self,
        spec: TargetSpec,
        *,
        device: str,
        autotune: str = "pin",
        threads: int = 1,
        share: float = 1.0,
        env: Mapping[str, str] | None = None,
        travels: bool = False,
    ) -> None:
        """Nothing is started before it is needed.

        Args:
            spec: what to import.
            device: "cpu" or "cuda:0".
            autotune: pin, or native.
            threads: of the target's CPU operations.
            share: part of the GPU's memory that the target may take; 1 for all that is free.
            env: additional environment variables.
            travels: whether another device will be used: what that needs is imported while the first process works.
        """
        self._travels = travels
        self.starts, self.share = 0, share
        self.phase_seconds = {"start": 0.0, "import": 0.0, "calls": 0.0}
        self._spec = spec
        self._env = environment(device, env, preload_triton=spec.mentions_triton)
        self._request = {
            "kind": spec.kind,
            "location": spec.location,
            "function": spec.function,
            "device": device,
            "autotune": autotune,
            "threads": threads,
            # A module target is looked up as the session would look it up, the current folder last.
            "path": [p for p in dict.fromkeys([*sys.path, os.getcwd()]) if p],  # noqa: PTH109  # text, as in sys.path
        }
        self._starting: Child | None = None
        self._host: Child | None = None
        self._prepared: Child | None = None
        self._forks = False
        self._worker: Child | None = None
        self._description: Description | None = None
        self._assignment: dict[str, Any] | None = None

    def begin(self) -> None:
        """Have the target imported while the caller does something else; `describe` waits for it.

        Raises:
            CannotCheckError: the worker does not start.
        """
        if self._host is None and self._starting is None:
            self._starting = self._spawn_host()

    def describe(self) -> Description:
        """Import the target (once) and say what is in it.

        Raises:
            UsageError: no such function, nothing declared, a syntax error.
            CannotCheckError: the worker does not start, or the import raises, crashes or does not end.
        """
        if self._description is None:
            self._import()
        assert self._description is not None
        return self._description

    def bind(self, binding: Binding, operator: Operator) -> None:
        """Say which function is called from now on, and how."""
        self._assignment = {
            "function": binding.function,
            "names": dict(binding.names),
            "settings": dict(binding.settings),
            "state_value_first": binding.state_value_first,
            "claims": dict(binding.claims),
            "axes": {i.name: "".join(i.axes) for i in operator.inputs},
            "kinds": {i.name: i.kind for i in operator.inputs},
            "readers": list(operator.readers),
            "value": operator.value_name,
            "state_axes": "".join(operator.state_axes),
            "o_axes": "".join(operator.o_axes),
            "unseen": operator.unseen,
        }
        if self._worker is not None:
            self._assign(self._worker)

    def stand_by(self) -> None:
        """Have a process ready for the first call: it opens its device while the caller draws cases.

        Raises:
            CannotCheckError: the worker does not start, or the import raises, crashes or does not end.
        """
        self._ready()

    def run(self, program: Program, *, time_limit: float, patience: float | None = None) -> tuple[Result, ...]:
        """Run a program; one result per call, and one more for a reread.

        Args:
            program: what to run; its tensors are on the CPU.
            time_limit: seconds for the whole program, the transfer included.
            patience: seconds that a GPU may take for what has been launched, where a compiler has part in the limit.

        Raises:
            Refused: the target raised an exception and lives on.
            Fault: it crashed, ended or hung; the next run starts afresh.
            CannotCheckError: the worker itself could not be started.
        """
        self._foresee(program)
        worker = self._ready()
        started = time.monotonic()
        limit = started + time_limit
        worker.take_log()
        try:
            question, sent = codec.pack_program(program)
            # A number that nobody can know beforehand: an answer written before the question is none.
            ticket = secrets.token_hex(8)
            asked = {**question, "ticket": ticket, "tell": patience is not None}
            worker.send(asked, sent, deadline=limit)
            body, tensors = worker.receive(deadline=limit)
            while patience is not None and "waiting" in body:
                launched = body["waiting"] is True
                limit = min(started + time_limit, time.monotonic() + patience if launched else math.inf)
                body, tensors = worker.receive(deadline=limit)
            if body.get("ticket", ticket) != ticket or ("ticket" not in body and "error" not in body):
                raise WireError("an answer that belongs to no question")
            if "results" in body:
                return codec.unpack_results(body, tensors)
        except DeadlineError:
            raise self._fault("hang", f"no answer after {limit - started:.0f} s") from None
        except EndedError as ended:
            raise self._ended(ended.status) from None
        except WireError as error:
            raise self._fault("crash", f"the target broke into the worker's pipes: {error}") from None
        except BaseException:
            self._stop_worker()  # an interrupt: whatever still runs must not answer the next question
            raise
        finally:
            self.phase_seconds["calls"] += time.monotonic() - started
        if "refused" in body:
            raise Refused(str(body["refused"]), str(body.get("message", "")))
        if "fault" in body:
            raise self._fault(str(body["fault"]), str(body.get("message", "")))
        self._stop_worker()
        raise CannotCheckError(str(body.get("error", "the worker answered nothing that can be understood")))

    def interrupt(self) -> None:
        """Kill the process of a run that another thread waits for; that run raises a Fault. Nothing else is touched."""
        worker = self._worker
        if worker is not None and worker.pid:
            for ending in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    ending(worker.pid, signal.SIGKILL)

    def restart(self) -> None:
        """Have the next program run in a process that has run nothing."""
        self._stop_worker()

    def close(self) -> None:
        """End every process of this runner; idempotent."""
        self._stop_worker()
        for host in (self._host, self._starting):
            if host is not None:
                host.close()
        self._host = self._starting = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _import(self) -> None:
        """Start a host and have it import the target."""
        host, self._starting = self._starting or self._spawn_host(), None
        started = time.monotonic()
        label = self._spec.label
        try:
            body, _ = host.receive(deadline=started + _IMPORT_SECONDS)
            if "error" in body:
                kind = UsageError if body.get("exit_code") == 2 else CannotCheckError
                raise kind(str(body["error"]))
            self._description = Description.from_json(body["description"])
        except DeadlineError:
            host.close()
            raise CannotCheckError(f"importing {label} did not end within {_IMPORT_SECONDS:.0f} s") from None
        except EndedError as ended:
            log = host.take_log().strip().splitlines()
            host.close()
            last = f"; last line of its log: {log[-1]}" if log else ""
            raise CannotCheckError(f"importing {label} ended the worker: {_meaning(ended.status)[1]}{last}") from None
        except (KeyError, TypeError, WireError) as error:
            host.close()
            raise CannotCheckError(f"importing {label} garbled the worker's answer: {error}") from None
        except BaseException:
            host.close()
            raise
        self.phase_seconds["import"] += time.monotonic() - started
        self._host, self._forks = host, body.get("forks") is True

    def _spawn_host(self) -> Child:
        started = time.monotonic()
        try:
            return Child(shared_server(self._env).control, self._request, with_control=True)
        except OSError:
            # The server ended between two requests (the system ran out of memory, say): one fresh start.
            return Child(shared_server(self._env).control, self._request, with_control=True)
        finally:
            self.phase_seconds["start"] += time.monotonic() - started

    def _foresee(self, program: Program) -> None:
        if any(call.amid == DEVICE for call in program.calls):
            self._prepare()

    def _prepare(self) -> None:
        """Have later processes find imported what torch imports for tensors without numbers, a CPU's other device."""
        host, known = self._host, self._prepared
        if self._request["device"] == "cpu" and host is not None and host.control is not None and host is not known:
            self._prepared = host
            with contextlib.suppress(OSError):  # it is gone, which its next child finds
                host.control.send(b"{}")

    def _ready(self) -> Child:
        """Return a process that has imported the target and knows what to call."""
        if self._assignment is None:
            raise UsageError("nothing is bound yet; call bind before run")
        if self._worker is None:
            if self._host is None:
                self._import()
            assert self._host is not None
            if self._forks and self._host.control is not None:
                try:
                    self._worker = Child(self._host.control, {})
                except OSError:
                    self._host.close()
                    self._import()
                    return self._ready()
                if self._travels:
                    self._prepare()
            else:
                self._worker, self._host = self._host, None
            self.starts += 1
            self._assign(self._worker)
        return self._worker

    def _assign(self, worker: Child) -> None:
        try:
            worker.send(
                {"assign": self._assignment, "share": self.share}, [], deadline=time.monotonic() + _IMPORT_SECONDS
            )
        except (EndedError, WireError):
            return  # the next run meets the same end and reports it

    def _ended(self, status: int | None) -> Fault:
        """What the end of the worker's process means."""
        fault = self._fault(*_meaning(status))
        own = [line for line in fault.log.splitlines() if line.startswith(OWN_ERROR)]
        if status is not None and os.WIFEXITED(status) and os.waitstatus_to_exitcode(status) == OWN_EXIT:
            what = own[-1].removeprefix(OWN_ERROR) if own else "its files were closed"
            return Fault("crash", f"the target left the worker unable to answer: {what}", fault.log)
        return fault

    def _fault(self, kind: str, message: str) -> Fault:
        worker = self._worker
        if worker is not None:
            worker.kill()
        fault = Fault(kind, message, "" if worker is None else worker.take_log())
        self._stop_worker()
        return fault

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _meaning(status: int | None) -> tuple[str, str]:
    """Fault kind and message of a wait status."""
    if status is None:
        return "crash", "the worker was lost together with its server"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        what = signal.strsignal(number) or "unknown"
        hint = "; the system's out-of-memory killer does that" if number == signal.SIGKILL else ""
        return "crash", f"killed by {name} ({what.lower()}){hint}"
    return "exit", f"the process ended with exit code {os.waitstatus_to_exitcode(status)}"
