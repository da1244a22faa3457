"""In the worker: run the calls of a program and collect what came back.

The target sees tensors on its device in the layout of the call, by keyword; everything it may have changed is
compared or put back.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from linverify import hygiene
from linverify.contract import Assignment, check_gradient, split
from linverify.fence import Fence
from linverify.layout import Placed, place, same_bits
from linverify.poison import dirty, is_active, poisoned
from linverify.problem import Breach, Call, Problem, Program, Result


@dataclass(slots=True)
class _Arguments:
    """The tensors of a call on the device: inputs and initial state by name, the leaves that the target gets, their fence."""

    placed: dict[str, Placed]
    leaves: dict[str, torch.Tensor]
    offsets: torch.Tensor | None
    fence: Fence


@dataclass(slots=True)
class _Outputs:
    """Results on the device, and what was found about them."""

    o: torch.Tensor | None = None
    state: torch.Tensor | None = None
    grads: dict[str, torch.Tensor] = field(default_factory=dict)
    offers_gradients: bool = True
    breaches: list[Breach] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def named(self) -> dict[str, torch.Tensor]:
        """The output and the final state, as far as there are such tensors."""
        return {n: t for n, t in (("o", self.o), ("state", self.state)) if t is not None and t.device.type != "meta"}


def run_program(
    function: Callable[..., Any], assignment: Assignment, program: Program, device: torch.device
) -> tuple[Result, ...]:
    """Run the calls in order; one result per call, and one more for a reread.

    Raises:
        Exception: whatever the target raises.
    """
    arguments: _Arguments | None = None
    # Results stay alive until the program ends: an address that comes back is then a buffer used twice.
    made: list[_Outputs] = []
    results = []
    for call in program.calls:
        if arguments is None or not program.in_place:
            arguments = _build(call, assignment, device)
        else:
            _overwrite(arguments, call.problem, assignment)
        made.append(_invoke(function, assignment, call, arguments, device, made))
        results.append(_collect(made[-1], assignment, call.problem))
    if program.reread:
        again = replace(made[0], breaches=[], seconds={})
        results.append(_collect(again, assignment, program.calls[0].problem))
        del again
    del arguments
    return tuple(_released(results, made))


def _released(results: list[Result], made: list[_Outputs]) -> Iterator[Result]:
    """Let go of every result, and say so where the function keeps the memory of one."""
    aliased = any(b.kind == "aliased" for result in results for b in result.breaches)
    storages = [{} if aliased else {n: t.untyped_storage() for n, t in o.named().items()} for o in made]
    made.clear()
    found = hygiene.kept(storages)
    for position, result in enumerate(results):
        yield replace(result, breaches=(*result.breaches, *found[position])) if found.get(position) else result


def _build(call: Call, assignment: Assignment, device: torch.device) -> _Arguments:
    problem, fence = call.problem, Fence()
    turn = problem.tensors[assignment.value].shape[1]
    placed = {
        name: place(
            assignment.merged(name, tensor),
            _layout_of(name, call),
            device=device,
            turn=turn + position,
            room=_beside(fence, f"input {name}"),
        )
        for position, (name, tensor) in enumerate(problem.tensors.items())
    }
    if problem.initial_state is not None:
        state, room = _outward(problem.initial_state, assignment), _beside(fence, "input initial_state")
        placed["initial_state"] = place(state, "contiguous", device=device, room=room)
    leaves = {n: p.view.detach().requires_grad_(n in problem.wrt) for n, p in placed.items()}
    return _Arguments(placed, leaves, _offsets(problem, device, fence), fence)


def _layout_of(name: str, call: Call) -> str:
    """A layout may name the one input that it is for, as "distant.k": all at once would not fit a GPU."""
    layout, _, one = call.layout.partition(".")
    return layout if one in ("", name) else "contiguous"


def _beside(fence: Fence, label: str) -> partial[torch.Tensor]:
    """Room within a fence, under a name for what is found there."""
    return partial(fence.empty, label=label)


def _overwrite(arguments: _Arguments, problem: Problem, assignment: Assignment) -> None:
    for name, tensor in problem.tensors.items():
        arguments.placed[name].overwrite(assignment.merged(name, tensor))
    if problem.initial_state is not None:
        arguments.placed["initial_state"].overwrite(_outward(problem.initial_state, assignment))
    if arguments.offsets is not None:
        arguments.offsets.copy_(_starts(problem))
    for name, leaf in arguments.leaves.items():
        leaf.requires_grad_(name in problem.wrt)


def _starts(problem: Problem) -> torch.Tensor:
    wide = torch.tensor([0, *problem.lengths], dtype=torch.int64).cumsum(0)
    return wide.to(torch.int32 if problem.offsets == "int32" else torch.int64)


def _offsets(problem: Problem, device: torch.device, fence: Fence) -> torch.Tensor | None:
    if not problem.lengths:
        return None
    starts = _starts(problem)
    return fence.empty(starts.shape, starts.dtype, device, "input cu_seqlens").copy_(starts)


def _outward(state: torch.Tensor, assignment: Assignment) -> torch.Tensor:
    """Turn a state between the canonical layout and the function's; its own inverse."""
    return state.transpose(-1, -2).contiguous() if assignment.state_value_first else state


def _keywords(assignment: Assignment, problem: Problem, arguments: _Arguments) -> dict[str, Any]:
    names = assignment.names
    keywords: dict[str, Any] = {**assignment.settings}
    for name, leaf in arguments.leaves.items():
        keywords[names[name]] = leaf
    if "output_final_state" in names:
        keywords[names["output_final_state"]] = problem.final_state
    if problem.scale is not None:
        keywords[names["scale"]] = problem.scale
    if arguments.offsets is not None:
        keywords[names["cu_seqlens"]] = arguments.offsets
    return keywords


def _invoke(
    function: Callable[..., Any],
    assignment: Assignment,
    call: Call,
    arguments: _Arguments,
    device: torch.device,
    earlier: Sequence[_Outputs],
) -> _Outputs:
    problem = call.problem
    before = _snapshot(arguments)
    keywords = _keywords(assignment, problem, arguments)
    dirty(_result_sizes(assignment, problem), call.poison, device)
    outputs, fence = _Outputs(), Fence()
    with _restored(), poisoned(call.poison, fence):
        started = time.perf_counter()
        with torch.set_grad_enabled(bool(problem.cotangents)):
            returned = function(**keywords)
        outputs.o, outputs.state, outputs.breaches = split(returned, assignment, problem, device)
        if not is_active(call.poison, fence):
            outputs.breaches.append(Breach("interference", "the target switched off the poison in fresh memory"))
        early = hygiene.copies(outputs.named())
        _synchronize(device)
        outputs.seconds["forward"] = time.perf_counter() - started
        outputs.breaches.extend(hygiene.aliases(outputs.named(), _known(arguments, earlier)))
        if call.between is not None:
            other = _build(Call(call.between), assignment, device)
            with torch.set_grad_enabled(bool(call.between.cotangents)):
                function(**_keywords(assignment, call.between, other))
        if problem.cotangents:
            cotangents = _cotangents(call, assignment, device, fence)
            kept = {name: placed.base.clone() for name, placed in cotangents.items()}
            started = time.perf_counter()
            _back_propagate(outputs, problem, arguments, cotangents, assignment)
            _synchronize(device)
            outputs.seconds["backward"] = time.perf_counter() - started
            for name, copy in kept.items():
                if not same_bits(cotangents[name].base, copy):
                    outputs.breaches.append(Breach("mutated_input", f"the cotangent of {name} was changed in place"))
    outputs.breaches.extend(hygiene.unfinished(outputs.named(), early))
    outputs.breaches.extend(_mutations(arguments, before))
    outputs.breaches.extend((*arguments.fence.breaches(), *fence.breaches()))
    outputs.o = None if outputs.o is None else outputs.o.detach()
    outputs.state = None if outputs.state is None else outputs.state.detach()
    return outputs


def _known(arguments: _Arguments, earlier: Sequence[_Outputs]) -> dict[str, torch.Tensor]:
    """Everything that a result must not lie in."""
    found = {f"input {name}": leaf for name, leaf in arguments.leaves.items()}
    for number, outputs in enumerate(earlier, 1):
        found.update({f"{name} of call {number}": tensor for name, tensor in outputs.named().items()})
    return found


def _cotangents(call: Call, assignment: Assignment, device: torch.device, fence: Fence) -> dict[str, Placed]:
    turn = call.problem.tensors[assignment.value].shape[1]
    return {
        name: place(
            _outward(tensor, assignment) if name == "state" else tensor,
            call.cotangent_layout,
            device=device,
            turn=turn,
            room=_beside(fence, f"the upstream gradient of {name}"),
        )
        for name, tensor in call.problem.cotangents.items()
    }


def _back_propagate(
    outputs: _Outputs,
    problem: Problem,
    arguments: _Arguments,
    cotangents: Mapping[str, Placed],
    assignment: Assignment,
) -> None:
    roots, upstream = [], []
    results = {"o": outputs.o, "state": outputs.state}
    detached = [n for n in cotangents if (r := results[n]) is not None and not r.requires_grad]
    for name, cotangent in cotangents.items():
        result = results[name]
        if result is not None and result.requires_grad and result.shape == cotangent.view.shape:
            roots.append(result)
            upstream.append(cotangent.view if result.dtype == cotangent.view.dtype else cotangent.view.to(result.dtype))
    if outputs.o is not None and not outputs.o.requires_grad and not roots:
        outputs.offers_gradients = False
        return
    outputs.breaches.extend(
        Breach("missing_gradient", f"{name} came without a grad_fn although inputs require gradients")
        for name in detached
    )
    if not roots:
        return
    leaves = {name: arguments.leaves[name] for name in problem.wrt}
    found: Sequence[torch.Tensor | None] = _gradients(roots, list(leaves.values()), upstream)
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        if gradient is not None:
            outputs.grads[name] = gradient
            outputs.breaches.extend(check_gradient(name, gradient, leaf))
        elif assignment.zero_gradient(name, problem):
            outputs.grads[name] = torch.zeros_like(leaf)
        else:
            outputs.breaches.append(Breach("missing_gradient", f"the gradient of {name} is None"))


def _gradients(
    roots: list[torch.Tensor], leaves: list[torch.Tensor], upstream: list[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    # torch's own annotation leaves out that an input without influence gets None.
    return torch.autograd.grad(roots, leaves, upstream, allow_unused=True)


def _snapshot(arguments: _Arguments) -> dict[str, torch.Tensor]:
    tensors = {name: placed.base for name, placed in arguments.placed.items()}
    if arguments.offsets is not None:
        tensors["cu_seqlens"] = arguments.offsets
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _mutations(arguments: _Arguments, before: Mapping[str, torch.Tensor]) -> Iterator[Breach]:
    for name, copy in before.items():
        placed = arguments.placed.get(name)
        now = arguments.offsets if placed is None else placed.base
        if now is not None and not same_bits(now, copy):
            where = "" if placed is None or placed.base is placed.view else " (or the memory around it)"
            yield Breach("mutated_input", f"input {name}{where} was changed in place")


def _collect(outputs: _Outputs, assignment: Assignment, problem: Problem) -> Result:
    state = outputs.state
    if state is not None:
        state = _home(state)
        state = _outward(state, assignment) if state.dim() >= 2 else state
    grads = {name: _home(gradient) for name, gradient in outputs.grads.items()}
    for name, whole in problem.tensors.items():
        if name in grads and grads[name].shape == assignment.merged(name, whole).shape:
            grads[name] = grads[name].reshape(whole.shape)
    if "initial_state" in grads:
        grads["initial_state"] = _outward(grads["initial_state"], assignment)
    return Result(
        None if outputs.o is None else _home(outputs.o),
        state,
        grads,
        outputs.offers_gradients,
        tuple(outputs.breaches),
        outputs.seconds,
    )


def _home(tensor: torch.Tensor) -> torch.Tensor:
    # A copy even on the CPU: a later call may overwrite the memory, and a reread must not see the first reading.
    return torch.Tensor.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)


def _result_sizes(assignment: Assignment, problem: Problem) -> list[tuple[int, torch.dtype]]:
    tensors = [problem.tensors[name] for name in problem.tensors]
    sizes = [(t.numel(), t.dtype) for t in tensors]
    sizes.append((torch.Size(assignment.shape_of_o(problem)).numel(), problem.tensors[assignment.value].dtype))
    if problem.final_state:
        sizes.append((torch.Size(assignment.shape_of_state(problem)).numel(), torch.float32))
    return sizes


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _restored() -> Iterator[None]:
    """Seed the generators, and put back the global settings that a target may change."""
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    precision = torch.get_float32_matmul_precision()
    # torch.manual_seed also queues a seed, with a stack trace, for every kind of device that is not there.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    random.seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
