"""Realisations of correct kernels: the rounding model of every recipe of a family, run on one problem.

Each realisation gives the error of every result. Gate gradients come in several forms, direct and as the sum of
q dq - k dk (- b db + a da) over later tokens plus the final state's term, taken from the end, as total minus prefix or chunk by
chunk, since published kernels use all of them and their errors differ in class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from linverify.carried import Carried, Shared, add
from linverify.gate_gradients import by_chunks, gate_gradients
from linverify.model import chunked, recurrent
from linverify.noise import Noise
from linverify.parts import added, narrow_gates, parts_of
from linverify.recipe import Recipe, Stack
from linverify.reference.question import Question
from linverify.roles import TOKENLESS, roles
from linverify.rule import GENERIC, Rule

_FORMS = (
    "",
    ", gate gradient summed from the end",
    ", gate gradient from prefix sums",
    ", gate gradient summed in chunks",
)

Errors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Errors of one recipe (and one form of the gate gradient), by result.

    Attributes:
        train: [rule.train, *shape] a result: they set the scale.
        held: [rule.held, *shape]: dithered like `train`, kept apart to see what chance does.
        nearest: [1, *shape]: real rounding. Of each this many from every seed that is in it.
        finite: results that are finite in every realisation.
    """

    name: str
    train: Errors
    held: Errors
    nearest: Errors
    finite: frozenset[str]

    def scaled(self, factor: float) -> "Member":
        """The same with every error so many times as large."""
        train, held, nearest = ({n: e * factor for n, e in x.items()} for x in (self.train, self.held, self.nearest))
        return replace(self, train=train, held=held, nearest=nearest)

    def of(self, result: str) -> "Member":
        """The same for one result."""
        train, held, nearest = ({result: x[result]} for x in (self.train, self.held, self.nearest))
        return Member(self.name, train, held, nearest, self.finite & {result})


def pooled(sets: Sequence[Sequence[Member]]) -> list[Member]:
    """Members that have the realisations of several sets each: of those that all sets have.

    Where a result is finite in some sets alone, what they have stands for the others.
    """
    named = [{m.name: m for m in members} for members in sets]
    return [_joined([by[m.name] for by in named]) for m in sets[0] if all(m.name in by for by in named)]


def _joined(parts: Sequence[Member]) -> Member:
    chosen = {}
    for n in parts[0].train:
        able = [m for m in parts if n in m.finite] or parts
        chosen[n] = [able[i % len(able)] for i in range(len(parts))]
    return Member(
        name=parts[0].name,
        train={n: torch.cat([m.train[n] for m in some]) for n, some in chosen.items()},
        held={n: torch.cat([m.held[n] for m in some]) for n, some in chosen.items()},
        nearest={n: torch.cat([m.nearest[n] for m in some]) for n, some in chosen.items()},
        finite=frozenset().union(*(m.finite for m in parts)),
    )


def _onto_terms(d: dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
    """Gradients by term of the rows: roles of the same term add up, parts that lay in memory rounded."""
    if "written" in d:
        solved = noise.round(d["reading"] + d["written"], "key_partials")
        others = {n: g for n, g in d.items() if n not in ("reading", "written")}
        return _onto_terms({**others, "k": noise.round(d["k"], "key_partials") + solved}, noise)
    terms = ("q", "k", "v", "state", "log_decay", "beta", "a", "b", "bonus")
    out: dict[str, Tensor] = {n: d[n] for n in terms if n in d}
    for role, term in (("reading", "k"), ("written", "k"), ("bonus_k", "k"), ("bonus_q", "q")):
        if role in d:
            out[term] = out[term] + d[role]
    return out


def _pull(
    question: Question,
    terms: Mapping[str, Tensor],
    copies: int,
    names: tuple[str, ...],
    noise: Noise,
    shared: dict[str, Shared] | None = None,
    narrow: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Pull gradients of the folded terms, `copies` realisations at once, back to the inputs.

    A gradient that all tokens share is summed over them, perhaps by one float32 accumulator. Its terms are not seen here, but
    pulled back with a random weight each they sum to their energy's root times a normal number: the accumulator's error. Of a
    segment they go to `shared`, to be summed over all segments first. Of `narrow` inputs each term's part is rounded.
    """
    rows = {n: t for n, t in question.rows.terms().items() if t.requires_grad and n in terms}
    if not rows or not names:
        return {}
    named = {n: terms[n].to(t.dtype).reshape(copies, *t.shape) for n, t in rows.items()}
    batched = list(named.values())

    def pulled(wanted: Sequence[str], upstream: Sequence[Tensor]) -> dict[str, Tensor]:
        leaves = [question.leaves[n] for n in wanted]
        grads: Sequence[Tensor | None] = torch.autograd.grad(
            list(rows.values()), leaves, list(upstream), is_grads_batched=True, retain_graph=True, allow_unused=True
        )
        return {
            n: torch.zeros(copies, *leaf.shape, dtype=leaf.dtype, device=leaf.device) if g is None else g
            for n, leaf, g in zip(wanted, leaves, grads, strict=True)
        }

    found = pulled(names, batched)
    common = [n for n in names if n != "initial_state" and "T" not in question.operator.input(n).axes]
    if common and noise.dither:
        weighted = pulled(common, [g * noise.random(g, normal=True) for g in batched])
        energy = {n: w.square() for n, w in weighted.items()}
    else:
        energy = {n: torch.zeros_like(found[n]) for n in common}
    for n, e in energy.items():
        count = max(g[0].numel() for g in batched) / max(1, e[0].numel())
        if shared is None:
            found[n] = noise.walk(found[n], e, count)
        else:
            add(shared, f"d{n}", Shared(found.pop(n), e, count))
    for n in set(narrow) & set(found):
        parts = parts_of(question.leaves[n], rows, named, batched=True)
        if len(parts) > 1:
            found[n] = added(parts, question.problem.tensors[n].dtype, noise.generator if noise.dither else None)
    return {f"d{n}": g for n, g in found.items()}


def run(
    question: Question,
    noise: Noise,
    copies: int,
    gates: tuple[str, ...],
    carried: Carried | None = None,
    narrow: tuple[str, ...] = (),
    wrt: tuple[str, ...] | None = None,
) -> list[dict[str, Tensor]]:
    """Results of `copies` realisations: everything with the direct gate gradient, and gate gradients in cumulative forms.

    Of a segment of a long sequence, `carried` says what comes in at either end, and is told what goes out at the front. Of
    `narrow` inputs each term's part of the gradient is rounded. Gradients are those of `wrt`, by default all.
    """
    dtype = noise.carrier
    wants = bool(question.problem.cotangents)
    rows = question.rows
    lead = noise.structure.lead
    x = roles(rows, copies, dtype, grad=wants, split=noise.structure.key_partials is not None, lead=lead)
    if carried is not None and carried.state is not None:
        x = replace(x, state=carried.state.detach().to(dtype).requires_grad_(wants))
    kinds = {"exclusive": rows.exclusive, "undecayed": rows.undecayed}
    with torch.set_grad_enabled(wants):
        o, trace = (chunked if noise.structure.chunk else recurrent)(x, question.scale, noise, **kinds)
    folding, state, o = question.folding, trace.ends[-1], o[:, lead:]
    found = {"o": folding.untokens(o.detach().double().reshape(copies, -1, *o.shape[1:]))}
    if question.problem.final_state:
        found["state"] = question.unstates(state.detach().double().reshape(copies, -1, *state.shape[1:]))
    if not wants:
        return [found]

    def cotangent(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(dtype).repeat(copies, *[1] * (t.dim() - 1))

    do, dstate = cotangent(question.do), cotangent(question.dstate)
    if carried is not None and carried.cotangent is not None:
        dstate = carried.cotangent.to(dtype)
    outputs = [(y, c) for y, c in ((o, do), (state, dstate)) if c is not None and y.requires_grad]
    named = x.named()
    inner = (
        [*trace.ends[:-1], *trace.outgoing] if gates and by_chunks(noise, x.q.shape[1], whole=carried is None) else []
    )
    grads: Sequence[Tensor | None] = torch.autograd.grad(
        [y for y, _ in outputs], [*named.values(), *inner], [c for _, c in outputs], allow_unused=True
    )
    d = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(named.items(), grads, strict=False)}
    terms = {n: t if n in TOKENLESS else t[:, lead:] for n, t in _onto_terms(d, noise).items()}
    sums = (None,) * len(_FORMS) if carried is None else carried.sums(len(_FORMS))
    wrt = question.problem.wrt if wrt is None else wrt
    found |= _pull(question, terms, copies, wrt, noise, sums[0], narrow)
    forms = [found]
    if gates and x.log_decay is not None:
        summed = gate_gradients(x, d, trace, grads[len(named) :], dstate, noise, **kinds, carried=carried)
        forms += [
            _pull(question, {**terms, "log_decay": s[:, lead:]}, copies, gates, noise, into, narrow)
            for s, into in zip(summed, sums[1:], strict=False)
        ]
    if carried is not None:
        carried.cotangent = d["state"]
    return forms


def passed(question: Question, noise: Noise, copies: int, state: Tensor | None) -> Tensor:
    """State that leaves a segment, of every realisation [copies * N, K, V]; `state` enters it, None at the beginning.

    The same generator draws the same errors as when the segment is run with gradients.
    """
    rows = question.rows
    split, lead = noise.structure.key_partials is not None, noise.structure.lead
    x = roles(rows, copies, noise.carrier, grad=False, split=split, lead=lead)
    x = x if state is None else replace(x, state=state)
    kinds = {"exclusive": rows.exclusive, "undecayed": rows.undecayed}
    with torch.no_grad():
        _, trace = (chunked if noise.structure.chunk else recurrent)(x, question.scale, noise, **kinds)
    return trace.ends[-1]


def _declared_forms(gate_gradient: str, *runs: list[dict[str, Tensor]]) -> tuple[list[dict[str, Tensor]], ...]:
    """Every form of the gate gradient, or the declared one in place of all."""
    index = {"reverse": 1, "prefix": 2, "chunk": 1}.get(gate_gradient)
    if index is None:
        return tuple(forms[:1] if gate_gradient == "direct" else forms for forms in runs)
    return tuple([{**forms[0], **(forms[index] if len(forms) > index else {})}] for forms in runs)


def simulated(question: Question, recipe: Recipe, gates: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """Results with real rounding, one realisation: everything, and gate gradients in their further forms.

    A recipe that declares its form of the gate gradient has one entry.
    """
    rows = question.rows.q.shape[0]
    noise = Noise((recipe,), 1, rows, dither=False, generator=None, device=question.rows.q.device)
    (forms,) = _declared_forms(recipe.gate_gradient, run(question, noise, 1, gates))
    return [{n: t[0] for n, t in form.items()} for form in forms]


def flipped(
    question: Question, recipe: Recipe, gates: tuple[str, ...], generator: torch.Generator, count: int
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Results with real rounding of operands: as computed, and `count` times with float32 perturbed, [count, *shape]."""
    rows, device = question.rows.q.shape[0], question.rows.q.device
    noise = Noise((recipe,), count, rows, dither=True, generator=generator, device=device, real=True)
    (others,) = _declared_forms(recipe.gate_gradient, run(question, noise, count, gates))
    return simulated(question, recipe, gates), others


def staged(
    question: Question,
    recipe: Recipe,
    gates: tuple[str, ...],
    points: frozenset[str],
    generator: torch.Generator,
    count: int,
) -> dict[str, Tensor]:
    """Results of `count` realisations in which only these points err; the gate gradient in its declared or first form."""
    rows, device = question.rows.q.shape[0], question.rows.q.device
    noise = Noise((recipe,), count, rows, dither=True, generator=generator, device=device, careful=True, only=points)
    (forms,) = _declared_forms(recipe.gate_gradient, run(question, noise, count, gates))
    return forms[0]


def realise(
    question: Question,
    stack: Stack,
    reference: Mapping[str, Tensor],
    gates: tuple[str, ...],
    generator: torch.Generator,
    rule: Rule = GENERIC,
    *,
    gated: bool = True,
) -> list[Member]:
    """Run one stack on a problem: a member a recipe, and one more for each further form of its gate gradient.

    Where nothing is `gated`, no member has the gates' gradients.
    """
    device = question.rows.q.device
    n = question.rows.q.shape[0]
    per = rule.train + rule.held
    noise = Noise(stack, per, n, dither=True, generator=generator, device=device, careful=rule.careful)
    narrow = () if rule.careful or not gated else narrow_gates(question)
    wrt = tuple(x for x in question.problem.wrt if gated or x not in gates)
    forms = gates if gated else ()
    dithered = run(question, noise, per * len(stack), forms, narrow=narrow, wrt=wrt)
    real = Noise(stack, 1, n, dither=False, generator=None, device=device)
    nearest = run(question, real, len(stack), forms, narrow=narrow, wrt=wrt)
    return members(stack, dithered, nearest, reference, rule)


def members(
    stack: Stack,
    dithered: list[dict[str, Tensor]],
    nearest: list[dict[str, Tensor]],
    reference: Mapping[str, Tensor],
    rule: Rule,
) -> list[Member]:
    """Make members of one stack's results, one a recipe and form of the gate gradient.

    Args:
        stack: that ran.
        dithered: results by form, [(train + held) * recipes, *shape].
        nearest: the same with real rounding, [recipes, *shape].
        reference: exact results.
        rule: how many realisations set the scale.
    """
    per, several = rule.train + rule.held, len(stack)
    forms = _declared_forms(stack[0].gate_gradient, dithered, nearest)
    drawn = [{k: v - reference[k] for k, v in samples.items()} for samples in forms[0]]
    exact = [{k: v - reference[k] for k, v in real.items()} for real in forms[1]]
    # a sum is finite where all its terms are
    sums = [e[k].reshape(several, -1).sum(1) for both in zip(drawn, exact, strict=True) for e in both for k in both[0]]
    sound = iter(torch.isfinite(torch.stack(sums)).tolist())
    found = []
    for form, errors, real in zip(_FORMS, drawn, exact, strict=False):
        able = {k: next(sound) for k in errors}
        also = {k: next(sound) for k in errors}
        for i, recipe in enumerate(stack):
            first, last = i * per, (i + 1) * per
            found.append(
                Member(
                    name=recipe.name + form,
                    train={k: e[first : first + rule.train] for k, e in errors.items()},
                    held={k: e[first + rule.train : last] for k, e in errors.items()},
                    nearest={k: e[i : i + 1] for k, e in real.items()},
                    finite=frozenset(k for k in errors if able[k][i] and also[k][i]),
                )
            )
    return found
