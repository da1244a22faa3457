"""Do blocks' gradients behave in training as the literature says? Every block of impls/blocks is trained on the same real text.

Two claims of "The Devil in Linear Transformer" (Qin et al. 2022, arXiv:2210.10340) are put to the test: the relative standard
deviation of gradients over training falls in the order 1+elu, Performer, softmax, NormAttention; and linear attention dilutes
the first layers' attention where softmax and DiagAttention stay local. And one of NormFormer (Shleifer et al. 2021,
arXiv:2110.09456): under Pre-LN the first layers' gradients are larger than the last ones', and three operations lessen that.

    python benchmarks/stability_training.py [--device cuda:0 --layers 12 --width 192 --steps 400 --batch 16 --length 128]
                                            [--seeds 3] [--jobs 5] [--seconds 110] [--only NAME]...
                                            [--markdown FILE] [--json FILE]

The defaults take minutes on a CPU. On a GPU the seeds of a block train side by side, as one CUDA graph (graphed.py). The text
is Python's own reference (pydoc_data.topics); nothing is downloaded.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import graphed
import torch
from torch import Tensor, nn

from linverify.impls.blocks.cosformer import CosFormer
from linverify.impls.blocks.delta_net import DeltaNet
from linverify.impls.blocks.diag_attention import DiagAttention
from linverify.impls.blocks.gla import GLA
from linverify.impls.blocks.norm_attention import NormAttention
from linverify.impls.blocks.normformer import OPERATIONS, RESIDUAL_SCALE, NormFormer
from linverify.impls.blocks.one_plus_elu import OnePlusElu
from linverify.impls.blocks.performer import Performer
from linverify.impls.blocks.softmax import Softmax
from linverify.stability.dilution import statistics as weights_statistics
from linverify.stability.layers import Stack, Training, figures, relative
from linverify.stability.text import text, windows

Make = Callable[[int], nn.Module]
BLOCKS: dict[str, Make] = {
    "softmax (Pre-LN)": Softmax,
    "1+elu": OnePlusElu,
    "Performer": Performer,
    "cosFormer": CosFormer,
    "NormAttention": NormAttention,
    "DiagAttention": DiagAttention,
    "NormFormer": NormFormer,
    "NormFormer + ResScale": lambda dim: NormFormer(dim, operations=(*OPERATIONS, RESIDUAL_SCALE)),
    "GLA": GLA,
    "DeltaNet": DeltaNet,
}
ORDER = ("1+elu", "Performer", "softmax (Pre-LN)", "NormAttention")
PAPER = {"1+elu": 0.58, "Performer": 0.47, "softmax (Pre-LN)": 0.25, "NormAttention": 0.20}
SMALL = Training(layers=6, width=64, steps=100, batch=4, length=64)


@dataclass
class Run:
    """One block, one seed.

    Attributes:
        figures: of D5, of the whole blocks.
        spread: of the mixers alone: std / mean over the steps, median of the layers.
        dilution: weight of the nearest 40 % of tokens over that of uniform weights, layer by layer, after training.
        entropy: of the rows over that of uniform ones, layer by layer.
        median_by_step: |grad W| / |W| of the mixers, median of the layers, step by step.
        seconds: of all seeds of the block, which train side by side.
    """

    figures: dict[str, float]
    spread: float
    dilution: list[float]
    entropy: list[float]
    median_by_step: list[float]
    seconds: float


def run(name: str, plan: Training, seeds: int) -> list[Run]:
    """Train once a seed and look at the weights."""
    torch.set_num_threads(1)  # several blocks train at once
    make = BLOCKS[name]
    start = time.perf_counter()
    plans = [replace(plan, seed=seed) for seed in range(seeds)]
    trained = graphed.train(lambda: make(plan.width), plans, mixers)
    found = []
    for each, (history, g, model) in zip(plans, trained, strict=True):
        settled = g[max(1, plan.steps // 10) :]
        spread = float((settled.std(0) / settled.mean(0)).median())
        near, entropy = zip(*looked_at(model, each), strict=True)
        by_step = [float(f"{x:.5g}") for x in g.median(1).values.tolist()]
        found.append(Run(figures(history), spread, list(near), list(entropy), by_step, 0.0))
    return [replace(r, seconds=round(time.perf_counter() - start, 1)) for r in found]


def attempt(name: str, plan: Training, seeds: int) -> tuple[str, list[Run] | str]:
    """The runs of a block, or why there are none: the other blocks are measured all the same."""
    try:
        return name, run(name, plan, seeds)
    except Exception as error:  # whatever a device may raise
        return name, f"{type(error).__name__}: {error}"


def mixers(model: Stack) -> Tensor:
    """|grad W| / |W| of each layer's mixer [layers]."""
    return torch.stack([relative(block.mixer) for block in model.blocks])


@torch.no_grad()
def looked_at(model: Stack, plan: Training) -> Iterator[tuple[float, float]]:
    """Locality over that of uniform weights and entropy of every layer on real text, means of its heads."""
    source = text()
    tokens, _ = windows(source, 4, plan.length, torch.Generator().manual_seed(plan.seed + 1))
    with weights(model) as found:
        model(tokens.to(plan.device))
    for p in found:
        all_of = [weights_statistics(row.double().cpu()) for head in p.movedim(2, 1) for row in head]
        near = statistics.mean(s["locality"] / s["uniform"] for s in all_of)
        yield near, statistics.mean(s["entropy"] for s in all_of)


@contextmanager
def weights(model: Stack) -> Iterator[list[Tensor]]:
    """Have every mixer note its weights [B, T, H, T] as it runs: what one-hot values are turned into."""
    found: list[Tensor] = []
    hooks = []

    def note(mixer: nn.Module, given: tuple[Tensor, ...]) -> None:
        (x,) = given
        T = x.shape[1]
        one_hot = torch.eye(T, device=x.device, dtype=x.dtype).expand(x.shape[0], T, T)[:, :, None]
        operands = {**mixer.operands(x), "v": one_hot.expand(-1, -1, mixer.heads, -1)}
        found.append(mixer.function(**operands, **mixer.more(x), **mixer.parameters_of_form)[0])

    hooks += [b.mixer.register_forward_pre_hook(note) for b in model.blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def mean(values: list[float]) -> str:
    """Mean and, of several, the half range."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.2f}" + (f" ± {half:.2f}" if len(values) > 1 else "")


def table(runs: dict[str, list[Run]]) -> Iterator[str]:
    """One row a block."""
    yield (
        "| block | spread of the mixers | of whole blocks | mismatch R | q99/q50 | first layers | last layers | entropy, first "
        "| loss |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, found in runs.items():
        half = max(1, len(found[0].dilution) // 3)
        cells = [
            mean([r.spread for r in found]),
            mean([r.figures["spread"] for r in found]),
            mean([r.figures["mismatch"] for r in found]),
            mean([r.figures["tail"] for r in found]),
            mean([statistics.mean(r.dilution[:half]) for r in found]),
            mean([statistics.mean(r.dilution[-half:]) for r in found]),
            mean([statistics.mean(r.entropy[:half]) for r in found]),
            mean([r.figures["last loss"] for r in found]),
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def told(runs: dict[str, list[Run]]) -> Iterator[str]:
    """What became of the claims, in words made from the numbers."""
    if all(name in runs for name in ORDER):
        spread = {n: [r.spread for r in runs[n]] for n in ORDER}
        came = sorted(ORDER, key=lambda n: -statistics.mean(spread[n]))
        pairs = [(a, b, sum(x > y for x, y in zip(spread[a], spread[b], strict=True))) for a, b in pairwise(ORDER)]
        seeds = len(spread[ORDER[0]])
        yield (
            f"* **Relative spread of gradients.** Claimed: {' > '.join(ORDER)} "
            f"({', '.join(f'{PAPER[n]:.2f}' for n in ORDER)} over 50 000 steps). Here: "
            + " > ".join(f"{n} {mean(spread[n])}" for n in came)
            + (". The order is the claimed one" if tuple(came) == ORDER else ". The order is not the claimed one")
            + f"; seed by seed (of {seeds}) "
            + ", ".join(f"{a} > {b} in {count}" for a, b, count in pairs)
            + "."
        )
    if "softmax (Pre-LN)" in runs and "1+elu" in runs:
        near = {n: mean([statistics.mean(r.dilution[:2]) for r in runs[n]]) for n in ("softmax (Pre-LN)", "1+elu")}
        yield (
            "* **Dilution of the first layers.** Claimed: softmax is local where 1+elu is not. Here the nearest 40 % of tokens "
            f"get {near['softmax (Pre-LN)']} times their uniform share in the first two layers of softmax, "
            f"{near['1+elu']} times in those of 1+elu."
        )
    if "softmax (Pre-LN)" in runs and "NormFormer" in runs:
        ratio = {n: mean([r.figures["mismatch"] for r in runs[n]]) for n in ("softmax (Pre-LN)", "NormFormer")}
        yield (
            "* **Mismatch between layers.** Claimed: under Pre-LN first layers have larger gradients, less so in NormFormer. "
            f"Here first over last is {ratio['softmax (Pre-LN)']} under Pre-LN, {ratio['NormFormer']} with "
            "NormFormer's three operations."
        )


def write(
    path: Path, record: dict[str, object], found: dict[str, list[Run]], failed: dict[str, str], start: float
) -> None:
    """The record so far."""
    runs = {n: [asdict(r) for r in found[n]] for n in BLOCKS if n in found}
    seconds = round(time.perf_counter() - start, 1)
    path.write_text(json.dumps({**record, "seconds": seconds, "failed": failed, "runs": runs}) + "\n", encoding="utf-8")


def main() -> None:
    """Train all blocks and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("layers", "width", "steps", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(SMALL, name))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; small models do not fill a GPU")
    parser.add_argument("--seconds", type=float, default=86400.0, help="what is not done by then is named and ended")
    parser.add_argument("--only", action="append", choices=list(BLOCKS))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    plan = Training(given.layers, given.width, given.steps, given.batch, given.length, 0, given.device)
    start = time.perf_counter()
    record = {"training": asdict(plan), "seeds": given.seeds, "torch": torch.__version__}
    found: dict[str, list[Run]] = {}
    failed: dict[str, str] = {}
    names = given.only or [*ORDER, *(n for n in BLOCKS if n not in ORDER)]  # those of the claims first
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        arriving = pool.imap_unordered(partial(attempt, plan=plan, seeds=given.seeds), names)
        while len(found) + len(failed) < len(names):
            try:
                name, came = arriving.next(max(0.0, given.seconds - (time.perf_counter() - start)))
            except multiprocessing.TimeoutError:
                failed |= {n: "not done when the time was up" for n in names if n not in {*found, *failed}}
                break
            if isinstance(came, str):
                failed[name] = came
            else:
                found[name] = came
            print(
                f"{name}: {came if isinstance(came, str) else f'{came[0].seconds:.0f} s'}", file=sys.stderr, flush=True
            )
            if given.json:  # what was measured stays, whatever happens next
                write(given.json, record, found, failed, start)
    runs = {n: found[n] for n in BLOCKS if n in found}
    if given.json:
        write(given.json, record, found, failed, start)
    lines = [*table(runs), "", *told(runs)]
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
