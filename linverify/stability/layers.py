"""D5, the layers: a stack of blocks is trained on real text, and the gradients of every layer are followed step by step.

    g_l(n) = |grad W_l|_2 / |W_l|_2   of layer l at step n, all its parameters together

The figures are quantiles over layers and steps, the mismatch R = median of the first quarter of the layers over median of the
last, the tail q99 / q50, and the temporal spread: standard deviation over mean over the steps, the median of the layers.

Sources: Shleifer et al. 2021, arXiv:2110.09456 (mismatch between layers under Pre-LN); Qin et al. 2022, arXiv:2210.10340
(relative standard deviation of gradients over training). What counts as healthy here is a choice of this file.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import get_total_norm
from torch.optim import AdamW

from linverify.stability.records import Curve, Finding
from linverify.stability.text import text, windows

MISMATCH = (0.5, 2.0)
TAIL = 10.0
SPREAD = 0.3
_BYTES = 256
# Layers whose statistics are left out of the temporal spread: none; steps: the warm-up.
WARM_UP = 0.1
PEAK = 0.001

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Training:
    """How to train.

    Attributes:
        layers, width: of the stack.
        steps, batch, length: of the run; length in bytes.
        seed: of parameters and batches.
        device: where.
    """

    layers: int = 8
    width: int = 64
    steps: int = 60
    batch: int = 4
    length: int = 64
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What was logged: losses [steps] and g_l [steps, layers]."""

    losses: Tensor
    gradients: Tensor


class Stack(nn.Module):
    """A language model of bytes: embedding, positions, blocks one after the other, norm, head."""

    def __init__(self, blocks: list[nn.Module], width: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_BYTES, width)
        self.positions = nn.Parameter(torch.randn(length, width) / math.sqrt(width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _BYTES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, 256] of the byte after each token [B, T]."""
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(self.norm(x))
        return found


Heard = Callable[[int, Stack], None]


class Trainer:
    """A run one step at a time: a stack, its optimiser, its batches.

    Nothing is clipped, so that nothing is hidden.
    """

    def __init__(self, make: Callable[[], nn.Module], plan: Training, optimizer: Optimizer = AdamW) -> None:
        """Take what makes a block, the run, and what makes an optimiser of parameters."""
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.model = Stack([make() for _ in range(plan.layers)], plan.width, plan.length).to(plan.device)
        self.optimizer = optimizer(self.model.parameters())
        self._source, self._generator = text(), torch.Generator().manual_seed(plan.seed)

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next step's windows and the bytes that follow [batch, length], on the CPU."""
        return windows(self._source, self.plan.batch, self.plan.length, self._generator)

    def rate(self, step: int) -> float:
        """The learning rate: a linear warm-up, then constant."""
        return PEAK * min(1.0, (step + 1) / max(1, round(self.plan.steps * WARM_UP)))

    def differentiate(self, tokens: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and g_l [layers] of one batch; the parameters' gradients are set, the parameters not moved yet."""
        loss = cross_entropy(self.model(tokens).flatten(0, 1).float(), following.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach(), torch.stack([relative(block) for block in self.model.blocks])


def train(make: Callable[[], nn.Module], plan: Training, heard: Heard | None = None) -> History:
    """Train a stack of blocks.

    Args:
        make: a new block.
        plan: the run.
        heard: shown the model of every step, with its gradients, before they are followed.
    """
    run = Trainer(make, plan)
    losses, gradients = [], []
    for step in range(plan.steps):
        for group in run.optimizer.param_groups:
            group["lr"] = run.rate(step)
        loss, found = run.differentiate(*(x.to(plan.device) for x in run.batch()))
        gradients.append(found.cpu())
        losses.append(float(loss))
        if heard is not None:
            heard(step, run.model)
        run.optimizer.step()
    return History(torch.tensor(losses), torch.stack(gradients).double())


def relative(part: nn.Module) -> Tensor:
    """|grad W| / |W| of all parameters of a module together."""
    found = [(p.grad.detach().float(), p.detach().float()) for p in part.parameters() if p.grad is not None]
    grads, weights = zip(*found, strict=True)
    return get_total_norm(grads) / get_total_norm(weights)


def figures(history: History) -> dict[str, float]:
    """The statistics of a run."""
    g = history.gradients
    settled = g[max(1, round(len(g) * WARM_UP)) :]
    quarter = max(1, g.shape[1] // 4)
    q = {f"q{round(100 * p)}": float(settled.quantile(p)) for p in (0.5, 0.9, 0.99)}
    spread = settled.std(0) / settled.mean(0)
    return {
        **q,
        "max": float(settled.amax()),
        "mismatch": float(settled[:, :quarter].median() / settled[:, -quarter:].median()),
        "tail": q["q99"] / q["q50"],
        "spread": float(spread.median()),
        "first loss": float(history.losses[0]),
        "last loss": float(history.losses[-max(1, len(history.losses) // 20) :].mean()),
    }


def layers(make: Callable[[], nn.Module], plan: Training, heard: Heard | None = None) -> Finding:
    """Train and judge: nothing here is promised, so that only a gradient that is not finite is a fault."""
    history = train(make, plan, heard)
    shown_by = (
        f"{plan.layers} layers of width {plan.width}, {plan.steps} steps of {plan.batch} x {plan.length} bytes of text"
    )
    if not bool(history.gradients.isfinite().all()):
        step = int((~history.gradients.isfinite()).any(1).nonzero()[0])
        bad = int((~history.gradients[step].isfinite()).nonzero()[0])
        told = f"the gradient of layer {bad} is not finite at step {step}"
        return Finding("D5", "layers", "", "unbounded", False, math.inf, None, shown_by, told)
    found = figures(history)
    parts = [
        f"first layers over last {found['mismatch']:.2f}",
        f"q99/q50 {found['tail']:.2g}",
        f"spread over time {found['spread']:.2f}",
    ]
    low, high = MISMATCH
    ill = [
        text
        for text, bad in zip(
            parts, (not low <= found["mismatch"] <= high, found["tail"] > TAIL, found["spread"] > SPREAD), strict=True
        )
        if bad
    ]
    health = f"; out of the healthy range: {', '.join(ill)}" if ill else "; all within the healthy range"
    loss = f"loss {found['first loss']:.2f} to {found['last loss']:.2f}"
    per_layer = history.gradients.median(0).values
    at = tuple(float(n + 1) for n in range(plan.layers))
    steps = tuple(float(n + 1) for n in range(len(history.losses)))
    by_step, name = history.gradients.median(1).values, "|grad W| / |W|"
    curves = (
        Curve(at, tuple(per_layer.tolist()), "layer", name, linear=True),
        Curve(steps, tuple(by_step.tolist()), "step", name, label="median layer"),
    )
    sentence = f"{', '.join(parts)}; {loss}{health}"
    return Finding("D5", "layers", "", "measured", True, found["mismatch"], None, shown_by, sentence, found, curves)
