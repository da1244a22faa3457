"""A problem: the tensors and flags of one mathematical question, and a call: the same with everything about memory.

Only CPU tensors cross between the parent and the worker; the worker moves them to the device and lays them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Inputs and flags; what is asked is o, perhaps the final state, perhaps gradients.

    Attributes:
        tensors: operator inputs by canonical name, [B, T, H, .] or as the operator says, in the dtypes the target sees.
        initial_state: [N, H, K, V] float32 (float64 in fp64 cases), or None.
        lengths: lengths of packed sequences (B is 1, they sum to T); () for a dense batch.
        scale: factor on o; None: not passed, the default holds.
        final_state: whether the final state is asked for.
        cotangents: upstream gradients by result name ("o", "state"); {} asks for no gradient.
        wrt: inputs whose gradient is asked for ("initial_state" included); () where cotangents are empty.
        offsets: dtype of the offsets of packed sequences, int64 or int32.
    """

    tensors: Mapping[str, torch.Tensor]
    initial_state: torch.Tensor | None = None
    lengths: tuple[int, ...] = ()
    scale: float | None = None
    final_state: bool = False
    cotangents: Mapping[str, torch.Tensor] = field(default_factory=dict)
    wrt: tuple[str, ...] = ()
    offsets: str = "int64"

    def with_(self, **changes: object) -> "Problem":
        """Return a copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]  # field names are checked by replace

    def with_tensors(self, **changes: torch.Tensor) -> "Problem":
        """Return a copy with some input tensors replaced."""
        return replace(self, tensors={**self.tensors, **changes})


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One invocation of the target.

    Attributes:
        problem: what is asked.
        layout: memory layout of the inputs: contiguous, strided (a slice of a wider buffer), offset (storage offset not
            0), expanded (stride 0 over the batch or the heads; values are those of index 0 on that axis), distant.NAME (that
            input spans more than 2^31 elements).
        cotangent_layout: contiguous, strided or expanded.
        poison: bit pattern that fresh memory is filled with before the call: "nan" or "large".
        between: a problem whose forward pass runs after this one's, and before this one's backward pass.
        amid: what goes on around the call: "", "another stream" (on a CPU another thread), "load" (other work keeps the
            device busy), "another device" (the call is made there, its results are left there; none where there is no other).
    """

    problem: Problem
    layout: str = "contiguous"
    cotangent_layout: str = "contiguous"
    poison: str = "nan"
    between: Problem | None = None
    amid: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Calls made one after the other in one process.

    Attributes:
        calls: in order.
        in_place: every later call reuses the first call's tensor objects, overwritten in place (equal shapes and dtypes).
        reread: after the last call the first call's results are read again and returned as one more result.
        place: which of its configurations an autotuned kernel runs, or the first where it has fewer.
        only: kernels for which that holds, the others run their first; () for all.
    """

    calls: tuple[Call, ...]
    in_place: bool = False
    reread: bool = False
    place: int = 0
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Launched:
    """An autotuned kernel that a program launched.

    Attributes:
        kernel: module and name.
        configurations: that it may run here, in its own order, as text.
        ran: index of the one that ran; -1 where none did.
        unfit: indices of those that the device had no room for.
    """

    kernel: str
    configurations: tuple[str, ...]
    ran: int
    unfit: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Breach:
    """A broken contract that the worker saw.

    Attributes:
        kind: wrong_type, wrong_length, wrong_shape, wrong_dtype, wrong_device, missing_gradient, mutated_input,
            not_contiguous, out_of_bounds, aliased, late_write, kept_result, interference.
        message: what was expected and what came.
    """

    kind: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What one call gave back, on the CPU, in the target's own dtypes.

    Attributes:
        o: [B, T, H, V]; None where the contract was broken so far that there is none.
        state: [N, H, K, V] or None.
        grads: by input name; names in `wrt` that got no gradient are missing and breached.
        offers_gradients: False where o came without a grad_fn although inputs required gradients.
        breaches: broken contracts, in order of discovery.
        seconds: wall time by phase: forward, backward.
        launched: autotuned kernels that the whole program launched.
    """

    o: torch.Tensor | None
    state: torch.Tensor | None = None
    grads: Mapping[str, torch.Tensor] = field(default_factory=dict)
    offers_gradients: bool = True
    breaches: tuple[Breach, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    launched: tuple[Launched, ...] = ()

    def named(self) -> dict[str, torch.Tensor]:
        """All result tensors by name: o, state, d<input>."""
        found = {"o": self.o, "state": self.state, **{f"d{n}": g for n, g in self.grads.items()}}
        return {n: t for n, t in found.items() if t is not None}


class Refused(Exception):
    """The target raised a Python exception on valid input and the process stayed usable: a limitation."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind  # exception class name
        self.message = message  # first line


class Fault(Exception):
    """The target took its process down, or hung: always a violation.

    Attributes:
        kind: crash, hang, exit, out_of_memory.
        message: one sentence (signal name, exit code, limit).
        log: tail of the worker's standard error.
    """

    def __init__(self, kind: str, message: str, log: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.log = log
