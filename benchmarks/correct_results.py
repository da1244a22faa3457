"""Results of a correct low-precision kernel: its forms, its gradients, and what it stores."""

from collections.abc import Mapping, Sequence

import torch
from correct_kernels import Chunked, Kernel, weight
from torch import Tensor

from linverify.fold import Folding, Rows
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference.question import fold, sizes_of

Roles = dict[str, Tensor]


def _total(x: Tensor, sums: str) -> Tensor:
    """Sum over the key axis of [N, K, V] in some order: [N, V]."""
    if sums == "reversed":
        return x.flip(1).sum(1)
    parts = [p.sum(1) for p in x.split(16, 1)] if sums == "split" else [x.sum(1)]
    return torch.stack(parts).sum(0)


def stepped(x: Roles, scale: float, kernel: Kernel, *, exclusive: bool, undecayed: bool) -> tuple[Tensor, list[Tensor]]:
    """O [N, L, V] and the final state, token by token in float32."""
    state, outs, sums = x["state"], [], kernel.sums
    q = x["q"] if kernel.scale == "result" else x["q"] * scale
    decay = kernel.exp(x["log_decay"] * kernel.unit) if "log_decay" in x else None
    own = weight(x, 1.0 if kernel.scale == "result" else scale) if kernel.bonus != "state" else None
    for t in range(q.shape[1]):
        before, k, v = state, x["k"][:, t, :, None], x["v"][:, t]
        if decay is not None:
            state = state * decay[:, t, :, None]
        if "beta" in x:
            v = x["beta"][:, t] * (v - _total(x["reading"][:, t, :, None] * state, sums))
        if "a" in x:
            read = _total(x["a"][:, t, :, None] * (before if undecayed else state), sums)
            state = state + x["b"][:, t, :, None] * read[:, None]
        state = state + k * v[:, None]
        terms = q[:, t, :, None] * (before if exclusive else state)
        if "bonus" in x and own is None:
            new = (x["bonus"] * x["bonus_k"][:, t])[..., None] * v[:, None]
            terms = terms + (x["bonus_q"][:, t] * (1.0 if kernel.scale == "result" else scale))[..., None] * new
        outs.append(_total(terms, sums))
    o = torch.stack(outs, 1)
    o = o if own is None else o + own * x["v"]
    return o * scale if kernel.scale == "result" else o, [state]


def _roles(rows: Rows) -> Roles:
    """The terms as leaves of their own: a key that is read is another leaf than the key that is written."""
    found = {n: t.detach().clone() for n, t in rows.terms().items()}
    if rows.beta is not None:
        found["reading"] = found["k"].clone()
    if rows.bonus is not None:
        found["bonus_q"], found["bonus_k"] = found["q"].clone(), found["k"].clone()
    return {n: t.requires_grad_() for n, t in found.items()}


def _later(
    x: Roles, d: Mapping[str, Tensor], ends: Sequence[tuple[Tensor, Tensor | None]], size: int, rows: Rows
) -> Tensor:
    """The log decay's gradient from the other gradients: readers gain, writers lose, from each token to its chunk's end.

    Args:
        x: roles.
        d: their gradients.
        ends: state at the end of each chunk, and its whole cotangent.
        size: of a chunk.
        rows: what the roles are.
    """

    def term(role: str) -> Tensor:
        return x[role].detach() * d[role] if role in x else torch.zeros_like(x["q"])

    now, after = term("reading") - term("k") - term("b"), torch.zeros_like(x["q"])
    for role, late in (("q", rows.exclusive), ("a", rows.undecayed)):
        now = now + term(role)
        after = after + term(role) if late else after
    out = []
    for (state, cotangent), part in zip(ends, now.split(size, 1), strict=True):
        end = 0.0 if cotangent is None else (state.detach() * cotangent).sum(2)[:, None]
        out.append(part.flip(1).cumsum(1).flip(1) + end)
    found = torch.cat(out, 1) - after
    return found.sum(-1, keepdim=True) if x["log_decay"].shape[-1] == 1 else found


def _gradients(
    problem: Problem, rows: Rows, folding: Folding, kernel: Kernel, x: Roles, o: Tensor, ends: list[Tensor]
) -> dict[str, Tensor]:
    """Gradients of the rows' terms."""
    cot = {n: t.float() for n, t in problem.cotangents.items()}
    upstream: list[tuple[Tensor, Tensor]] = []
    if "o" in cot:
        upstream.append((o, folding.tokens(cot["o"])))
    dstate = folding.states(cot["state"], *rows.state.shape[1:]) if "state" in cot else None
    if dstate is not None:
        upstream.append((ends[-1], dstate))
    by_chunk = kernel.gate == "chunk" and len(ends) > 1
    inner = ends[:-1] if by_chunk else []
    found = torch.autograd.grad(
        [y for y, _ in upstream], [*x.values(), *inner], [c for _, c in upstream], allow_unused=True
    )
    d = {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(x.items(), found, strict=False)}
    if "log_decay" in x and kernel.gate != "autograd":
        kept = [*zip(inner, found[len(x) :], strict=True), (ends[-1], dstate)]
        d["log_decay"] = _later(x, d, kept, kernel.chunk if by_chunk else x["q"].shape[1], rows)
    for role, term in (("reading", "k"), ("bonus_k", "k"), ("bonus_q", "q")):
        if role in d:
            d[term] = d[term] + d[role]
    return d


def results(problem: Problem, operator: Operator, kernel: Kernel) -> dict[str, Tensor]:
    """Everything that the kernel returns, in the dtypes it should: o, state, d<input>."""
    given = {**problem.tensors}
    if problem.initial_state is not None:
        given["initial_state"] = problem.initial_state
    leaves = {n: t.detach().float().requires_grad_() for n, t in given.items()}
    folding, rows = fold(problem, operator, leaves)
    scale = operator.scale_for(sizes_of(problem, operator)) if problem.scale is None else problem.scale
    x = _roles(rows)
    kinds = {"exclusive": rows.exclusive, "undecayed": rows.undecayed}
    if kernel.form == "recurrent":
        o, ends = stepped(x, scale, kernel, **kinds)
    else:
        o, ends = Chunked(x, scale, kernel, **kinds)()
    found = {"o": folding.untokens(o.detach()).to(given[operator.value_name].dtype)}
    if problem.final_state:
        found["state"] = folding.unstates(ends[-1].detach())
    if problem.cotangents:
        d = _gradients(problem, rows, folding, kernel, x, o, ends)
        terms = {n: t for n, t in rows.terms().items() if t.requires_grad}
        wanted = [leaves[n] for n in problem.wrt]
        pulled = torch.autograd.grad(list(terms.values()), wanted, [d[n] for n in terms], allow_unused=True)
        for n, leaf, g in zip(problem.wrt, wanted, pulled, strict=True):
            found[f"d{n}"] = (torch.zeros_like(leaf) if g is None else g).to(given[n].dtype)
    return found
