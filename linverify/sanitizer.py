"""NVIDIA's compute-sanitizer: a target's kernels run under it, and its log becomes findings with kernel and source line.

The tool sees every access of every kernel, which no guard band does, but only in memory that CUDA itself allocated: inside the
blocks of torch's caching allocator it is blind, so caching is switched off. Log format: Compute Sanitizer user manual,
docs.nvidia.com/compute-sanitizer/ComputeSanitizer, "Understanding Memcheck Errors" and the sections of the other tools.
"""

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from linverify.bystander import Bystander, Subject
from linverify.errors import CannotCheckError
from linverify.problem import Fault, Problem

TOOLS = {"memcheck": "out_of_bounds", "racecheck": "race", "initcheck": "uninitialised"}
SECONDS = 1800.0  # for one problem: the tools slow a kernel down ten to a hundred times, and it is compiled anew
_NAME = "compute-sanitizer"
_PREFIX = "========="
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")
# A report begins with one of these words; what follows belongs to it.
_HEAD = re.compile(
    r"^(?:(?:ERROR|WARN(?:ING)?|INFO|Error|Warning): )?"
    r"(Invalid|Uninitialized|Race reported|Barrier error|Potential|Unused|Leaked|Program hit|Memory access|Malloc|Free)"
)
_IGNORED = ("Unused", "Leaked")
_SUMMARY = re.compile(r"^(?:ERROR|RACECHECK|INITCHECK) SUMMARY: (\d+) (?:error|hazard)")
_LEVEL = re.compile(r"^(?:ERROR|WARN(?:ING)?|INFO|Error|Warning): ")
_OFFSET_LAST = re.compile(r"^(?P<kernel>.+?)[+:]0x[0-9a-f]+(?: in (?P<file>.+?):(?P<line>\d+))?(?= |$)")
_OFFSET_FIRST = re.compile(r"^0x[0-9a-f]+ in (?:(?P<file>[^()]*?):(?P<line>\d+):)?(?P<kernel>\S.*)$")
_HAZARDS = re.compile(r" ?\[\d+ hazards?\]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the tool reported, however often.

    Attributes:
        what: its first line, "Invalid __global__ write of size 4 bytes".
        kernel: name of the CUDA kernel; "" where the tool does not say.
        where: "file:line", or "" where the kernel has no line information.
        count: how often it was printed.
    """

    what: str
    kernel: str = ""
    where: str = ""
    count: int = 1

    @property
    def sentence(self) -> str:
        """For a report."""
        place = f" in {self.kernel}" if self.kernel else ""
        place += f" at {self.where}" if self.where else ""
        return f"{self.what}{place}" + (f", {self.count} times" if self.count > 1 else "")


def find() -> str:
    """Return the path of the tool.

    Raises:
        CannotCheckError: it is not installed.
    """
    folders = [
        os.environ.get("PATH", ""),
        *(f"{os.environ[v]}/bin" for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ),
    ]
    package = importlib.util.find_spec("nvidia")
    for root in package.submodule_search_locations or () if package else ():
        folders += [str(p.parent) for p in Path(root).glob(f"*/bin/{_NAME}")]
    path = shutil.which(_NAME, path=os.pathsep.join([*folders, *_FOLDERS]))
    if path is None:
        raise CannotCheckError(
            f"--sanitizer: {_NAME} is not installed; it comes with the CUDA toolkit, put it on the PATH"
        )
    return path


def parse(log: str) -> tuple[Finding, ...]:
    """Return what a log reports; equal findings once, in order of appearance.

    Raises:
        ValueError: the log has no summary at its end, so the tool did not finish.
    """
    found: dict[tuple[str, str, str], int] = {}
    lines = [line.removeprefix(_PREFIX).strip() for line in log.splitlines() if line.startswith(_PREFIX)]
    if not any(_SUMMARY.match(line) for line in lines):
        raise ValueError(f"its log has no summary; the last line is {lines[-1] if lines else 'missing'!r}")
    for position, line in enumerate(lines):
        if (head := _HEAD.match(line)) and head[1] not in _IGNORED:
            following = next((x for x in lines[position + 1 : position + 2] if x), "")
            key = _read(_LEVEL.sub("", line), following)
            found[key] = found.get(key, 0) + 1
    total = sum(int(m[1]) for line in lines if (m := _SUMMARY.match(line)))
    if total and not found:
        found["errors of a kind that is not understood here; the log says more", "", ""] = total
    return tuple(Finding(*key, count) for key, count in found.items())


def _read(line: str, following: str) -> tuple[str, str, str]:
    """What, kernel and place of a report: the place follows "at", on the same line or on the next one."""
    what, at, place = line.partition(" at ")
    if what.endswith(" access") or line.endswith(" at"):
        what = f"{what.removesuffix(' at')}"
        place = place if at else following
    elif following.startswith("at "):
        what, place = line, following.removeprefix("at ")
    else:
        what, place = line, ""
    place = _HAZARDS.sub("", place.removeprefix("at ")).partition(" and ")[0]
    match = _OFFSET_FIRST.match(place) or _OFFSET_LAST.match(place)
    if match is None:
        return what, place.partition(" in ")[0], ""
    file, number = match["file"], match["line"]
    return what, match["kernel"].strip(), f"{file}:{number}" if file and number else ""


def ready(subject: Subject) -> Callable[[Problem, str], tuple[Finding, ...]]:
    """Return what runs a problem under a tool.

    Raises:
        CannotCheckError: there is no such tool, or no device for it.
    """
    if not subject.device.startswith("cuda"):
        raise CannotCheckError("--sanitizer looks at CUDA kernels: expected a CUDA device, this check runs on the CPU")
    find()

    def ask(problem: Problem, tool: str) -> tuple[Finding, ...]:
        return sanitize(subject, problem, tool=tool, time_limit=SECONDS)

    return ask


def sanitize(subject: Subject, problem: Problem, *, tool: str, time_limit: float) -> tuple[Finding, ...]:
    """Run one problem under a tool, in a process of its own.

    Raises:
        Refused: the target raised an exception.
        Fault: it did not survive, or the tool did not finish.
        CannotCheckError: the tool is not installed.
    """
    program = find()
    with tempfile.TemporaryDirectory(prefix="linverify-") as folder:
        log = Path(folder) / "log.txt"
        words: Sequence[str] = (program, "--tool", tool, "--log-file", str(log), "--target-processes", "all")
        process = Bystander(subject, before=words, extra={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        try:
            process.ask(problem, time_limit=time_limit)
        finally:
            process.close(patience=time_limit)
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    try:
        return parse(text)
    except ValueError as error:
        raise Fault("crash", f"{_NAME} --tool {tool} did not finish: {error}", text[-4000:]) from None
