"""Realisations of correct kernels for operators without a rounding model of their own: their forms, emulated.

A kernel of which nothing is known may compute any form of its operator; each form is run under the recipes of its precision
class (``linverify.emulation``), operands rounded to the input's format or kept in TF32, since 16-bit kernels contain both.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from linverify import emulated_delta
from linverify.dtype import BF16, FP16, FP32, TF32, Format
from linverify.emulation import Emulation
from linverify.ensemble import Errors, Member
from linverify.formulas import summing_elu
from linverify.operator import Operator
from linverify.parts import added, narrow_gates, parts_of
from linverify.recipe import Recipe, uniform
from linverify.reference.chunkwise import solved
from linverify.reference.question import Question, fold
from linverify.reference.stated import StatedQuestion, evaluate
from linverify.reference.stepwise import forward
from linverify.rule import GENERIC

Posed = Question | StatedQuestion
# Token by token every operation of every step is emulated; of longer rows, what a state loses at every token.
LONGEST_STEPWISE = 512
# Up to here a step costs less than a chunk where heads have one value and no matrices are multiplied; on a CPU at any length
# where the states of all rows hold so many numbers, since a chunk holds sixteen times as many for each of its tokens.
SHORT, WIDE = 96, 1024
SUMMED = "chunkwise 16, gates summed"
STEPPED = "chunkwise 16, state token by token"
WRITTEN = "chunkwise 64, by values"
DIFFERENCES = f"{WRITTEN}, gates by differences"
FEATURES = "chunkwise 16, features summed"
# Of an operator whose weights are summed up in a last column of values.
DIVISOR = "chunkwise 16, divisor in float32"
# Numbers in one array of all pairs of tokens, where every channel has its own; beyond, those are left to the other forms, too.
LARGEST_PAIRS = 2**25


def stacks(question: Posed, precision: str) -> tuple[tuple[str, Recipe], ...]:
    """(form, recipe) of every member, those that settle most first."""
    if isinstance(question, StatedQuestion):
        beyond = {"recurrent"} if row_length(question) > LONGEST_STEPWISE else set()
        beyond |= {"naive"} if _pairs(question) > LARGEST_PAIRS else set()
        names = (*question.operator.form_names, *question.operator.ways)
        forms = [f for f in names if f not in beyond] or [f for f in names if f != "naive"] or list(names)
        forms = sorted(forms, key=lambda f: f == "recurrent")  # the dearest last
    else:
        longest, exact = row_length(question), precision in ("fp32", "fp64")
        forms = ["chunkwise 16", *(["chunkwise 64"] if longest > 16 else [])]
        forms += ["chunkwise 128"] if longest > 64 and exact else []  # long sums of gates
        if longest <= LONGEST_STEPWISE:
            forms.append("recurrent")
        elif exact:  # elsewhere operands lose more at once than a state in all its steps
            forms.append(STEPPED)
        gated = question.rows.log_decay is not None
        if question.rows.beta is not None and not exact:
            forms.append(DIFFERENCES if gated else WRITTEN)
        elif gated:
            forms.append(SUMMED)
        facts = question.operator.mechanism
        forms += [FEATURES] if facts is not None and facts.added else []
        forms += [DIVISOR] if facts is not None and facts.divisor in ("sum", "clamp") and not exact else []
        k = question.rows.k
        wide = k.device.type == "cpu" and k.shape[0] * k.shape[-1] >= WIDE
        if question.rows.v.shape[-1] == 1 and (longest <= SHORT or wide):
            forms = sorted(forms, key=lambda f: f != "recurrent")
    formats: dict[str, tuple[Format, ...]] = {"bf16": (BF16, TF32), "fp16": (FP16, TF32), "tf32": (TF32,)}
    return tuple(
        (form, uniform(f"{precision} {form}, operands in {f.name}", 0, f))
        for f in formats.get(precision, (FP32,))
        for form in forms
    )


def row_length(question: Posed) -> int:
    """Tokens of the longest sequence; 1 where nothing has a time axis."""
    if isinstance(question, Question):
        return question.folding.longest
    operator, problem = question.operator, question.problem
    timed = next((i for i in operator.inputs if "T" in i.axes), None)
    whole = 1 if timed is None else problem.tensors[timed.name].shape[timed.axes.index("T")]
    return max(problem.lengths, default=whole)


def _pairs(question: StatedQuestion) -> int:
    """Numbers in one array of all pairs of tokens where no heads and no keys make scores of them: pairs times channels."""
    operator, T = question.operator, row_length(question)
    timed = {a for i in operator.inputs if "T" in i.axes for a in i.axes}
    if "M4" not in operator.identities or {"H", "K"} & timed:
        return 0
    value = question.problem.tensors[operator.value_name]
    return T * T * value.numel() // value.shape[operator.input(operator.value_name).axes.index("T")]


class _Summed(torch.autograd.Function):
    """Log gates whose gradient is taken as a sum over all later tokens.

    Kernels that add gates up over a whole row do so; where the gradient falls to nothing, as before a reset, the sum's rounding
    is left.
    """

    @staticmethod
    def forward(_: Any, gates: Tensor) -> Tensor:
        return gates.view_as(gates)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor]:
        (g,) = grads
        terms = g - torch.cat([g[:, 1:], torch.zeros_like(g[:, :1])], 1)
        return (terms.flip(1).cumsum(1).flip(1),)


def _outputs(
    question: Posed, form: str, leaves: dict[str, Tensor], mode: Emulation | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """O and the final state, connected to the leaves, and the terms of the recurrence that lie between."""
    if isinstance(question, StatedQuestion):
        return evaluate(question.operator, form, leaves, question.problem), {}
    with summing_elu(form == FEATURES):
        _, rows = fold(question.problem, question.operator, leaves)
    if form == SUMMED and rows.log_decay is not None:
        gates: Tensor = _Summed.apply(rows.log_decay)  # type: ignore[no-untyped-call]  # torch's own
        rows = replace(rows, log_decay=gates)
    name, _, chunk = form.partition(",")[0].partition(" ")
    stored = (lambda x: x) if mode is None else mode.stored
    if form == WRITTEN:
        read, state = emulated_delta.solved(rows, question.scale, int(chunk), stored)
    elif form == DIFFERENCES:
        differing = emulated_delta.solved_by_differences
        read, state = differing(rows, question.scale, int(chunk), stored, question.dstate)
    elif name == "chunkwise":
        steps = int(chunk)
        carry = None if form != STEPPED or mode is None else lambda state: mode.stepped(state, steps)
        read, state, _ = solved(rows, question.scale, steps, loop=True, carry=carry)
    else:
        read, states = forward(rows, question.scale)
        state = states[-1]
    if form == DIVISOR:
        # products truncate, and a divisor that they are no part of does not: what they lose does not cancel in the quotient
        weights = question.scale * (rows.q * rows.k.cumsum(1)).sum(-1, keepdim=True)
        read = torch.cat([read[..., :-1], weights], -1)
    return {"o": question.read(read, leaves), "state": question.unstates(state)}, rows.terms()


def _gradients(
    asked: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[Tensor], *, keep: bool
) -> Sequence[Tensor | None]:
    """Gradients of (result, upstream gradient) pairs; None where nothing depends on what is wanted."""
    if not asked or not wanted:
        return [None] * len(wanted)
    results, upstream = zip(*asked, strict=True)
    found: Sequence[Tensor | None] = torch.autograd.grad(
        results, list(wanted), upstream, allow_unused=True, retain_graph=keep
    )
    return found


class _Constants(TorchFunctionMode):
    """Inside a vmap, gives every copy constants of its own: what is computed from them errs anew in each."""

    def __init__(self, yes: Tensor) -> None:
        super().__init__()
        self.yes = yes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return torch.where(self.yes, out, out) if func is torch.Tensor.new_tensor else out


def _apart(question: Posed, form: str, leaves: dict[str, Tensor], yes: Tensor) -> dict[str, Tensor]:
    """O and the final state of one of several copies; `yes` is a true of its own."""
    with _Constants(yes):
        return _outputs(question, form, leaves)[0]


def _run(
    question: Posed, form: str, mode: Emulation | None, dtype: torch.dtype, copies: int | None = None
) -> dict[str, Tensor]:
    """Results of one run, or of `copies` runs at once along a new first axis."""
    upstream: Mapping[str, Tensor] = question.problem.cotangents
    lead = () if copies is None else (copies,)

    def several(x: Tensor) -> Tensor:
        return x.detach().to(dtype).expand(*lead, *x.shape).clone()

    leaves = {n: several(x).requires_grad_(x.requires_grad) for n, x in question.leaves.items()}
    device = next(iter(leaves.values())).device
    apart: dict[str, list[Tensor]] = {}
    with torch.set_grad_enabled(bool(upstream)), mode or nullcontext():
        if copies is None:
            found, terms = _outputs(question, form, leaves, mode)
        else:
            yes = torch.ones(copies, dtype=torch.bool, device=device)
            found, terms = torch.vmap(lambda x, y: _apart(question, form, x, y))(leaves, yes), {}
        results = {"o": found["o"].detach()}
        if question.problem.final_state:
            results["state"] = found["state"].detach()
        asked = [(found[n], several(c.to(device))) for n, c in upstream.items() if found[n].requires_grad]
        if upstream:
            narrow = narrow_gates(question) if isinstance(question, Question) and asked and mode is not None else ()
            wanted = [leaves[n] for n in question.problem.wrt]
            grads = _gradients(asked, wanted, keep=bool(narrow))
            for n, x, g in zip(question.problem.wrt, wanted, grads, strict=True):
                results[f"d{n}"] = torch.zeros_like(x) if g is None else g
            between = {n: t for n, t in terms.items() if narrow and t.requires_grad}
            grads = _gradients(asked, list(between.values()), keep=True) if narrow else ()
            above = {n: g for n, g in zip(between, grads, strict=True) if g is not None}
            terms = {n: between[n] for n in above}
            apart = {n: parts_of(leaves[n], terms, above) for n in narrow}
    for n, parts in apart.items():
        if len(parts) > 1 and mode is not None:
            results[f"d{n}"] = added(parts, question.problem.tensors[n].dtype, mode.generator)
    return {n: t.double() for n, t in results.items()}


def _drawn(question: Posed, form: str, recipe: Recipe, generator: torch.Generator, count: int) -> dict[str, Tensor]:
    """Results of `count` realisations, [count, *shape]: at once where a row is short, so that single operations cost most."""
    short = row_length(question) <= LONGEST_STEPWISE
    if short and (isinstance(question, StatedQuestion) or (form == "recurrent" and not narrow_gates(question))):
        return _run(question, form, Emulation(recipe, generator), torch.float64, count)
    found = [_run(question, form, Emulation(recipe, generator), torch.float64) for _ in range(count)]
    return {n: torch.stack([d[n] for d in found]) for n in found[0]}


def realise_emulated(
    question: Posed, form: str, recipe: Recipe, reference: Mapping[str, Tensor], generator: torch.Generator
) -> Member:
    """Errors of one form under one recipe, by result."""
    count = GENERIC.train + GENERIC.held
    drawn = _drawn(question, form, recipe, generator, count + (form == STEPPED))
    errors: Errors = {n: d[:count] - reference[n] for n, d in drawn.items()}
    # a state that is really rounded at every token costs as many steps: of a stepped one a further draw stands for it
    last = {n: d[count] for n, d in drawn.items()} if form == STEPPED else None
    real = last or _run(question, form, Emulation(recipe, None), torch.float32)
    # what overflows float32 is no error of a float32 kernel
    nearest: Errors = {
        n: torch.where(reference[n].abs() > FP32.largest, 0.0, real[n] - reference[n])[None] for n in drawn
    }
    sound = {n for n in errors if bool(torch.isfinite(errors[n]).all()) and bool(torch.isfinite(nearest[n]).all())}
    return Member(
        name=recipe.name,
        train={n: e[: GENERIC.train] for n, e in errors.items()},
        held={n: e[GENERIC.train :] for n, e in errors.items()},
        nearest=nearest,
        finite=frozenset(sound),
    )


def emulated_members(
    question: Posed,
    precision: str,
    reference: Mapping[str, Tensor],
    seed: int,
    known: dict[tuple[str | Recipe, int, int], list[Member]],
) -> Iterator[list[Member]]:
    """Members of one form and recipe, then of two, and so on; what was drawn before is in `known`."""
    device = next(iter(question.leaves.values())).device
    drawn: list[Member] = []
    for n, (form, recipe) in enumerate(stacks(question, precision)):
        if (precision, seed, n) not in known:
            generator = torch.Generator(device=device).manual_seed(seed + n)
            known[precision, seed, n] = [realise_emulated(question, form, recipe, reference, generator)]
        drawn = [*drawn, *known[precision, seed, n]]
        yield drawn


def emulates(operator: Operator) -> bool:
    """Whether an operator is served here: it states forms, or reads out of its recurrence."""
    return operator.canonical is None or operator.readout is not None
