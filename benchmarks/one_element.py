"""Changes of one element of o in captured H100 results: by the rule for unknown kernels, by its bare core, and by recipe.

    python benchmarks/one_element.py FOLDER [--jobs 2] [--only none,scalar]

The bare core is the widest of two recipes, operands in the input's format or in truncated TF32, in chunks of 16 and of 64: no
screen, and none of the recipes that the rule has learned of since. FOLDER is that of h100_recipes.py. Prints a table of the
share of changes that are found; a change counts where the result is rejected, and passes as it is.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from captured import Captured, captured, one_thread
from h100_recipes import element, places

from linverify.declared import declared
from linverify.dtype import BF16, FP16, TF32
from linverify.judge import Judge
from linverify.recipe import Recipe, Stack, uniform
from linverify.reference.question import Question
from linverify.rule import GENERIC, Rule

SIZES = {"bf16": (0.03, 0.1, 0.3), "fp16": (0.01, 0.03, 0.1)}
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


def found(number: int) -> list[tuple[str, float, str, bool]]:
    """Dtype, size and rule of each change of a case, and whether it is found."""
    case = CASES[number]
    o, precision, declaration = case.results["o"], case.precision, declared(case.recipe)
    assert declaration is not None
    core, usual = Core(case.operator, "cpu"), Judge(case.operator, "cpu")
    bare, answer = core.answer(case.problem), usual.answer(case.problem)
    bare.variances[precision], bare.rounded[precision] = {}, frozenset()  # the screen knows nothing
    ways = ((core, bare, None), (usual, answer, None), (usual, answer, declaration.recipe(case.dtype, precision)))
    rows = []
    for rule, (judge, known, recipe) in zip(RULES, ways, strict=True):
        sound = judge.score(known, "o", o, precision, recipe).outcome != "reject"
        for size in SIZES[case.dtype]:
            for place in places(case):
                outcome = judge.score(known, "o", element(o, place, size), precision, recipe).outcome
                rows.append((case.dtype, size, rule, sound and outcome == "reject"))
    return rows


def table(rows: list[tuple[str, float, str, bool]]) -> Iterator[str]:
    """Shares of changes that are found, as Markdown."""
    columns = [(dtype, size) for dtype, sizes in SIZES.items() for size in sizes]
    yield "| " + " | ".join(["one element of o changed by", *(f"{d} {s:g} RMS" for d, s in columns)]) + " |"
    yield "| --- |" + " --- |" * len(columns)
    hits, all_of = Counter(r[:3] for r in rows if r[3]), Counter(r[:3] for r in rows)
    for rule in RULES:
        shares = [f"{hits[d, s, rule] / n:.2f}" if (n := all_of[d, s, rule]) else "-" for d, s in columns]
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
