"""From variances of the folded terms' gradients to those of the inputs' gradients: the chain rule for errors.

For `linverify.analytic`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from linverify.reference.question import Question

# Draws that estimate the variance of a sum of errors.
_DRAWS = 16
# What moves numbers about and leaves them as they are, by the names of its nodes in the graph.
_MOVES = frozenset(
    f"{name}Backward"
    for name in (
        *("Alias", "AsStrided", "Cat", "Clone", "ConstantPadNd", "Expand", "Flip", "Index", "IndexSelect", "Permute"),
        *(
            "Repeat",
            "ReshapeAlias",
            "Select",
            "Slice",
            "Split",
            "Squeeze",
            "Stack",
            "T",
            "ToCopy",
            "Transpose",
            "Unbind",
        ),
        *("UnsafeView", "Unsqueeze", "View"),
    )
)
# Name of the variance of a log decay's gradient that adds up from the last token to the first, for inputs that all share.
SHARED = "log_decay, shared"


def by_input(question: Question, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variances by input, of inputs that enter through terms whose variance is known."""
    rows = {n: t for n, t in question.rows.terms().items() if t.requires_grad}
    ways = {term: _reached(end) for term, end in rows.items()}
    known = {}
    for name in question.problem.wrt:
        through = {term: found[leaf] for term, found in ways.items() if (leaf := question.leaves[name]) in found}
        if through and through.keys() <= terms.keys():
            known[name] = all(through.values())
    moved = [n for n, only in known.items() if only]
    found: dict[str, Tensor] = {}
    if moved:
        ends = [n for n in rows if n in terms]
        leaves, given = [question.leaves[n] for n in moved], [terms[n] for n in ends]
        # where numbers are only moved about, several terms of one input add up
        pulled = torch.autograd.grad([rows[n] for n in ends], leaves, given, retain_graph=True)
        found = dict(zip(moved, pulled, strict=True))
    found |= _mapped(question, terms, [n for n in known if n not in moved])
    return {"dinitial_state" if n == "initial_state" else f"d{n}": found[n] for n in known}


def _reached(end: Tensor) -> dict[Tensor, bool]:
    """Leaves that a tensor comes from, each with whether its numbers are only moved about on every way.

    Read off the graph that automatic differentiation keeps: nothing is computed.
    """
    if end.grad_fn is None:
        return {end: True}
    found: dict[Tensor, bool] = {}
    seen, left = set(), [(end.grad_fn, True)]
    while left:
        here = left.pop()
        if here in seen:
            continue
        seen.add(here)
        node, moved = here
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[leaf] = found.get(leaf, True) and moved
        moved = moved and node.name().rstrip("0123456789") in _MOVES
        left += [(before, moved) for before, _ in node.next_functions if before is not None]
    return found


def _mapped(question: Question, terms: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Variances of inputs that enter through functions, or are shared by all tokens, by the chain rule.

    Errors of random sign are pulled back and squared. Where a function works element by element all draws agree; sums over
    channels, tokens and heads are estimates. Errors of a log decay's gradient are shared by all earlier tokens, which matters
    to an input that all tokens share.
    """
    device = question.rows.q.device
    generator = torch.Generator(device=device).manual_seed(0)
    known = {n: t for n, t in question.rows.terms().items() if t.requires_grad and n in terms}
    found = {}
    for name in names:
        shared = name != "initial_state" and "T" not in question.operator.input(name).axes
        upstream = []
        for n in known:
            steps = terms[SHARED if shared and n == "log_decay" else n]
            if shared and n == "log_decay":  # what each token adds to the sum over the later ones
                steps = (steps - torch.nn.functional.pad(steps, (0, 0, 0, 1))[:, 1:]).clamp(min=0)
            signs = torch.randint(2, (_DRAWS, *steps.shape), generator=generator, device=device) * 2.0 - 1
            errors = signs * steps.sqrt()
            upstream.append(errors.flip(2).cumsum(2).flip(2) if shared and n == "log_decay" else errors)
        (pulled,) = torch.autograd.grad(
            list(known.values()), question.leaves[name], upstream, is_grads_batched=True, retain_graph=True
        )
        found[name] = pulled.square().mean(0)
    return found
