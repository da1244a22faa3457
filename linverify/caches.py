"""Compile caches: the target in new processes, the first of which finds nothing compiled and the next what that one left.

WHY. What a compiler keeps on disk outlives every process that a test starts. A key that leaves something out (a constant, a
dtype) hands the next process a kernel made for another question; and what runs while nothing is compiled yet, an autotuner that
tries configurations on live buffers say, runs once and is never tested again.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from linverify.bystander import Bystander, Subject
from linverify.problem import Problem, Refused, Result

# Where Triton, torch.compile and CUDA's own compiler keep what they make, and torch the extensions that it builds.
VARIABLES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "TORCH_EXTENSIONS_DIR")


class Caches:
    """Plain processes of one target, and folders for what their compilers keep."""

    def __init__(self, subject: Subject) -> None:
        """Nothing is started before it is asked for."""
        self._subject = subject

    def ask(self, problems: Sequence[Problem], *, time_limit: float) -> Iterator[Result | Refused]:
        """Ask the problems in order, each in a process of its own; the first finds nothing compiled.

        Args:
            problems: what is asked.
            time_limit: seconds for each, compilation included.

        Raises:
            Fault: the target crashed, ended or hung.
        """
        folder = Path(tempfile.mkdtemp(prefix="compiled-"))
        extra = {name: str(folder / name.lower()) for name in VARIABLES}
        try:
            for place in extra.values():
                Path(place).mkdir()
            for problem in problems:
                process = Bystander(self._subject, extra=extra)
                try:
                    yield process.ask(problem, time_limit=time_limit)
                except Refused as refusal:
                    yield refusal
                finally:
                    process.close(patience=0.0)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
