"""Training runs of one block, side by side as one CUDA graph.

A small model's step is thousands of small kernels, which a processor launches more slowly than a GPU runs them.
The first steps run as they are. Then one step of all runs is captured, each on a stream of its own, and replayed until the end.
What is computed does not change: the same batches, the same operations, AdamW in its fused form. Off a GPU every step runs as
it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from linverify.stability.layers import PEAK, History, Stack, Trainer, Training

# Steps before the capture: one notes the constants, one checks them, one runs with what they left in the allocator.
EAGER = 3

Noted = Callable[[Stack], Tensor]


class Constants(TorchFunctionMode):
    """Copies to a device of numbers that a step makes on the host: masks, positions, orders. They cannot be captured.

    While noting they are kept in order; while checking they must be the same again; afterwards what was kept stands for them.
    """

    def __init__(self) -> None:
        """Start noting."""
        super().__init__()
        self.kept: list[Tensor] = []
        self.position, self.mode = 0, "note"

    def begin(self, mode: str) -> None:
        """Begin a step: note, check or use."""
        self.position, self.mode = 0, mode

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run a function of torch, or stand in for it."""
        kwargs = kwargs or {}
        if not _uploads(func, args, kwargs):
            return func(*args, **kwargs)
        if self.mode == "note":
            self.kept.append(func(*args, **kwargs))
            return self.kept[-1]
        place, self.position = self.position, self.position + 1
        same = place < len(self.kept)
        if same and self.mode == "check":
            same = torch.equal(func(*args, **kwargs), self.kept[place])
        if not same:
            raise ValueError("a step copies other numbers to the device than the first one: it cannot be captured")
        return self.kept[place]


def _uploads(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call copies numbers from the host to a device."""
    if func is torch.tensor:
        return torch.device(kwargs.get("device") or "cpu").type != "cpu"
    if func is Tensor.new_tensor:
        return torch.device(kwargs.get("device") or args[0].device).type != "cpu"
    if func is not Tensor.to or args[0].device.type != "cpu":
        return False
    for given in (*args[1:], *kwargs.values()):
        if isinstance(given, Tensor):
            return given.device.type != "cpu"
        if isinstance(given, (str, torch.device)):
            return torch.device(given).type != "cpu"
    return False


class Run:
    """One run: its trainer, all its batches, and its logs, on the device, by step.

    Attributes:
        losses: [steps].
        gradients: g_l, [steps, layers].
        noted: what else is looked at, [steps, ...].
    """

    def __init__(self, make: Callable[[], nn.Module], plan: Training, note: Noted) -> None:
        """Draw everything that a step needs."""
        on_gpu = plan.device.startswith("cuda")
        self.rate = torch.tensor(PEAK, device=plan.device)
        self.trainer = Trainer(make, plan, lambda p: torch.optim.AdamW(p, lr=self.rate, fused=True, capturable=on_gpu))
        tokens, following = zip(*(self.trainer.batch() for _ in range(plan.steps)), strict=True)
        self.tokens, self.following = (torch.stack(x).to(plan.device) for x in (tokens, following))
        self.rates = torch.tensor([self.trainer.rate(n) for n in range(plan.steps)], device=plan.device)
        self.note, self.step = note, torch.zeros(1, dtype=torch.int64, device=plan.device)
        self.losses = self.rates.new_zeros(plan.steps)
        self.gradients = self.rates.new_zeros(plan.steps, plan.layers)
        self.noted: Tensor | None = None

    def advance(self) -> None:
        """One step; what number it has stands on the device."""
        n = self.step
        self.rate.copy_(self.rates.index_select(0, n)[0])
        loss, gradients = self.trainer.differentiate(*(x.index_select(0, n)[0] for x in (self.tokens, self.following)))
        noted = self.note(self.trainer.model)
        if self.noted is None:
            self.noted = noted.new_zeros(len(self.losses), *noted.shape)
        for log, new in ((self.losses, loss), (self.gradients, gradients), (self.noted, noted)):
            log.index_copy_(0, n, new[None].to(log.dtype))
        self.trainer.optimizer.step()
        n.add_(1)

    def history(self) -> tuple[History, Tensor, Stack]:
        """What was logged, what was noted [steps, ...], and the trained model."""
        assert self.noted is not None
        found = History(self.losses.cpu(), self.gradients.double().cpu())
        return found, self.noted.double().cpu(), self.trainer.model


def train(make: Callable[[], nn.Module], plans: Sequence[Training], note: Noted) -> list[tuple[History, Tensor, Stack]]:
    """Train a stack of the same blocks once a plan, side by side.

    Args:
        make: a new block.
        plans: the runs, alike but for their seeds.
        note: what else to look at in a model with its gradients, step by step; a tensor on its device.
    """
    runs = [Run(make, plan, note) for plan in plans]
    steps, device = plans[0].steps, plans[0].device
    if not device.startswith("cuda"):
        for _ in range(steps):
            for run in runs:
                run.advance()
        return [run.history() for run in runs]
    streams = [torch.cuda.Stream(device) for _ in runs]
    constants = Constants()
    with torch.cuda.device(device), constants:
        for n in range(min(EAGER, steps)):
            constants.begin("note" if n == 0 else "check")
            _together(runs, streams)
        torch.cuda.synchronize()
        if steps > EAGER:
            constants.begin("use")
            graph = torch.cuda.CUDAGraph()
            for run in runs:
                run.trainer.optimizer.zero_grad()
            with torch.cuda.graph(graph):
                _together(runs, streams)
            for _ in range(steps - EAGER):
                graph.replay()
            torch.cuda.synchronize()
    return [run.history() for run in runs]


def _together(runs: Sequence[Run], streams: Sequence[torch.cuda.Stream]) -> None:
    """One step of every run, each on its stream, between what the current stream did before and does after."""
    current = torch.cuda.current_stream()
    for run, stream in zip(runs, streams, strict=True):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run.advance()
    for stream in streams:
        current.wait_stream(stream)
