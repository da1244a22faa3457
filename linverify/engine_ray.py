"""The engine "ray": examiners as actors of a Ray cluster, on as many machines as it has.

A session deals the laws of a target to them as it deals them to processes of its own (``linverify.team``); here is only how one
is started and spoken to. The cluster is the one that RAY_ADDRESS names or this machine is part of, else one of this machine.
Where it has GPUs, every examiner gets its part of one. The kernel's file and linverify must lie at the same place on every
machine. What makes a case fail is kept for all: examples that Hypothesis found for one law are tried first for the next.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self

import torch

from linverify.errors import CannotCheckError
from linverify.examiner import Examiner
from linverify.examples import Examples, SharedExamples
from linverify.fingerprint import fingerprint
from linverify.gpus import share

_START_SECONDS = 300.0


def _ray() -> Any:
    """Import Ray.

    Raises:
        CannotCheckError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise CannotCheckError("--engine ray needs Ray, which is not installed: pip install 'linverify[ray]'") from None
    return ray


class Cluster:
    """A Ray cluster for the time of a session; use as a context manager.

    Attributes:
        devices: one a worker, as the worker sees it: Ray shows each only the GPU that it gave it.
        shares: part of its GPU's memory that each worker's target may take.
    """

    def __init__(self, workers: int, device: str) -> None:
        """Connect, or start a cluster of this machine.

        Raises:
            CannotCheckError: Ray is not installed, or no cluster answers.
        """
        self._ray = ray = _ray()
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
            except Exception as error:
                raise CannotCheckError(f"no Ray cluster answers: {type(error).__name__}: {error}") from error
        there = ray.cluster_resources()
        gpu = device.startswith("cuda")
        if gpu and not there.get("GPU"):
            self.close()
            raise CannotCheckError(f"--device {device}: the Ray cluster has no GPU; add a machine with one, or use cpu")
        if not gpu and workers > there.get("CPU", 0):
            count = int(there.get("CPU", 0))
            self.close()
            raise CannotCheckError(
                f"-n {workers}: the Ray cluster has {count} CPUs; ask for fewer workers or add machines"
            )
        self._options: dict[str, float] = {"num_cpus": 0 if gpu else 1}
        self.devices = ("cuda:0" if gpu else "cpu",) * workers
        self.shares = (1.0,) * workers
        if gpu:
            beside = -(-workers // int(there["GPU"]))
            self._options["num_gpus"] = 1 / beside
            self.shares = (share(("cuda:0",) * beside, "cuda:0"),) * workers
        self._examples = ray.remote(num_cpus=0)(Examples).remote()

    def examiner(self) -> "RayExaminer":
        """Start one examiner; it greets when it is ready."""
        make = self._ray.remote(**self._options)(Actor)
        return RayExaminer(self._ray, make.remote(self._examples, [p for p in sys.path if p], os.getcwd()))  # noqa: PTH109

    def close(self) -> None:
        """Leave the cluster; one that was started for this session ends."""
        if self._ours:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Actor:
    """An examiner on some machine of the cluster."""

    def __init__(self, examples: Any, path: Sequence[str], folder: str) -> None:
        """Make the examiner.

        Args:
            examples: actor that keeps what failed.
            path: the session's search path.
            folder: where relative paths of targets begin.
        """
        import ray

        sys.path += [p for p in path if p not in sys.path]
        os.chdir(folder)
        torch.set_num_threads(1)  # as every session judges
        self._said: SimpleQueue[tuple[object, ...]] = SimpleQueue()
        self._asked: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        shared = SharedExamples(lambda name, *arguments: ray.get(getattr(examples, name).remote(*arguments)))
        self._examiner = Examiner(self._said.put, shared)
        Thread(
            target=self._serve, daemon=True
        ).start()  # one for all questions: processes end with the thread that began them

    def greeting(self) -> dict[str, str]:
        """Path, version and hash of linverify there."""
        return fingerprint()

    def answer(self, question: tuple[Any, ...]) -> Iterator[tuple[object, ...]]:
        """Yield what the examiner says, the answer last."""
        self._asked.put(question)
        while True:
            message = self._said.get()
            yield message
            if message[0] in ("answer", "failed"):
                return

    def _serve(self) -> None:
        while True:
            name, *arguments = self._asked.get()
            self._said.put(self._examiner.answered(name, arguments))


class RayExaminer:
    """One examiner, seen from the session; what it says arrives on a connection, as from a process."""

    def __init__(self, ray: Any, actor: Any) -> None:
        """Take the examiner's greeting to the connection."""
        self._ray, self._actor = ray, actor
        self.connection, self._theirs = Pipe(duplex=False)
        Thread(target=self._greet, daemon=True).start()

    def ask(self, *question: object) -> None:
        """Put a question; the answer comes on the connection."""
        Thread(target=self._pump, args=(question,), daemon=True).start()

    def _greet(self) -> None:
        with self._told():
            theirs = self._ray.get(self._actor.greeting.remote(), timeout=_START_SECONDS)
            ours = fingerprint()  # it may lie elsewhere there, as long as it is the same
            self._theirs.send(("answer", {**theirs, "path": ours["path"]}))

    def _pump(self, question: tuple[object, ...]) -> None:
        with self._told():
            for message in self._actor.answer.options(num_returns="streaming").remote(question):
                self._theirs.send(self._ray.get(message))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """An actor that is gone is told as an answer, so that nobody waits for it."""
        try:
            yield
        except (BrokenPipeError, OSError):
            return  # nobody listens any more
        except Exception as error:
            text = f"a Ray worker ended: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            with contextlib.suppress(OSError):
                self._theirs.send(("failed", "CannotCheckError", text))

    def receive(self) -> tuple[Any, ...]:
        """Return the next message.

        Raises:
            CannotCheckError: the worker is gone, or could not do what was asked.
            LinverifyError: what the examiner raised.
        """
        from linverify.team import message_of

        return message_of(self.connection.recv())

    def kill(self) -> None:
        """Have the actor and what it started end; idempotent."""
        self._ray.kill(self._actor)

    def close(self) -> None:
        """End them, and forget what they still say; idempotent."""
        self.kill()
        self.connection.close()
