"""All mutants of a source: every mutator at every place, each resulting text once, in reading order."""

import ast
import random
from collections.abc import Collection

from linverify.selftest import arithmetic, structure, tensors
from linverify.selftest.edit import Edit
from linverify.selftest.sites import sites

MUTATORS = (*arithmetic.MUTATORS, *tensors.MUTATORS, *structure.MUTATORS)


def mutants(source: str, functions: Collection[str] = ()) -> tuple[Edit, ...]:
    """Return the edits that make the mutants of what these functions reach (of everything, where there are none).

    Raises:
        SyntaxError: the source is no Python.
    """
    found: dict[str, Edit] = {}
    for site in sites(ast.parse(source), functions):
        for mutator in MUTATORS:
            for edit in mutator(site):
                text = edit.applied(source)
                if text != source and _compiles(text):
                    found.setdefault(text, edit)
    return tuple(sorted(found.values(), key=lambda e: (e.line, e.column, e.end_line, e.end_column, e.text)))


def sample(edits: tuple[Edit, ...], count: int, seed: int) -> tuple[Edit, ...]:
    """Return `count` of them in their order, the same for the same seed; all where there are no more."""
    if len(edits) <= count:
        return edits
    chosen = sorted(random.Random(seed).sample(range(len(edits)), count))
    return tuple(edits[i] for i in chosen)


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True
