"""In the worker: run the calls of a program and collect what came back.

The target sees tensors on its device in the layout of the call, by keyword; everything it may have changed is
compared or put back.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from linverify import amid, hygiene
from linverify.arena import Arena
from linverify.contract import Assignment, check_gradient, split
from linverify.fence import Fence
from linverify.layout import Footprint, Placed, footprint, place
from linverify.poison import dirty, is_active, poisoned
from linverify.problem import Breach, Call, Problem, Program, Result
from linverify.room import Shelf
from linverify.suspicion import Suspicion
from linverify.transfer import home

# How inputs and upstream gradients are called where something happens to them.
_INPUT = "input "
_UPSTREAM = "the upstream gradient of "


@dataclass(slots=True)
class _Arguments:
    """What a call is given, on the device: the memory of it all, and the leaves that the target gets by canonical name."""

    arena: Arena
    leaves: dict[str, torch.Tensor]

    @property
    def offsets(self) -> torch.Tensor | None:
        """Borders of packed sequences."""
        placed = self.arena.placed.get(_INPUT + "cu_seqlens")
        return None if placed is None else placed.view

    def cotangents(self, problem: Problem) -> dict[str, torch.Tensor]:
        """The upstream gradients by result name."""
        return {name: self.arena.placed[_UPSTREAM + name].view for name in problem.cotangents}


@dataclass(slots=True)
class _Outputs:
    """Results on the device, and what was found about them."""

    o: torch.Tensor | None = None
    state: torch.Tensor | None = None
    grads: dict[str, torch.Tensor] = field(default_factory=dict)
    offers_gradients: bool = True
    breaches: list[Breach] = field(default_factory=list)
    suspicions: list[Suspicion] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def named(self) -> dict[str, torch.Tensor]:
        """The output and the final state, as far as there are such tensors."""
        return {n: t for n, t in (("o", self.o), ("state", self.state)) if t is not None and t.device.type != "meta"}


def run_program(
    function: Callable[..., Any],
    assignment: Assignment,
    program: Program,
    device: torch.device,
    waiting: Callable[[bool], None] = lambda _: None,
    shelf: Shelf | None = None,
) -> tuple[Result, ...]:
    """Run the calls in order; one result per call, and one more for a reread.

    Args:
        function: the target.
        assignment: how it is called.
        program: what to run.
        device: where.
        waiting: told that all is launched and only the device has to finish, and that it has.
        shelf: where results may lie; the tensors of a result change when something else is laid down there.

    Raises:
        Exception: whatever the target raises.
    """
    device = torch.empty(0, device=device).device  # a GPU with its number
    arguments: _Arguments | None = None
    # Results stay alive until the program ends: an address that comes back is then a buffer used twice.
    made: list[_Outputs] = []
    results = []
    for call in program.calls:
        if call.amid == amid.DEVICE:
            _ask_elsewhere(function, assignment, call.problem, device)
            made.append(_Outputs())
            results.append(Result(None))
            continue
        if arguments is None or not program.in_place:
            arguments = _build(call, assignment, device)
        else:
            _overwrite(arguments, call.problem, assignment)
        made.append(_invoke(function, assignment, call, arguments, device, made, waiting))
        results.append(_collect(made[-1], assignment, call.problem, shelf))
    if program.reread:
        again = replace(made[0], breaches=[], suspicions=[], seconds={})
        results.append(_collect(again, assignment, program.calls[0].problem, shelf))
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
    problem = call.problem
    turn = problem.tensors[assignment.value].shape[1]
    parts: dict[str, Footprint | Placed] = {}
    for position, (name, tensor) in enumerate(problem.tensors.items()):
        values, layout = assignment.merged(name, tensor), _layout_of(name, call)
        # All that a distant tensor spans is its own.
        far = layout == "distant"
        parts[_INPUT + name] = (
            place(values, layout, device=device) if far else footprint(values, layout, turn + position)
        )
    for name, tensor in _other_inputs(problem, assignment).items():
        parts[_INPUT + name] = footprint(tensor, "contiguous")
    for name, tensor in _upstream(problem, assignment).items():
        parts[_UPSTREAM + name] = footprint(tensor, call.cotangent_layout, turn)
    arena = Arena(parts, device)
    named = (n for n in (*problem.tensors, "initial_state") if _INPUT + n in parts)
    leaves = {n: arena.placed[_INPUT + n].view.detach().requires_grad_(n in problem.wrt) for n in named}
    return _Arguments(arena, leaves)


def _layout_of(name: str, call: Call) -> str:
    """A layout may name the one input that it is for, as "distant.k": all at once would not fit a GPU."""
    layout, _, one = call.layout.partition(".")
    return layout if one in ("", name) else "contiguous"


def _other_inputs(problem: Problem, assignment: Assignment) -> dict[str, torch.Tensor]:
    """The initial state and the borders of packed sequences, where there are any."""
    found = {}
    if problem.initial_state is not None:
        found["initial_state"] = _outward(problem.initial_state, assignment)
    if problem.lengths:
        wide = torch.tensor([0, *problem.lengths], dtype=torch.int64).cumsum(0)
        found["cu_seqlens"] = wide.to(torch.int32 if problem.offsets == "int32" else torch.int64)
    return found


def _upstream(problem: Problem, assignment: Assignment) -> dict[str, torch.Tensor]:
    return {n: _outward(t, assignment) if n == "state" else t for n, t in problem.cotangents.items()}


def _overwrite(arguments: _Arguments, problem: Problem, assignment: Assignment) -> None:
    inputs = {name: assignment.merged(name, tensor) for name, tensor in problem.tensors.items()}
    for name, tensor in {**inputs, **_other_inputs(problem, assignment)}.items():
        arguments.arena.overwrite(_INPUT + name, tensor)
    for name, tensor in _upstream(problem, assignment).items():
        arguments.arena.overwrite(_UPSTREAM + name, tensor)
    for name, leaf in arguments.leaves.items():
        leaf.requires_grad_(name in problem.wrt)


def _outward(state: torch.Tensor, assignment: Assignment) -> torch.Tensor:
    """Turn a state between the canonical layout and the function's; its own inverse."""
    return state.transpose(-1, -2).contiguous() if assignment.state_value_first else state


def _keywords(
    assignment: Assignment, problem: Problem, leaves: Mapping[str, torch.Tensor], offsets: torch.Tensor | None
) -> dict[str, Any]:
    names = assignment.names
    keywords: dict[str, Any] = {**assignment.settings}
    for name, leaf in leaves.items():
        keywords[names[name]] = leaf
    if "output_final_state" in names:
        keywords[names["output_final_state"]] = problem.final_state
    if problem.scale is not None:
        keywords[names["scale"]] = problem.scale
    if offsets is not None:
        keywords[names["cu_seqlens"]] = offsets
    return keywords


def _invoke(
    function: Callable[..., Any],
    assignment: Assignment,
    call: Call,
    arguments: _Arguments,
    device: torch.device,
    earlier: Sequence[_Outputs],
    waiting: Callable[[bool], None],
) -> _Outputs:
    problem = call.problem
    keywords = _keywords(assignment, problem, arguments.leaves, arguments.offsets)
    if device.type == "cuda":
        dirty(_result_sizes(assignment, problem), call.poison, device)
    outputs, fence = _Outputs(), Fence()

    def work() -> dict[str, torch.Tensor]:
        started = time.perf_counter()
        with torch.set_grad_enabled(bool(problem.cotangents)):
            returned = function(**keywords)
        outputs.o, outputs.state, outputs.breaches = split(returned, assignment, problem, device)
        if not is_active(call.poison, fence):
            outputs.breaches.append(Breach("interference", "the target switched off the poison in fresh memory"))
        early = hygiene.copies(outputs.named())
        _synchronize(device, waiting)
        outputs.seconds["forward"] = time.perf_counter() - started
        outputs.breaches.extend(hygiene.aliases(outputs.named(), _known(arguments, earlier)))
        if call.between is not None:
            other = _build(Call(call.between), assignment, device)
            with torch.set_grad_enabled(bool(call.between.cotangents)):
                function(**_keywords(assignment, call.between, other.leaves, other.offsets))
        if problem.cotangents:
            started = time.perf_counter()
            _back_propagate(outputs, problem, arguments, assignment)
            _synchronize(device, waiting)
            outputs.seconds["backward"] = time.perf_counter() - started
        return early

    with _restored(), poisoned(call.poison, fence):
        early = amid.within(call.amid, device, arguments.arena, work)
    outputs.suspicions = [
        *hygiene.unfinished(outputs.named(), early),
        *arguments.arena.suspicions(),
        *fence.suspicions(),
    ]
    outputs.o = None if outputs.o is None else outputs.o.detach()
    outputs.state = None if outputs.state is None else outputs.state.detach()
    return outputs


def _ask_elsewhere(
    function: Callable[..., Any], assignment: Assignment, problem: Problem, device: torch.device
) -> None:
    """Make a call on another device, where there is one; what it says there is its own business."""
    other = amid.other_device(device)
    if other is None:
        return
    inputs = {n: assignment.merged(n, t) for n, t in problem.tensors.items()} | _other_inputs(problem, assignment)
    given = {name: tensor.to(other) for name, tensor in inputs.items()}
    offsets = given.pop("cu_seqlens", None)
    leaves = {name: tensor.detach().requires_grad_(name in problem.wrt) for name, tensor in given.items()}
    with _restored(), torch.cuda.device(other if other.type == "cuda" else -1):
        with contextlib.suppress(Exception), torch.set_grad_enabled(bool(problem.cotangents)):
            returned = function(**_keywords(assignment, problem, leaves, offsets))
            o = returned[0] if isinstance(returned, (tuple, list)) else returned
            if problem.cotangents:
                _gradients([o], [leaves[name] for name in problem.wrt], [torch.ones_like(o)])
        _synchronize(other)  # a device that was lost is not


def _known(arguments: _Arguments, earlier: Sequence[_Outputs]) -> dict[str, torch.Tensor]:
    """Everything that a result must not lie in."""
    found = {f"input {name}": leaf for name, leaf in arguments.leaves.items()}
    for number, outputs in enumerate(earlier, 1):
        found.update({f"{name} of call {number}": tensor for name, tensor in outputs.named().items()})
    return found


def _back_propagate(
    outputs: _Outputs,
    problem: Problem,
    arguments: _Arguments,
    assignment: Assignment,
) -> None:
    roots, upstream = [], []
    cotangents = arguments.cotangents(problem)
    results = {"o": outputs.o, "state": outputs.state}
    detached = [n for n in cotangents if (r := results[n]) is not None and not r.requires_grad]
    for name, cotangent in cotangents.items():
        result = results[name]
        if result is not None and result.requires_grad and result.shape == cotangent.shape:
            roots.append(result)
            upstream.append(cotangent.to(result.dtype))
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


def _collect(outputs: _Outputs, assignment: Assignment, problem: Problem, shelf: Shelf | None) -> Result:
    """Fetch the results together with the flags of what may be broken; say what is."""
    named, suspicions = outputs.named(), outputs.suspicions
    outputs.suspicions = []  # they hold memory
    asked = [s.flag for s in suspicions if isinstance(s.flag, torch.Tensor)]
    fetched = iter(home([*named.values(), *outputs.grads.values(), *asked], shelf))
    own = {name: next(fetched) for name in named}
    grads = {name: next(fetched) for name in outputs.grads}
    for suspicion in suspicions:
        flag = next(fetched) if isinstance(suspicion.flag, torch.Tensor) else suspicion.flag
        outputs.breaches.extend(suspicion.tell() if bool(flag) else ())
    state = own.get("state")
    if state is not None and state.dim() >= 2:
        state = _outward(state, assignment)
    for name, whole in problem.tensors.items():
        found = grads.get(name)
        if found is not None and found.shape != whole.shape and found.shape == assignment.merged(name, whole).shape:
            grads[name] = found.reshape(whole.shape)
    if "initial_state" in grads:
        grads["initial_state"] = _outward(grads["initial_state"], assignment)
    return Result(own.get("o"), state, grads, outputs.offers_gradients, tuple(outputs.breaches), outputs.seconds)


def _result_sizes(assignment: Assignment, problem: Problem) -> list[tuple[int, torch.dtype]]:
    tensors = [problem.tensors[name] for name in problem.tensors]
    sizes = [(t.numel(), t.dtype) for t in tensors]
    sizes.append((torch.Size(assignment.shape_of_o(problem)).numel(), problem.tensors[assignment.value].dtype))
    if problem.final_state:
        sizes.append((torch.Size(assignment.shape_of_state(problem)).numel(), torch.float32))
    return sizes


def _synchronize(device: torch.device, waiting: Callable[[bool], None] = lambda _: None) -> None:
    if device.type == "cuda":
        waiting(True)
        torch.cuda.synchronize(device)
        waiting(False)


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
