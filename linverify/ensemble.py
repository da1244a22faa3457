"""Realisations of correct kernels: the rounding model of every recipe of a family, run on one problem.

Each realisation gives the error of every result. Gate gradients come in two forms, direct and as the reverse sum of
q dq - k dk (- b db + a da) plus the final state's term, since published kernels use either and their errors differ in class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.model import Roles, chunked, recurrent, roles
from linverify.noise import Noise
from linverify.recipe import Stack
from linverify.reference.question import Question

GATE_KINDS = ("log_gate", "step_size", "log_rate")
TRAIN, HELD = 2, 1

Errors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Errors of one recipe (and one form of the gate gradient), by result.

    Attributes:
        train: [2, *shape] a result: they set the scale.
        held: [1, *shape]: dithered like `train`, kept apart to see what chance does.
        nearest: [1, *shape]: real rounding.
    """

    name: str
    train: Errors
    held: Errors
    nearest: Errors


def _gate_gradient(x: Roles, d: Mapping[str, Tensor], final: Tensor, dstate: Tensor | None, *, exclusive: bool, undecayed: bool) -> Tensor:
    """The cumulative form of the log decay's gradient, from the other gradients: readers gain, writers lose."""

    def term(name: str) -> Tensor:
        value = getattr(x, name)
        return value.detach() * d[name]

    now, later = -term("k"), torch.zeros_like(x.k)
    if exclusive:
        later = later + term("q")
    else:
        now = now + term("q")
    if x.b is not None:
        now = now - term("b")
        if undecayed:
            later = later + term("a")
        else:
            now = now + term("a")
    if x.reading is not None:
        now = now + term("reading")
    sums = (now + later).flip(1).cumsum(1).flip(1) - later
    if dstate is not None:
        sums = sums + (final.detach() * dstate).sum(2)[:, None]
    assert x.log_decay is not None
    return sums if x.log_decay.shape[-1] > 1 else sums.sum(-1, keepdim=True)


def _onto_terms(x: Roles, d: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by term of the rows: roles of the same term add up."""
    out = {n: d[n] for n in ("q", "k", "v", "state", "log_decay", "beta", "a", "b", "bonus") if n in d}
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
    grads = torch.autograd.grad(list(rows.values()), leaves, batched, is_grads_batched=True, retain_graph=True, allow_unused=True)
    return {
        f"d{n}": torch.zeros(copies, *leaf.shape, dtype=leaf.dtype, device=leaf.device) if g is None else g
        for n, leaf, g in zip(names, leaves, grads, strict=True)
    }


def _run(question: Question, noise: Noise, copies: int, gates: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of `copies` realisations: everything with the direct gate gradient, and gate gradients in cumulative form."""
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
        found["state"] = folding.unstates(state.detach().double().reshape(copies, -1, *state.shape[1:]))
    if not wants:
        return found, {}

    def cotangent(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(dtype).repeat(copies, *[1] * (t.dim() - 1))

    do, dstate = cotangent(question.do), cotangent(question.dstate)
    outputs = [(y, c) for y, c in ((o, do), (state, dstate)) if c is not None and y.requires_grad]
    named = x.named()
    grads = torch.autograd.grad([y for y, _ in outputs], list(named.values()), [c for _, c in outputs], allow_unused=True)
    d = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(named.items(), grads, strict=True)}
    terms = _onto_terms(x, d)
    found |= _pull(question, terms, copies, question.problem.wrt)
    cumulative = {}
    if gates and x.log_decay is not None:
        summed = _gate_gradient(x, d, state, dstate, **kinds)
        cumulative = _pull(question, {**terms, "log_decay": summed}, copies, gates)
    return found, cumulative


def realise(question: Question, stack: Stack, reference: Mapping[str, Tensor], gates: tuple[str, ...], generator: torch.Generator) -> list[Member]:
    """Run one stack on a problem: two members a recipe where the gate gradient has two forms, else one."""
    device = question.rows.q.device
    n = question.rows.q.shape[0]
    per = TRAIN + HELD
    dithered = _run(question, Noise(stack, per, n, dither=True, generator=generator, device=device), per * len(stack), gates)
    nearest = _run(question, Noise(stack, 1, n, dither=False, generator=None, device=device), len(stack), gates)
    members = []
    for form, (samples, real) in enumerate(zip(dithered, nearest, strict=True)):
        for i, recipe in enumerate(stack):
            errors = {k: v[i * per : (i + 1) * per] - reference[k] for k, v in samples.items()}
            members.append(
                Member(
                    name=recipe.name + (", cumulative gate gradient" if form else ""),
                    train={k: e[:TRAIN] for k, e in errors.items()},
                    held={k: e[TRAIN:] for k, e in errors.items()},
                    nearest={k: v[i : i + 1] - reference[k] for k, v in real.items()},
                )
            )
    return [m for m in members if m.train]
