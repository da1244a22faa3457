"""From variances of the folded terms' gradients to those of the inputs' gradients: the chain rule for errors.

For `linverify.analytic`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from linverify.reference.question import Question

# Draws that estimate the variance of a sum of errors.
_DRAWS = 16


def by_input(question: Question, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variances by input, of inputs that enter through terms whose variance is known."""
    names = question.problem.wrt
    leaves = [question.leaves[n] for n in names]
    sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    lost = set()
    for n, t in question.rows.terms().items():
        if not t.requires_grad:
            continue
        upstream = [torch.ones_like(t), t.detach(), terms.get(n, torch.zeros_like(t))]
        pulled = [torch.autograd.grad(t, leaves, u, retain_graph=True, allow_unused=True) for u in upstream]
        for name, *parts in zip(names, *pulled, strict=True):
            if parts[0] is None:
                continue
            lost |= {name} if n not in terms else set()
            before = sums.get(name)
            sums[name] = tuple(parts if before is None else [x + y for x, y in zip(before, parts, strict=True)])
    known = {n: parts for n, parts in sums.items() if n not in lost}
    plain = {n: v for n, (count, same, v) in known.items() if torch.equal(same, count * question.leaves[n].detach())}
    found = plain | _mapped(question, terms, [n for n in known if n not in plain])
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
            steps = terms[n]
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
