"""The contract of results: what a function must give back, and what it broke.

Accepted: ``o``; ``(o, None)`` or ``(o, state)`` when no state was asked for; ``(o, state)`` when it was. o has the
value input's dtype, the state is float32 (float64 inputs: float64 or float32; the claim state_dtype=input allows the
input's), a gradient has its input's dtype.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from linverify.problem import Breach, Problem
from linverify.wire import carries


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which function to call, how, and what its results must look like; the worker's half of a binding.

    Attributes:
        function, names, settings, state_value_first, claims: as in `binding.Binding`.
        axes: letters of each input's shape.
        kinds: kind of each input.
        value: name of the value input.
        o_axes: letters of o's shape.
        unseen: lengths of the axes that no input shows.
        state_axes: letters of the state's shape.
        readers: inputs that the state does not depend on.
    """

    function: str
    names: Mapping[str, str]
    settings: Mapping[str, Any]
    state_value_first: bool
    claims: Mapping[str, str]
    axes: Mapping[str, str]
    kinds: Mapping[str, str]
    value: str
    state_axes: str
    o_axes: str = "BTHV"
    unseen: Mapping[str, int] = field(default_factory=dict)
    readers: Sequence[str] = ()

    def sizes(self, problem: Problem) -> dict[str, int]:
        """Axis letters to lengths."""
        found: dict[str, int] = {}
        for name, tensor in problem.tensors.items():
            found.update(zip(self.axes.get(name, ""), tensor.shape, strict=False))
        return {**found, **self.unseen, "N": len(problem.lengths) or found.get("B", 1)}

    def merged(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """An input, or its gradient, as the function takes it: tokens and their steps (S) on one axis."""
        return merged(self.axes.get(name.removeprefix("d") if name not in self.axes else name, ""), x)

    def shape_of_o(self, problem: Problem) -> tuple[int, ...]:
        """As the operator says, usually [B, T, H, V]."""
        sizes = self.sizes(problem)
        return tuple(sizes[axis] for axis in self.o_axes)

    def shape_of_state(self, problem: Problem) -> tuple[int, ...]:
        """[N, H, K, V], or [N, H, V, K] where the function has it so."""
        sizes = self.sizes(problem)
        shape = tuple(sizes[axis] for axis in self.state_axes)
        return (*shape[:-2], shape[-1], shape[-2]) if self.state_value_first else shape

    def zero_gradient(self, name: str, problem: Problem) -> bool:
        """Tell whether the gradient of an input is 0 whatever the values, so that none is as good as zeros."""
        kind = self.kinds.get(name, "")
        if set(problem.cotangents) == {"state"} and name in self.readers:
            return True
        longest = max(problem.lengths, default=problem.tensors[self.value].shape[self.axes[self.value].index("T")])
        # The first token has no past to decay or to read.
        return (
            longest <= 1
            and problem.initial_state is None
            and kind in ("log_gate", "log_rate", "low_rank_a", "low_rank_b")
        )


def merged(axes: str, x: torch.Tensor) -> torch.Tensor:
    """Tokens and their steps (S) on one axis, where `axes` has steps."""
    step = axes.find("S")
    return x if step < 0 else x.flatten(step - 1, step)


def split(
    returned: object, assignment: Assignment, problem: Problem, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None, list[Breach]]:
    """Take o and the state out of what a function returned; also say what was wrong with it.

    Args:
        returned: anything.
        assignment: of the function.
        problem: what it was asked.
        device: where the results must be, as a tensor there names it (a GPU with its number).
    """
    breaches: list[Breach] = []
    asked = problem.final_state
    expected = "(o, state)" if asked else "o or (o, None)"
    parts: list[object]
    if isinstance(returned, torch.Tensor):
        parts = [returned]
        if asked:
            breaches.append(Breach("wrong_length", f"expected {expected}, got o alone"))
    elif isinstance(returned, tuple):
        parts = list(returned)
        if len(parts) != 2:
            breaches.append(Breach("wrong_length", f"expected {expected}, got a tuple of {len(parts)}"))
    else:
        parts = list(returned) if isinstance(returned, list) else []
        breaches.append(Breach("wrong_type", f"expected {expected}, got {_type(returned)}"))
    o = _tensor(parts[0], "o", breaches) if parts else None
    if o is not None:
        dtype = problem.tensors[assignment.value].dtype
        _compare(o, "o", assignment.shape_of_o(problem), (dtype,), device, breaches)
        breaches.extend([] if breaches else _laid_out("o", o))
    if len(parts) < 2 or not asked:
        if len(parts) == 2 and parts[1] is not None and not isinstance(parts[1], torch.Tensor):
            breaches.append(Breach("wrong_type", f"expected a state or None beside o, got {_type(parts[1])}"))
        return o, None, breaches
    state = _tensor(parts[1], "state", breaches)
    if state is not None:
        _compare(
            state, "state", assignment.shape_of_state(problem), _state_dtypes(assignment, problem), device, breaches
        )
        breaches.extend([] if breaches else _laid_out("state", state))
    return o, state, breaches


def _laid_out(name: str, tensor: torch.Tensor) -> list[Breach]:
    """Say so if a result's elements do not lie in order."""
    if tensor.is_contiguous():
        return []
    return [Breach("not_contiguous", f"{name}: expected contiguous memory, got strides {list(tensor.stride())}")]


def check_gradient(name: str, gradient: torch.Tensor, leaf: torch.Tensor) -> list[Breach]:
    """Say what is wrong with a gradient's shape, dtype or device."""
    breaches: list[Breach] = []
    if _tensor(gradient, f"d{name}", breaches) is not None:
        _compare(gradient, f"d{name}", tuple(leaf.shape), (leaf.dtype,), leaf.device, breaches)
    return breaches


def _state_dtypes(assignment: Assignment, problem: Problem) -> tuple[torch.dtype, ...]:
    dtype = problem.tensors[assignment.value].dtype
    allowed = [torch.float32]
    if dtype == torch.float64 or assignment.claims.get("state_dtype") == "input":
        allowed.append(dtype)
    return tuple(allowed)


def _type(value: object) -> str:
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, (list, dict)) else "None" if value is None else kind


def _tensor(value: object, name: str, breaches: list[Breach]) -> torch.Tensor | None:
    if not isinstance(value, torch.Tensor):
        breaches.append(Breach("wrong_type", f"{name}: expected a tensor, got {_type(value)}"))
        return None
    if type(value) is not torch.Tensor:
        # A subclass may compute, or decide what to show, whenever it is looked at.
        breaches.append(Breach("wrong_type", f"{name}: expected a plain torch.Tensor, got its subclass {_type(value)}"))
        return None
    if value.layout is not torch.strided or not carries(value.dtype) or value.device.type == "meta":
        kind = f"{value.layout} {value.dtype} tensor on {value.device}"
        breaches.append(Breach("wrong_type", f"{name}: expected a dense floating-point tensor, got a {kind}"))
        return None
    return value


def _compare(
    tensor: torch.Tensor,
    name: str,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
    breaches: list[Breach],
) -> None:
    if tuple(tensor.shape) != shape:
        breaches.append(Breach("wrong_shape", f"{name}: expected {list(shape)}, got {list(tensor.shape)}"))
    if tensor.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        breaches.append(Breach("wrong_dtype", f"{name}: expected {names}, got {got}"))
    if tensor.device != device:
        breaches.append(Breach("wrong_device", f"{name}: expected {device}, got {tensor.device}"))
