"""What an entry of the zoo says: a correct kernel, a small difference from it, and for a bug the real one that it re-enacts."""

import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

KERNELS = Path(__file__).with_name("kernels")
SHARED = ("pack.py",)
FLA = "fla-org/flash-linear-attention"


class Kind(StrEnum):
    """What sort of mistake a bug is."""

    BOUNDARY = "masks and tails"
    CAUSALITY = "causality"
    RANGE = "overflow of exponentials"
    PRECISION = "precision of intermediates"
    GATES = "placement and sums of gates"
    SCALE = "scale"
    LAYOUT = "layout and head mapping"
    STRIDES = "strides taken for granted"
    WIDTH = "width of offsets"
    PACKING = "packed sequences"
    STATE = "states in and out"
    GRADIENT = "terms of gradients"
    SPLIT = "split sums and races"
    UNWRITTEN = "memory that nobody wrote"
    STALE = "what an earlier call left"
    INPUTS = "inputs changed"
    BRANCH = "a rare branch"
    MATHS = "another recurrence"


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel that differs from a correct one.

    Attributes:
        name: its own among all entries.
        kernel: stem of the file of the correct kernel.
        function: which function of that file.
        operator: that it claims to compute.
        what: the difference, in a sentence.
        edits: (old, new) texts; each old stands in the file exactly once.
    """

    name: str
    kernel: str
    function: str
    operator: str
    what: str
    edits: tuple[tuple[str, str], ...]

    @property
    def triton(self) -> bool:
        """Whether it is a Triton kernel."""
        return self.kernel.startswith("triton_")

    def text(self) -> str:
        """The kernel file with the difference.

        Raises:
            ValueError: an old text does not stand in the file exactly once.
        """
        text = (KERNELS / f"{self.kernel}.py").read_text(encoding="utf-8")
        for old, new in self.edits:
            if (n := text.count(old)) != 1:
                raise ValueError(f"{self.name}: expected {old!r} once in {self.kernel}.py, found it {n} times")
            text = text.replace(old, new)
        return text

    def write(self, folder: Path) -> Path:
        """Write the kernel file, and those that it imports, into `folder`; return its path."""
        for name in SHARED:
            shutil.copyfile(KERNELS / name, folder / name)
        path = folder / f"{self.name}.py"
        path.write_text(self.text(), encoding="utf-8")
        return path


@dataclass(frozen=True, slots=True)
class Bug(Entry):
    """A kernel with a fault.

    Attributes:
        kind: what sort of mistake it is.
        source: address of the public thread or commit with the real bug.
        shows: results that come out wrong.
        law: the property that is there for it.
    """

    kind: Kind
    source: str
    shows: tuple[str, ...]
    law: str


@dataclass(frozen=True, slots=True)
class Correct(Entry):
    """A correct kernel that makes another choice than its twin; `what` says why that is legitimate.

    Attributes:
        dtypes: formats it is asked in.
        claims: what it is held to beside.
    """

    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    claims: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """Entries that share a correct kernel: writes its name into them.

    Attributes:
        kernel: stem of the file.
        function, operator: of entries that name no other.
    """

    kernel: str
    function: str
    operator: str = ""

    def bug(
        self,
        name: str,
        kind: Kind,
        source: str,
        shows: str,
        law: str,
        what: str,
        *edits: str,
        function: str = "",
        operator: str = "",
    ) -> Bug:
        """A bug; `edits` are old and new texts in turn, `shows` is separated by spaces."""
        function, operator = self._names(function, operator)
        return Bug(
            *(name, self.kernel, function, operator, what, pairs(edits)),
            kind=kind,
            source=source,
            shows=tuple(shows.split()),
            law=law,
        )

    def correct(
        self,
        name: str,
        what: str,
        *edits: str,
        function: str = "",
        operator: str = "",
        dtypes: str = "fp32 bf16 fp16",
        **claims: str,
    ) -> Correct:
        """A correct kernel; `dtypes` is separated by spaces."""
        function, operator = self._names(function, operator)
        return Correct(
            *(name, self.kernel, function, operator, what, pairs(edits)),
            dtypes=tuple(dtypes.split()),
            claims=tuple(claims.items()),
        )

    def _names(self, function: str, operator: str) -> tuple[str, str]:
        return function or self.function, operator or function or self.operator or self.function


def pairs(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Old and new texts in turn as pairs."""
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def commit(name: str, repository: str = FLA) -> str:
    """The address of a commit."""
    return f"https://github.com/{repository}/commit/{name}"


def thread(number: int, repository: str = FLA) -> str:
    """The address of an issue or a pull request."""
    return f"https://github.com/{repository}/issues/{number}"
