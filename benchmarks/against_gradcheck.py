"""The quick profile beside torch.autograd.gradcheck and a plain torch.allclose loop, and the two float64 references.

    python benchmarks/against_gradcheck.py [--device cpu] [--kinds N] [--correct N] [--out docs/published/against-gradcheck]

Three ways to test a kernel, on the same kernels of tests/zoo: one bug in torch of each kind, of a kernel that has come least
often so far and there the catalogue's first, and the correct kernels that they came from.

* linverify: `check --profile quick`; of a bug up to the first violation.
* gradcheck: float64 on the CPU, T = 18, H = 2, K = 3, V = 2, all inputs. It compares a kernel with
  itself: a wrong output whose gradient fits is none of its business.
* allclose: outputs, states and gradients against the recurrent (or naive) form in float32, rtol = atol = 1e-2 (KernelBench's),
  B = 2, H = 3, K = V = 32; T = 64, 100 and 128; three seeds; float32 and bfloat16.

Then the float64 references with gradients, step by step against chunks, T = 2048. Everything comes from one run, and
`--out` writes it as a page and a record.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # when a test loads this file

import zoo_rivals
from rules import not_close

from linverify import draw, registry
from linverify.case import Case
from linverify.impls import torch_naive, torch_recurrent
from linverify.plan import Plan
from linverify.reference import chunkwise, stepwise
from linverify.session import check
from linverify.shared import Shared
from linverify.silence import Silence
from tests.zoo.catalogue import BUGS
from tests.zoo.record import Bug, Entry

CLOSE = 1e-2
LENGTHS, SEEDS, DTYPES = (64, 100, 128), (0, 1, 2), ("fp32", "bf16")
REFERENCES = ("linear_attention", "simple_gla", "gla", "rwkv6", "delta_rule", "gated_delta_rule", "kda")
Way = Callable[[Entry, str, Shared], tuple[int, bool]]
"""Tests an entry on a device: how many cases it judged, and whether it objects."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One way's answer about one kernel."""

    way: str
    kernel: str
    kind: str  # of the bug; "" of a correct kernel
    objects: bool
    cases: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """The two references of one operator: seconds with gradients, and the largest difference over the largest value."""

    operator: str
    stepwise: float
    chunkwise: float
    difference: float


def by_linverify(entry: Entry, device: str, shared: Shared) -> tuple[int, bool]:
    """Ask the quick profile; a bug up to the first violation."""
    with tempfile.TemporaryDirectory() as folder:
        target = f"{entry.write(Path(folder))}::{entry.function}"
        plan = Plan(target, entry.operator, device=device, profile="quick", fail_fast=bool(entry.edits))
        (result,) = check(plan, Silence(), shared)
    return result.cases, result.verdict == "violation"


def by_gradcheck(entry: Entry, _device: str, _: Shared) -> tuple[int, bool]:
    """Ask gradcheck; a kernel that raises is objected to."""
    with zoo_rivals.loaded(entry) as function:
        try:
            return 1, not zoo_rivals.tolerates(registry.operator(entry.operator), function)
        except Exception:  # whatever it raises
            return 1, True


def by_allclose(entry: Entry, device: str, _: Shared) -> tuple[int, bool]:
    """Ask torch.allclose, up to the first objection."""
    operator, asked = registry.operator(entry.operator), 0
    forms = [vars(module).get(entry.operator) for module in (torch_recurrent, torch_naive)]
    right = next(form for form in forms if form is not None)
    with zoo_rivals.loaded(entry) as function:
        for dtype in DTYPES:
            for T in LENGTHS:
                for seed in SEEDS:
                    sizes = {"B": 2, "T": T, "H": 3, "K": 32, "V": 32}
                    problem = on(zoo_rivals.posed(operator, dtype, sizes, backward=True, seed=seed), device)
                    asked += 1
                    wide = problem.with_(tensors={n: x.float() for n, x in problem.tensors.items()})
                    expected = zoo_rivals.results(right, wide, backward=True)
                    try:
                        got = zoo_rivals.results(function, problem, backward=True)
                    except Exception:  # whatever it raises
                        return asked, True
                    if any(not_close(x, expected[n].double(), CLOSE, CLOSE) for n, x in got.items()):
                        return asked, True
    return asked, False


WAYS: dict[str, Way] = {"linverify": by_linverify, "gradcheck": by_gradcheck, "allclose": by_allclose}


def on(problem: zoo_rivals.Problem, device: str) -> zoo_rivals.Problem:
    """The problem with its tensors on a device."""
    state = problem.initial_state
    return problem.with_(
        tensors={n: x.to(device) for n, x in problem.tensors.items()},
        cotangents={n: x.to(device) for n, x in problem.cotangents.items()},
        initial_state=None if state is None else state.to(device),
    )


def subjects(kinds: int, correct: int) -> list[Entry]:
    """One bug in torch of each kind, of the kernel that has come least often so far, and the correct kernels."""
    chosen: list[Bug] = []
    for kind in dict.fromkeys(b.kind for b in BUGS if not b.triton):
        of = [b for b in BUGS if b.kind == kind and not b.triton]
        chosen.append(min(of, key=lambda b: sum(c.kernel == b.kernel for c in chosen)))
    bugs: list[Entry] = list(chosen[:kinds])
    twins = {b.kernel: replace(b, name=b.kernel, edits=()) for b in bugs}
    return [*bugs, *list(twins.values())[:correct]]


def trials(entries: list[Entry], device: str) -> Iterator[Trial]:
    """Every way on every kernel."""
    shared = Shared()
    for entry in entries:
        for way, ask in WAYS.items():
            start = perf_counter()
            cases, objects = ask(entry, device, shared)
            kind = str(entry.kind) if isinstance(entry, Bug) and entry.edits else ""
            yield Trial(way, entry.name, kind, objects, cases, perf_counter() - start)


def sizes(device: str) -> dict[str, int]:
    """Sizes of the references' problem."""
    B, H, width = (2, 4, 128) if device.startswith("cuda") else (1, 2, 64)
    return {"B": B, "T": 2048, "H": H, "K": width, "V": width}


def ladder(name: str, device: str, **changes: int) -> Ladder:
    """Both references of an operator, once each after a chunkwise run that does not count."""
    operator = registry.operator(name)
    gate = "mild" if operator.gated else "none"
    asked = Case(name, dtype="fp64", gate=gate, state="normal", final_state=True, cotangent="both")
    case = asked.with_(**{**sizes(device), **changes})
    problem = draw.problem(case, operator)

    def run(reference: Callable[..., dict[str, torch.Tensor]]) -> tuple[float, dict[str, torch.Tensor]]:
        start = perf_counter()
        results = reference(problem, operator, device=device)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return perf_counter() - start, results

    run(chunkwise)
    fast = [run(chunkwise) for _ in range(3)]
    slow, expected = run(stepwise)
    got = fast[0][1]
    difference = max(float((got[n] - x).abs().max() / x.abs().max()) for n, x in expected.items())
    return Ladder(name, slow, statistics.median(s for s, _ in fast), difference)


def page(made: list[Trial], ladders: list[Ladder], where: str, sized: str) -> str:
    """The tables in Markdown."""
    bugs, right = ([t for t in made if bool(t.kind) is planted] for planted in (True, False))
    lines = [
        "# Three ways to test a kernel, and two references",
        "",
        f"Made by `python benchmarks/against_gradcheck.py` in one run on {where}.",
        "",
        "| way | bugs found | correct kernels objected to | seconds on a bug (median, most) | on a correct kernel | cases/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way in WAYS:
        of, others = ([t for t in part if t.way == way] for part in (bugs, right))
        seconds = [t.seconds for t in of] or [0.0]
        whole = [t.seconds for t in others] or [0.0]
        rate = sum(t.cases for t in others) / max(sum(whole), 1e-9)
        lines.append(
            f"| {way} | {sum(t.objects for t in of)} of {len(of)} | {sum(t.objects for t in others)} of {len(others)} "
            f"| {statistics.median(seconds):.1f}, {max(seconds):.1f} | {statistics.median(whole):.1f} | {rate:.1f} |"
        )
    lines += ["", f"| bug | kind | {' | '.join(WAYS)} |", "| --- | --- |" + " --- |" * len(WAYS)]
    for name, kind in dict.fromkeys((t.kernel, t.kind) for t in bugs):
        told = {t.way: f"{'found' if t.objects else 'no'} ({t.seconds:.1f} s)" for t in bugs if t.kernel == name}
        lines.append(f"| `{name}` | {kind} | {' | '.join(told[w] for w in WAYS)} |")
    lines += [
        "",
        f"The float64 references with gradients, {sized}:",
        "",
        "| operator | step by step, s | chunks, s | ratio | largest relative difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{x.operator}` | {x.stepwise:.2f} | {x.chunkwise:.4f} | {x.stepwise / x.chunkwise:.1f} | {x.difference:.1e} |"
        for x in ladders
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kinds", type=int, default=99, help="at most so many bugs")
    parser.add_argument("--correct", type=int, default=4, help="at most so many correct kernels")
    parser.add_argument("--out", help="path of the page and the record, without .md and .json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made, ladders = [], []
    for trial in trials(subjects(given.kinds, given.correct), given.device):
        made.append(trial)
        print(
            f"{trial.kernel}: {trial.way} {trial.objects} ({trial.cases} cases, {trial.seconds:.1f} s)", file=sys.stderr
        )
    for name in REFERENCES:
        ladders.append(ladder(name, given.device))
        print(ladders[-1], file=sys.stderr)
    gpu = given.device.startswith("cuda")
    where = (
        f"{torch.cuda.get_device_name() if gpu else platform.machine() + ' CPU, one thread'}, torch {torch.__version__}"
    )
    sized = ", ".join(f"{a} = {n}" for a, n in sizes(given.device).items())
    text = page(made, ladders, where, sized)
    print(text)
    if given.out:
        Path(given.out + ".md").write_text(text, encoding="utf-8")
        record = {
            "where": where,
            "sizes": sizes(given.device),
            "trials": [asdict(t) for t in made],
            "references": [asdict(x) for x in ladders],
        }
        Path(given.out + ".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
