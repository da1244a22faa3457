"""Realisations of correct kernels: the rounding model of every recipe of a family, run on one problem.

Each realisation gives the error of every result. Gate gradients come in three forms, direct and as the sum of
q dq - k dk (- b db + a da) over later tokens plus the final state's term, taken from the end or as total minus prefix, since
published kernels use all of them and their errors differ in class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.model import Roles, chunked, recurrent, roles
from linverify.noise import U32, Noise
from linverify.operator import Kind
from linverify.recipe import Stack
from linverify.reference.question import Question

GATE_KINDS: tuple[Kind, ...] = ("log_gate", "step_size", "log_rate")
TRAIN, HELD = 2, 1
# Units of each cancelling term: four roundings lie between a kernel's float32 accumulators and the term.
_CANCELLATION = 4.0
_FORMS = ("", ", gate gradient summed from the end", ", gate gradient from prefix sums")

Errors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Errors of one recipe (and one form of the gate gradient), by result.

    Attributes:
        train: [2, *shape] a result: they set the scale.
        held: [1, *shape]: dithered like `train`, kept apart to see what chance does.
        nearest: [1, *shape]: real rounding.
        finite: results that are finite in every realisation.
    """

    name: str
    train: Errors
    held: Errors
    nearest: Errors
    finite: frozenset[str]


def _gate_gradients(
    x: Roles,
    d: Mapping[str, Tensor],
    final: Tensor,
    dstate: Tensor | None,
    noise: Noise,
    *,
    exclusive: bool,
    undecayed: bool,
) -> tuple[Tensor, Tensor]:
    """Two cumulative forms of the log decay's gradient, from the other gradients: readers gain, writers lose.

    The first sums from the end; the second takes prefix sums from the total, which leaves the total's rounding everywhere.
    """

    def term(role: Tensor | None, name: str) -> Tensor:
        return torch.zeros_like(x.q) if role is None else role.detach() * d[name]

    now = [term(x.reading, "reading"), -term(x.k, "k"), -term(x.b, "b")]
    later = [torch.zeros_like(x.q)]
    (later if exclusive else now).append(term(x.q, "q"))
    (later if undecayed else now).append(term(x.a, "a"))
    both, after = sum(now + later), sum(later)
    assert isinstance(both, Tensor)
    if noise.dither:
        # float32 products and gradients that cancel in the sum: a few units of each term, whatever is left of them
        energy = torch.stack(now + later).square().sum(0)
        both = both + _CANCELLATION * U32 * noise.random(both.shape, normal=True) * energy.sqrt()
    end = 0.0 if dstate is None else (final.detach() * dstate).sum(2)[:, None]
    prefix = noise.running_sum(both, 1)
    total = noise.running_sum(both.flip(1), 1)[:, -1:]  # a sum of its own, in another order: they do not cancel exactly
    assert x.log_decay is not None
    forms = [both.flip(1).cumsum(1).flip(1) - after + end, total - prefix + both - after + end]
    scalar = x.log_decay.shape[-1] == 1
    first, second = (f.sum(-1, keepdim=True) if scalar else f for f in forms)
    return first, second


def _onto_terms(d: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by term of the rows: roles of the same term add up."""
    terms = ("q", "k", "v", "state", "log_decay", "beta", "a", "b", "bonus")
    out: dict[str, Tensor] = {n: d[n] for n in terms if n in d}
    for role, term in (("reading", "k"), ("bonus_k", "k"), ("bonus_q", "q")):
        if role in d:
            out[term] = out[term] + d[role]
    return out


def _pull(question: Question, terms: Mapping[str, Tensor], copies: int, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Pull gradients of the folded terms, `copies` realisations at once, back to the inputs."""
    rows = {n: t for n, t in question.rows.terms().items() if t.requires_grad and n in terms}
    if not rows or not names:
        return {}
    batched = [terms[n].to(t.dtype).reshape(copies, *t.shape) for n, t in rows.items()]
    leaves = [question.leaves[n] for n in names]
    grads: Sequence[Tensor | None] = torch.autograd.grad(
        list(rows.values()), leaves, batched, is_grads_batched=True, retain_graph=True, allow_unused=True
    )
    return {
        f"d{n}": torch.zeros(copies, *leaf.shape, dtype=leaf.dtype, device=leaf.device) if g is None else g
        for n, leaf, g in zip(names, leaves, grads, strict=True)
    }


def _run(question: Question, noise: Noise, copies: int, gates: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """Results of `copies` realisations: everything with the direct gate gradient, and gate gradients in cumulative forms."""
    dtype = noise.carrier
    wants = bool(question.problem.cotangents)
    rows = question.rows
    x = roles(rows, copies, dtype, grad=wants)
    kinds = {"exclusive": rows.exclusive, "undecayed": rows.undecayed}
    with torch.set_grad_enabled(wants):
        o, state = (chunked if noise.structure.chunk else recurrent)(x, question.scale, noise, **kinds)
    folding = question.folding
    found = {"o": folding.untokens(o.detach().double().reshape(copies, -1, *o.shape[1:]))}
    if question.problem.final_state:
        found["state"] = question.unstates(state.detach().double().reshape(copies, -1, *state.shape[1:]))
    if not wants:
        return [found]

    def cotangent(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(dtype).repeat(copies, *[1] * (t.dim() - 1))

    do, dstate = cotangent(question.do), cotangent(question.dstate)
    outputs = [(y, c) for y, c in ((o, do), (state, dstate)) if c is not None and y.requires_grad]
    named = x.named()
    grads: Sequence[Tensor | None] = torch.autograd.grad(
        [y for y, _ in outputs], list(named.values()), [c for _, c in outputs], allow_unused=True
    )
    d = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(named.items(), grads, strict=True)}
    terms = _onto_terms(d)
    found |= _pull(question, terms, copies, question.problem.wrt)
    if not gates or x.log_decay is None:
        return [found]
    summed = _gate_gradients(x, d, state, dstate, noise, **kinds)
    return [found, *(_pull(question, {**terms, "log_decay": s}, copies, gates) for s in summed)]


def realise(
    question: Question,
    stack: Stack,
    reference: Mapping[str, Tensor],
    gates: tuple[str, ...],
    generator: torch.Generator,
) -> list[Member]:
    """Run one stack on a problem: three members a recipe where there is a gate gradient, else one."""
    device = question.rows.q.device
    n = question.rows.q.shape[0]
    per = TRAIN + HELD
    dithered = _run(
        question, Noise(stack, per, n, dither=True, generator=generator, device=device), per * len(stack), gates
    )
    nearest = _run(question, Noise(stack, 1, n, dither=False, generator=None, device=device), len(stack), gates)
    members = []
    for form, samples, real in zip(_FORMS, dithered, nearest, strict=False):
        names = list(samples)
        for i, recipe in enumerate(stack):
            errors = {k: v[i * per : (i + 1) * per] - reference[k] for k, v in samples.items()}
            exact = {k: v[i : i + 1] - reference[k] for k, v in real.items()}
            sound = torch.stack(
                [torch.isfinite(errors[k]).all() & torch.isfinite(exact[k]).all() for k in names]
            ).tolist()
            members.append(
                Member(
                    name=recipe.name + form,
                    train={k: e[:TRAIN] for k, e in errors.items()},
                    held={k: e[TRAIN:] for k, e in errors.items()},
                    nearest=exact,
                    finite=frozenset(k for k, ok in zip(names, sound, strict=True) if ok),
                )
            )
    return members
