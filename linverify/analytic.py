"""The analytic variance: how rounding of operands reaches every result, from a few passes over squared values.

A chunkwise kernel rounds operands of products: scores, queries and keys with their decay, written values, the stored state.
Each such error is relative and independent, so the variance of a result is a sum of squares: of scores times values, of queries
times states, forward, and of the same with cotangents, backward. Scores and states are those of the exact recurrence, so a sum
that cancels is small here as it is in a kernel. Everything follows from the folded recurrence: its diagonal decay, what it
writes (keys and values; of a delta operator, what it solved for) and what reads it (queries; of a delta operator, keys too,
with the cotangent of what was solved for).

It is a lower bound of the budget's scale, not the budget: a result within it needs no realisations, one beyond it is judged by
them. What a low-rank term does to errors that came before is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify import budget
from linverify.dtype import BF16, FP16, FP32, TF32
from linverify.fold import Rows
from linverify.noise import SPREAD
from linverify.recipe import power_of_two
from linverify.reference.chunkwise import CHUNK, solved, split
from linverify.reference.question import Question

# Largest ratio of a statistic to chance that needs no realisation: half the line, since this is an estimate.
LINE = budget.LINE / 2
# How many roundings a term of a sum meets: in bf16 and fp16 one of two operands is exact, but an fp16 kernel may contain TF32
# products, which err twice as far; in TF32 both operands of both products are truncated.
_ROUNDINGS = {"bf16": (BF16, 1.0), "fp16": (FP16, 2.0), "tf32": (TF32, 4.0), "fp32": (FP32, 2.0)}
# A value that a delta operator solves for carries the rounding of the triangle's inverse, too.
_SOLVED = 2.0
# Terms of a chunk of 64 that a float32 accumulator takes one by one: half of them, each partial sum rounded.
_WALK = 32.0
# Draws that estimate the variance of a sum of errors.
_DRAWS = 16
# Sums in float32 of what has been rounded before.
_SUMMED = ("log_decay", "beta")


def units(question: Question, precision: str) -> float:
    """Variance of one term's relative error in kernels of a precision class; 0 for a class that is not served."""
    if precision not in _ROUNDINGS:
        return 0.0
    fmt, count = _ROUNDINGS[precision]
    if fmt is FP32:  # nothing is rounded but what float32 accumulates, over K or V terms at least
        count *= 1 + min(question.rows.state.shape[-2:]) / 2
    # a uniform error's variance; its mean, where operands are truncated, is `truncated`
    return count * (SPREAD * fmt.unit_roundoff) ** 2 / (12 if fmt.truncates else 3)


def truncated(result: str, precision: str) -> float:
    """Coherent relative bias of products that all truncate (TF32): one product on the way to a state, two to the others."""
    products = 1 if result in ("state", "dinitial_state") else 2
    return products * budget.coherence(precision) if precision == "tf32" else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What reads the state.

    Attributes:
        key: [N, n, C, K]: what it multiplies the state with.
        decay: [N, n, C, K or 1] since the chunk began.
        pairs: [N, n, C, C, K or 1]: decay between a write and this read, 0 where it does not see the write.
        cotangent: [N, n, C, V], or None where no gradient comes back.
    """

    key: Tensor
    decay: Tensor
    pairs: Tensor
    cotangent: Tensor | None

    @property
    def into(self) -> Tensor:
        """The key with its decay."""
        return self.key * self.decay


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """What is written: key [N, n, C, K], its decay to the end of the chunk [N, n, C, K or 1], value [N, n, C, V].

    A value that was solved for is rounded before it is used.
    """

    key: Tensor
    decay: Tensor
    value: Tensor
    solved: bool

    @property
    def left(self) -> Tensor:
        """The key with its decay."""
        return self.key * self.decay


def _scores(read: _Read, write: _Write) -> Tensor:
    """Decayed scores [N, n, C, C]."""
    if read.pairs.shape[-1] == 1:
        return (read.key @ write.key.mT) * read.pairs[..., 0]
    return torch.einsum("...id,...jd,...ijd->...ij", read.key, write.key, read.pairs)


def _through(weights: Tensor, x: Tensor, pairs: Tensor) -> Tensor:
    """Sum over j of weights_ij^2 pairs_ijd^2 x_jd^2: [N, n, C, K]."""
    if pairs.shape[-1] == 1:
        return (weights * pairs[..., 0]).square() @ x.square()
    return torch.einsum("...ij,...jd,...ijd->...id", weights.square(), x.square(), pairs.square())


class _Passes:
    """The recurrence with its writes given, chunk by chunk, and the variances that its roundings leave."""

    def __init__(self, question: Question, precision: str) -> None:
        rows, memory = question.rows, precision == "tf32"
        self.float32 = (FP32.unit_roundoff / _ROUNDINGS[precision][0].unit_roundoff) ** 2
        self.length = rows.q.shape[1]
        g = None if rows.log_decay is None else split(rows.log_decay.detach(), CHUNK)
        self.until = None if g is None else g.cumsum(2)
        self.before = None if g is None or self.until is None else self.until - g
        index = torch.arange(CHUNK, device=rows.q.device)
        self.inclusive, self.strict = index[:, None] >= index[None, :], index[:, None] > index[None, :]
        self.n = split(rows.q, CHUNK).shape[1]
        # Inside a sub-chunk a gate per channel leaves no product of scores to round, unless a triangle is solved there.
        self.inside = memory or rows.beta is not None or g is None or g.shape[-1] == 1
        self.rounds = memory or g is not None  # a decay in an operand is rounded
        self.scaled = not power_of_two(question.scale)  # and a scale that changes digits

    def read(self, key: Tensor, cotangent: Tensor | None, *, own: bool, decayed: bool) -> _Read:
        """A read after (own) or before the write of its token, after (decayed) or before the decay."""
        at, mask = self.until if decayed else self.before, self.inclusive if own else self.strict
        key = split(key.detach(), CHUNK)
        cotangent = None if cotangent is None else split(cotangent, CHUNK)
        if at is None or self.until is None:
            return _Read(key, torch.ones_like(key[..., :1]), mask[None, None, ..., None].to(key.dtype), cotangent)
        gap = (at[..., :, None, :] - self.until[..., None, :, :]).masked_fill(~mask[..., None], -torch.inf)
        return _Read(key, at.exp(), gap.exp(), cotangent)

    def write(self, key: Tensor, value: Tensor, *, solved: bool = False) -> _Write:
        key, value = split(key.detach(), CHUNK), split(value.detach(), CHUNK)
        decay = torch.ones_like(key[..., :1]) if self.until is None else (self.until[:, :, -1:] - self.until).exp()
        return _Write(key, decay, value, solved)

    def kept(self, i: int) -> Tensor | float:
        """Decay of a whole chunk, [N, K or 1, 1]."""
        return 1.0 if self.until is None else self.until[:, i, -1, :, None].exp()

    def weight(self, solved: bool) -> float:
        """What a term's rounding counts; a product of operands from memory is exact, and its sum float32's own."""
        return 1.0 if self.rounds or solved else min(1.0, _WALK * self.float32)

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, x.shape[-1])[:, : self.length]

    def states(self, start: Tensor, writes: Sequence[_Write]) -> tuple[Tensor, Tensor, Tensor]:
        """States and their variances before each chunk [N, n, K, V]; variance of the last."""
        state, variance = start.detach(), torch.zeros_like(start)
        found, spread = [], []
        for i in range(self.n):
            found.append(state)
            spread.append(variance)
            kept = self.kept(i)
            state = kept * state + sum(w.left[:, i].mT @ w.value[:, i] for w in writes)
            new = [(w.left[:, i].mT.square() @ w.value[:, i].square()) * self.weight(w.solved) for w in writes]
            variance = kept * kept * variance + sum(new) + self.float32 * state.square()
        return torch.stack(found, 1), torch.stack(spread, 1), variance

    def costates(self, end: Tensor, reads: Sequence[_Read]) -> tuple[Tensor, Tensor, Tensor]:
        """Cotangents of the state after each chunk and their variances; variance of the first state's."""
        state, variance = end, torch.zeros_like(end)
        found, spread = [], []
        for i in reversed(range(self.n)):
            found.append(state)
            spread.append(variance)
            kept, asked = self.kept(i), [(r.into[:, i], r.cotangent[:, i]) for r in reads if r.cotangent is not None]
            state = kept * state + sum(r.mT @ c for r, c in asked)
            new = [(r.mT.square() @ c.square()) * self.weight(self.scaled or len(reads) > 1) for r, c in asked]
            variance = kept * kept * variance + sum(new) + self.float32 * state.square()
        return torch.stack(found[::-1], 1), torch.stack(spread[::-1], 1), variance


def _forward(read: _Read, writes: Sequence[_Write], states: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Variance of what is read, [N, n, C, V]."""
    state, spread, _ = states
    found = read.into.square() @ (state.square() + spread)
    for w in writes:
        found = found + _scores(read, w).square() @ w.value.square()
    return found


def _reader(read: _Read, writes: Sequence[_Write], states: tuple[Tensor, Tensor, Tensor], *, inside: bool) -> Tensor:
    """Variance of a reader's gradient, [N, n, C, K]; `inside` its chunk, too."""
    assert read.cotangent is not None
    state, spread, _ = states
    found = read.decay.square() * (read.cotangent.square() @ (state.square() + spread).mT)
    for w in writes if inside else ():
        found = found + _through(read.cotangent @ w.value.mT, w.key, read.pairs)
    return found


def _writer(
    write: _Write, reads: Sequence[_Read], costates: tuple[Tensor, Tensor, Tensor], *, inside: bool
) -> tuple[Tensor, Tensor]:
    """Variances of the gradients of a write's key [N, n, C, K] and value [N, n, C, V]."""
    state, spread, _ = costates
    key = write.decay.square() * (write.value.square() @ (state.square() + spread).mT)
    value = write.left.square() @ (state.square() + spread)
    for r in reads:
        if r.cotangent is not None:
            if inside:
                key = key + _through(write.value @ r.cotangent.mT, r.key, r.pairs.transpose(-3, -2))
            value = value + _scores(r, write).mT.square() @ r.cotangent.square()
    return key, value


def _bonus(rows: Rows, upstream: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variances with those of a bonus, whose weight and its cotangent are rounded like a score."""
    u = rows.bonus.detach()[:, None] if rows.bonus is not None else torch.zeros_like(rows.q[:, :1])
    weight, back = (rows.q * u * rows.k).sum(-1, keepdim=True), (upstream * rows.v).sum(-1, keepdim=True)
    return {
        "q": terms["q"] + (u * rows.k * back).square(),
        "k": terms["k"] + (u * rows.q * back).square(),
        "v": terms["v"] + (weight * upstream).square(),
        "bonus": (rows.q * rows.k * back).square().sum(1),
    }


def variances(question: Question, reference: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Variance of each result in kernels of a precision class; results that it cannot tell are missing.

    Args:
        question: the folded recurrence.
        reference: exact results; a delta operator needs dv, or gradients but that of q are missing.
        precision: the class.
    """
    unit = units(question, precision)
    if not unit:
        return {}
    with torch.no_grad():
        found, terms = _variances(question, reference, _Passes(question, precision))
        counted = {n: t / (_ROUNDINGS[precision][1] if n in _SUMMED else 1.0) for n, t in terms.items()}
    every = found | _leaves(question, counted)
    # what meets no rounding leans nowhere
    return {n: unit * t + (t > 0) * (truncated(n, precision) * reference[n]).square() for n, t in every.items()}


def _variances(
    question: Question, reference: Mapping[str, Tensor], passes: _Passes
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Variances of o and the state, and of gradients by term of the rows."""
    rows = question.rows
    upstream = None if question.do is None else question.scale * question.do
    backward = bool(question.problem.cotangents)
    query = passes.read(rows.q, upstream, own=not rows.exclusive, decayed=not rows.exclusive)
    reads, writes, strength, offset = [query], [passes.write(rows.k, rows.v)], None, None
    whole = rows.a is None
    if rows.beta is not None:
        _, _, seen = solved(rows, question.scale, CHUNK)
        assert seen is not None
        strength, offset = rows.beta.detach(), (rows.v - seen).detach()
        writes = [passes.write(rows.k, strength * offset, solved=True)]
        whole = "dv" in reference
        dv = question.folding.tokens(reference["dv"]) if whole else torch.zeros_like(rows.v)
        reads.append(passes.read(rows.k, -dv if whole else None, own=False, decayed=not rows.undecayed))
    elif rows.a is not None and rows.b is not None:
        _, _, seen = solved(rows, question.scale, CHUNK)
        assert seen is not None
        writes.append(passes.write(rows.b, seen, solved=True))
    states = passes.states(rows.state, writes)
    solving = 1.0 if rows.beta is None else _SOLVED
    read = solving * question.scale**2 * passes.rows(_forward(query, writes, states))
    found = {"o": question.folding.untokens(read)}
    if question.problem.final_state:
        found["state"] = question.unstates(solving * states[2])
    if not backward:
        return found, {}
    none = torch.zeros_like(rows.q)
    terms = {"q": none if upstream is None else passes.rows(_reader(query, writes, states, inside=passes.inside))}
    if whole:
        end = torch.zeros_like(rows.state) if question.dstate is None else question.dstate
        costates = passes.costates(end, reads)
        key, value = (passes.rows(x) for x in _writer(writes[0], reads, costates, inside=passes.inside))
        terms |= {"k": key, "v": value, "state": costates[2]}
        energy = rows.q.square() * terms["q"] + rows.k.square() * key
        if strength is not None and offset is not None:
            read = passes.rows(_reader(reads[1], writes, states, inside=passes.inside))
            terms["k"] = key + read
            energy = energy + rows.k.square() * read
            terms["v"] = strength.square() * value
            inside = passes.rows(_forward(reads[1], writes, states))
            pull = torch.where(strength == 0, 0.0, dv / strength).square()
            terms["beta"] = (value * offset.square() + pull * inside).sum(-1, keepdim=True)
        if rows.bonus is not None and upstream is not None:
            terms |= _bonus(rows, upstream, terms)
        if rows.log_decay is not None:
            last = (end.square() * states[2]).sum(-1)[:, None]
            later = energy.flip(1).cumsum(1).flip(1) + last
            # Summed directly, only what crosses the token counts, about half; and what q dq and k dk share of their errors
            # cancels in the sum over the channels of one gate.
            terms["log_decay"] = later.sum(-1, keepdim=True) / 4 if rows.log_decay.shape[-1] == 1 else later / 2
    terms |= {n: solving * terms[n] for n in ("q", "k", "v") if n in terms}
    return found, terms


def _leaves(question: Question, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
