"""From variances of the folded terms' gradients to those of the inputs' gradients: the chain rule for errors.

For `linverify.analytic`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from linverify.reference.question import Question

# Draws that estimate the variance of a sum of errors.
_DRAWS = 16
# Name of the variance of a log decay's gradient that adds up from the last token to the first, for inputs that all share.
SHARED = "log_decay, shared"


def by_input(question: Question, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variances by input, of inputs that enter through terms whose variance is known."""
    rows = {n: t for n, t in question.rows.terms().items() if t.requires_grad}
    names = question.problem.wrt
    leaves = [question.leaves[n] for n in names]
    if not rows or not names:
        return {}

    def pulled(upstream: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients of the leaves; several terms of one input add up."""
        ends = [rows[n] for n in upstream]
        return torch.autograd.grad(ends, leaves, list(upstream.values()), retain_graph=True, allow_unused=True)

    counts = pulled({n: torch.ones_like(t) for n, t in rows.items()})
    same = pulled({n: t.detach() for n, t in rows.items()})
    spread = pulled({n: terms[n] if n in terms else torch.zeros_like(t) for n, t in rows.items()})
    unknown = {n: torch.zeros_like(t) for n, t in rows.items() if n not in terms}
    lost = pulled(unknown) if unknown else (None,) * len(names)
    known = {
        n: (count, x, v)
        for n, count, x, v, through in zip(names, counts, same, spread, lost, strict=True)
        if count is not None and x is not None and v is not None and through is None
    }
    if not known:
        return {}
    # an input that enters as it is, any number of times; all are compared in one transfer
    apart = [(x != count * question.leaves[n].detach()).any() for n, (count, x, _) in known.items()]
    mapped = [n for n, differs in zip(known, torch.stack(apart).tolist(), strict=True) if differs]
    found = {n: v for n, (_, _, v) in known.items() if n not in mapped} | _mapped(question, terms, mapped)
    return {"dinitial_state" if n == "initial_state" else f"d{n}": variance for n, variance in found.items()}


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
