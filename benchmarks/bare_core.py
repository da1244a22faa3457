"""Small faults in captured H100 results: by the rule for unknown kernels, by its bare core, and by the declared recipe.

    python benchmarks/bare_core.py FOLDER [--jobs 2] [--only none,scalar]

The bare core is the widest of two recipes, operands in the input's format or in truncated TF32, in chunks of 16 and of 64: no
screen, and none of the recipes that the rule has learned of since. FOLDER is that of h100_recipes.py. Prints a table of the
share of faults that are found: one element of o changed, or doubled, or heads that take each other's gates (in any result).
A fault counts where a result is rejected that passes as it is.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from captured import Captured, captured, one_thread
from h100_recipes import Fault, element, faults, places
from torch import Tensor

from linverify.declared import declared
from linverify.dtype import BF16, FP16, TF32
from linverify.judge import Judge
from linverify.recipe import Recipe, Stack, uniform
from linverify.reference.question import Question
from linverify.rule import GENERIC, Rule
from linverify.score import Answer

SIZES = {"bf16": (0.03, 0.1, 0.3), "fp16": (0.01, 0.03, 0.1)}
DOUBLED, SWAPPED = "one element x2", "heads' gates swapped"
RULES = ("bare core", "generic rule", "declared recipe")
CASES: list[Captured] = []


class Core(Judge):
    """Judges an unknown kernel in 16 bits by the bare core."""

    def stacks(self, question: Question, recipe: str | Recipe) -> tuple[Rule, tuple[tuple[int, Stack | None], ...]]:
        """Of the two recipes in both sizes of chunks, whatever is asked."""
        del question
        formats = ({"bf16": BF16, "fp16": FP16}[str(recipe)], TF32)
        return GENERIC, tuple(
            (n, tuple(uniform(f.name, chunk, f) for f in formats)) for n, chunk in enumerate((16, 64))
        )


def planted(case: Captured, answer: Answer) -> Iterator[tuple[str, list[Fault]]]:
    """The faults, with all results that carry one."""
    o = case.results["o"]
    for size in SIZES[case.dtype]:
        for place in places(case):
            yield f"{size:g} RMS", [("", "o", element(o, place, size))]
    others = list(faults(case, answer))
    for name in (DOUBLED, SWAPPED):
        if results := [fault for fault in others if fault[0].partition("|")[0] == name]:
            yield name, results


def found(number: int) -> list[tuple[str, str, str, bool]]:
    """Dtype, name and rule of each fault of a case, and whether it is found."""
    case = CASES[number]
    precision, declaration = case.precision, declared(case.recipe)
    assert declaration is not None
    core, usual = Core(case.operator, "cpu"), Judge(case.operator, "cpu")
    bare, answer = core.answer(case.problem), usual.answer(case.problem)
    bare.variances[precision], bare.rounded[precision] = {}, frozenset()  # the screen knows nothing
    ways = ((core, bare, None), (usual, answer, None), (usual, answer, declaration.recipe(case.dtype, precision)))
    rows, every = [], list(planted(case, answer))
    for rule, (judge, known, recipe) in zip(RULES, ways, strict=True):

        def rejected(
            result: str, value: Tensor, judge: Judge = judge, known: Answer = known, recipe: Recipe | None = recipe
        ) -> bool:
            return judge.score(known, result, value, precision, recipe).outcome == "reject"

        sound = {n for n, value in case.results.items() if not rejected(n, value)}
        for name, results in every:
            rows.append((case.dtype, name, rule, any(n in sound and rejected(n, value) for _, n, value in results)))
    return rows


def table(rows: list[tuple[str, str, str, bool]]) -> Iterator[str]:
    """Shares of faults that are found, as Markdown."""
    columns = [(dtype, name) for dtype in SIZES for name in dict.fromkeys(r[1] for r in rows if r[0] == dtype)]
    yield "| " + " | ".join(["rule", *(f"{d} {name}" for d, name in columns)]) + " |"
    yield "| --- |" + " --- |" * len(columns)
    hits, all_of = Counter(r[:3] for r in rows if r[3]), Counter(r[:3] for r in rows)
    for rule in RULES:
        shares = [f"{hits[d, s, rule] / all_of[d, s, rule]:.2f} of {all_of[d, s, rule]}" for d, s in columns]
        yield "| " + " | ".join([rule, *shares]) + " |"


def main() -> None:
    """Ask every case in 16 bits, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    one_thread()
    kernels = tuple(k for k in given.only.split(",") if k)
    CASES.extend(c for c in captured(given.folder, kernels=kernels) if c.dtype in SIZES)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("fork")) as pool:
        rows = [row for case in pool.map(found, range(len(CASES))) for row in case]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
