"""Do blocks' gradients behave in training as the literature says? Every block of impls/blocks is trained on the same real text.

Two claims of "The Devil in Linear Transformer" (Qin et al. 2022, arXiv:2210.10340) are put to the test: the relative standard
deviation of gradients over training falls in the order 1+elu, Performer, softmax, NormAttention; and linear attention dilutes
the first layers' attention where softmax and DiagAttention stay local. And one of NormFormer (Shleifer et al. 2021,
arXiv:2110.09456): under Pre-LN the first layers' gradients are larger than the last ones', and three operations lessen that.

    python benchmarks/stability_training.py [--device cuda:0 --layers 12 --width 256 --steps 2000 --batch 32 --length 256]
                                            [--seeds 3] [--jobs 8] [--only NAME]... [--markdown FILE] [--json FILE]

The defaults take minutes on a CPU. The text is Python's own reference (pydoc_data.topics); nothing is downloaded.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
from linverify.stability.layers import Stack, Training, figures, relative, train
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
        mixers: |grad W| / |W| of the mixers, step by step, layer by layer.
    """

    figures: dict[str, float]
    spread: float
    dilution: list[float]
    entropy: list[float]
    mixers: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0


def run(name: str, plan: Training) -> Run:
    """Train and look at the weights."""
    torch.set_num_threads(1)  # several train at once
    make = BLOCKS[name]
    log: list[Tensor] = []
    last: list[Stack] = []
    start = time.perf_counter()

    def heard(_: int, model: Stack) -> None:
        log.append(torch.stack([relative(b.mixer) for b in model.blocks]).cpu().double())
        last[:] = [model]

    history = train(lambda: make(plan.width), plan, heard)
    g = torch.stack(log)
    settled = g[max(1, plan.steps // 10) :]
    spread = float((settled.std(0) / settled.mean(0)).median())
    near, entropy = zip(*looked_at(last[0], plan), strict=True)
    return Run(figures(history), spread, list(near), list(entropy), g.tolist(), time.perf_counter() - start)


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
        spread = {n: statistics.mean([r.spread for r in runs[n]]) for n in ORDER}
        came = sorted(ORDER, key=lambda n: -spread[n])
        yield (
            f"* **Relative spread of gradients.** Claimed: {' > '.join(ORDER)} "
            f"({', '.join(f'{PAPER[n]:.2f}' for n in ORDER)} over 50 000 steps). Here: "
            + " > ".join(f"{n} {spread[n]:.2f}" for n in came)
            + (". The order is the claimed one." if tuple(came) == ORDER else ". The order is not the claimed one.")
        )
    if "softmax (Pre-LN)" in runs and "1+elu" in runs:
        near = {n: statistics.mean(runs[n][0].dilution[:2]) for n in ("softmax (Pre-LN)", "1+elu")}
        yield (
            "* **Dilution of the first layers.** Claimed: softmax is local where 1+elu is not. Here the nearest 40 % of tokens "
            f"get {near['softmax (Pre-LN)']:.2f} times their uniform share in the first two layers of softmax, "
            f"{near['1+elu']:.2f} times in those of 1+elu."
        )
    if "softmax (Pre-LN)" in runs and "NormFormer" in runs:
        ratio = {
            n: statistics.mean([r.figures["mismatch"] for r in runs[n]]) for n in ("softmax (Pre-LN)", "NormFormer")
        }
        yield (
            "* **Mismatch between layers.** Claimed: under Pre-LN first layers have larger gradients, less so in NormFormer. "
            f"Here first over last is {ratio['softmax (Pre-LN)']:.2f} under Pre-LN, {ratio['NormFormer']:.2f} with "
            "NormFormer's three operations."
        )


def main() -> None:
    """Train all blocks and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("layers", "width", "steps", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(SMALL, name))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; small models do not fill a GPU")
    parser.add_argument("--only", action="append", choices=list(BLOCKS))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    plan = Training(given.layers, given.width, given.steps, given.batch, given.length, 0, given.device)
    record = {"training": asdict(plan), "seeds": given.seeds, "torch": torch.__version__}
    found: dict[tuple[str, int], Run] = {}
    runs: dict[str, list[Run]] = {}
    names = given.only or list(BLOCKS)
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        started = {
            pool.submit(run, name, replace(plan, seed=seed)): (name, seed)
            for seed in range(given.seeds)
            for name in names
        }
        for done in as_completed(started):
            name, seed = started[done]
            found[name, seed] = done.result()
            print(f"{name}, seed {seed}: {found[name, seed].seconds:.0f} s", file=sys.stderr, flush=True)
            runs = {n: [r for s in range(given.seeds) if (r := found.get((n, s)))] for n in names}
            runs = {n: r for n, r in runs.items() if r}
            if given.json:  # what was measured stays, whatever happens next
                record["runs"] = {n: [asdict(r) for r in rs] for n, rs in runs.items()}
                given.json.write_text(json.dumps(record) + "\n", encoding="utf-8")
    lines = [*table(runs), "", *told(runs)]
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
