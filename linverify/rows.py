"""One row of weights in float64: its scores, its divisor, and the bound of every derivative by a score.

What a row is, and why the bound holds, stands in ``linverify.mechanism``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.mechanism import Mechanism
from linverify.operator import Canonical, Operator

PLAIN = Mechanism(signed=True)


def mechanism_of(operator: Operator) -> Mechanism | None:
    """The operator's mechanism: as stated, or that of a recurrence whose scores are its weights; None where there is none."""
    if operator.mechanism is not None:
        return operator.mechanism
    kinds = {i.kind for i in operator.inputs}
    low_rank = kinds & {"strength", "low_rank_a", "low_rank_b"}
    plain = operator.canonical is not None and operator.readout is None and not low_rank
    return PLAIN if plain and {"query", "key", "value"} <= kinds and operator.o_axes == ("B", "T", "H", "V") else None


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The last token's row; N tokens are seen.

    Attributes:
        scores, slopes: s and w'(s) [B, H, N]; with an exponential, w' in units of exp(max s).
        weights: p [B, H, N], divided.
        total: Z [B, H], in the same units.
        divisor, turn: D(Z) and D'(Z) [B, H].
        values: [B, H, N, V].
        mixed: m [B, H, V].
        steepness: |J| of the norm [B, H]; 1 without one.
        lever: ds_ij / dk_j [B, N, G, K]: what a key's gradient is, in units of its score's; of heads that share a key, the
            first one's.
        condition: how much relative rounding of its operands, in units of theirs, a score's weight shows [B, H, N]: of
            features that are exponentials the size of their arguments, of products of positive numbers one.
        lost: relative error of features that are what is left of a sum, in units of float32's rounding, that of the query's
            and of the key's smallest one [B, H, N]: 0 where the feature map adds nothing.
        seen: positions of the tokens that are seen.
        coupled: whether a norm runs over all heads, so that every head's upstream gradient reaches each of them.
    """

    scores: Tensor
    slopes: Tensor
    weights: Tensor
    total: Tensor
    divisor: Tensor
    turn: Tensor
    values: Tensor
    mixed: Tensor
    steepness: Tensor
    lever: Tensor
    condition: Tensor
    lost: Tensor
    seen: Tensor
    coupled: bool = False

    @property
    def distances(self) -> Tensor:
        """The vectors r = v_j - D' m [B, H, N, V]: towards them an upstream gradient meets the bound."""
        return self.values - (self.turn[..., None] * self.mixed)[..., None, :]

    def bounds(self, upstream: Tensor) -> Tensor:
        """Largest |ds| [B, H, N] under upstream gradients [B, H, V] of o."""
        ratio = self.slopes.abs() / self.divisor.abs()[..., None]
        size = upstream.norm(dim=(1, 2), keepdim=True)[..., 0] if self.coupled else upstream.norm(dim=-1)
        found: Tensor = (size * self.steepness)[..., None] * ratio * self.distances.norm(dim=-1)
        return found

    @property
    def entry_bound(self) -> Tensor:
        """Largest |dp_j / ds_k| [B, H] (behind a norm, of an output by unit values)."""
        one = torch.ones_like(self.divisor)
        largest = (1 + self.weights.abs().amax(-1)).where((self.weights < 0).any(-1), one)  # of |delta_jk - p_j|
        largest = largest.where(self.turn != 0, one)
        found: Tensor = self.steepness * self.slopes.abs().amax(-1) / self.divisor.abs() * largest
        return found

    @property
    def length(self) -> Tensor:
        """|m| [B, H]."""
        found: Tensor = self.mixed.norm(dim=-1)
        return found


def last_row(operator: Operator, tensors: Mapping[str, Tensor], scale: float | None = None) -> Row:
    """Evaluate the last token's row in float64.

    Raises:
        TypeError: the operator has no rows of weights.
    """
    facts, inputs, sizes, factor = _posed(operator, tensors, scale)
    query, key = (operator.of_kind(kind)[0].name for kind in ("query", "key"))
    inputs |= {n: inputs[n].requires_grad_() for n in (query, key)}
    with torch.enable_grad():
        scores, values, seen = _scores(operator, facts, inputs, sizes, factor)
        # of the heads that share a key one gets a gradient; which is the caller's to see to
        heads = scores.shape[1] // inputs[key].shape[2]
        of_query, lever = torch.autograd.grad(scores[:, ::heads].sum(), (inputs[query], inputs[key]))
    lever, s = lever[:, seen], scores.detach()
    moved = (inputs[key].detach()[:, seen] * lever).abs().sum(-1).transpose(1, 2).repeat_interleave(heads, 1)
    turned = (inputs[query].detach()[:, -1] * of_query[:, -1]).abs().sum(-1)[..., ::heads].repeat_interleave(heads, 1)
    tiny = torch.finfo(s.dtype).tiny
    condition = torch.maximum(moved / s.abs().clamp(min=tiny), (turned / s.abs().sum(-1).clamp(min=tiny))[..., None])
    if facts.weight == "exponential":  # it rounds by the size of its argument
        condition = 1 + s.abs().amax(-1, keepdim=True).expand_as(s)
    lost = _lost(operator, facts, inputs, sizes, seen) if facts.added else torch.zeros_like(s)
    return _row(facts, s, values.detach(), lever, condition.clamp(min=1.0), lost, seen, whole=operator.coupled_heads)


# Roundings of 1 + elu where elu is nearly -1: an exponential less one is off by an ulp, two half ones, and is rounded once.
_OF_SUM = 3.0


def _lost(operator: Operator, facts: Mechanism, x: Mapping[str, Tensor], sizes: dict[str, int], seen: Tensor) -> Tensor:
    """What sums lose of a query's and keys' smallest features, [B, H, N], in units of float32's rounding."""
    with torch.no_grad():
        c = operator.recurrence(dict(x), sizes)
    query, keys = (_OF_SUM * facts.added / t.amin(-1).transpose(1, 2) for t in (c.q[:, -1:], c.k[:, seen]))
    found: Tensor = query + keys
    return found


def row_of(facts: Mechanism, scores: Tensor, values: Tensor) -> Row:
    """The row of scores [B, H, N] and values [B, H, N, V] themselves, whatever they were made of: its levers are one."""
    condition = torch.ones_like(scores)
    if facts.weight == "exponential":  # it rounds by the size of its argument
        condition = condition + scores.abs().amax(-1, keepdim=True)
    lever = scores.new_ones(scores.shape[0], scores.shape[2], scores.shape[1], 1)
    index = torch.arange(scores.shape[-1])
    return _row(facts, scores, values, lever, condition, torch.zeros_like(scores), index, whole=False)


def query_levers(operator: Operator, tensors: Mapping[str, Tensor], scale: float | None = None) -> Tensor:
    """|ds_ij / dq_i| [B, H, N] of the last token: what its query's gradient is at most, in units of its scores'."""
    facts, inputs, sizes, factor = _posed(operator, tensors, scale)
    query = operator.of_kind("query")[0].name
    inputs[query] = inputs[query].requires_grad_()
    with torch.enable_grad():
        scores, _, _ = _scores(operator, facts, inputs, sizes, factor)
        each = [torch.autograd.grad(s.sum(), inputs[query], retain_graph=True)[0][:, -1] for s in scores.unbind(-1)]
    found: Tensor = torch.stack(each, -1).norm(dim=-2)
    return found


def _posed(
    operator: Operator, tensors: Mapping[str, Tensor], scale: float | None
) -> tuple[Mechanism, dict[str, Tensor], dict[str, int], float]:
    """The mechanism, the inputs in float64, the sizes and the scale.

    Raises:
        TypeError: the operator has no rows of weights.
    """
    facts = mechanism_of(operator)
    if facts is None:
        raise TypeError(f"{operator.name} states no mechanism and no recurrence that shows one")
    inputs = {n: t.detach().double() for n, t in tensors.items()}
    sizes = operator.sizes_of({n: t.shape for n, t in inputs.items()})
    return facts, inputs, sizes, operator.scale_for(sizes) if scale is None else scale


def _scores(
    operator: Operator, facts: Mechanism, x: Mapping[str, Tensor], sizes: dict[str, int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [B, H, N] of the last token with the tokens it sees, their values [B, H, N, V], and their positions."""
    last = sizes["T"] - 1
    hidden = torch.zeros(last + 1, dtype=torch.bool)
    if facts.hidden is not None:
        hidden = torch.from_numpy(facts.hidden(sizes["T"])[last])
    seen = (~hidden).nonzero()[:, 0].to(x[operator.value_name].device)
    if facts.scores is not None:
        v = x[operator.value_name]
        if v.shape[2] != sizes["H"]:
            v = v.repeat_interleave(sizes["H"] // v.shape[2], 2)
        return facts.scores(x, sizes, scale)[:, :, last, seen], v[:, seen].transpose(1, 2), seen
    c = operator.recurrence(x, sizes)
    values = c.v[..., : sizes.get("V", c.v.shape[-1])]
    return _recurrent(c, scale)[:, :, seen], values[:, seen].transpose(1, 2), seen


def _recurrent(c: Canonical, scale: float) -> Tensor:
    """Scores [B, H, T] of a recurrence's last token: products with keys that have decayed since."""
    q, k = c.q[:, -1:], c.k
    own = None
    if c.log_decay is not None:
        gates = c.log_decay.expand(*k.shape[:3], -1)
        after = gates.cumsum(1)
        read = after[:, -1:] if c.read == "inclusive" else after[:, -1:] - gates[:, -1:]
        decayed = (read - after).clamp(max=0).exp() * k
    else:
        decayed = k
    if c.read == "exclusive":
        bonus = 0.0 if c.bonus is None else c.bonus
        own = (q * bonus * k[:, -1:]).sum(-1)
    products = (q * decayed).sum(-1)  # [B, T, H]
    if own is not None:
        products = torch.cat([products[:, :-1], own], 1)
    found: Tensor = scale * products.transpose(1, 2)
    return found


def _row(
    facts: Mechanism, s: Tensor, v: Tensor, lever: Tensor, condition: Tensor, lost: Tensor, seen: Tensor, *, whole: bool
) -> Row:
    weights = (s - s.amax(-1, keepdim=True)).exp() if facts.weight == "exponential" else s
    slopes = weights if facts.weight == "exponential" else torch.ones_like(s)
    total = weights.sum(-1)
    divisor, turn = torch.ones_like(total), torch.zeros_like(total)
    if facts.divisor == "sum" or facts.weight == "exponential":
        divisor, turn = total + facts.eps, torch.ones_like(total)
    elif facts.divisor == "clamp":
        divisor, turn = total.clamp(min=facts.eps), (total > facts.eps).to(total)
    elif facts.divisor == "floor":
        divisor, turn = total.abs().clamp(min=1.0), total.sign() * (total.abs() > 1)
    p = weights / divisor[..., None]
    mixed = (p[..., None] * v).sum(-2)
    steepness = _steepness(facts, mixed, whole=whole)
    return Row(s, slopes, p, total, divisor, turn, v, mixed, steepness, lever, condition, lost, seen, whole)


def _steepness(facts: Mechanism, mixed: Tensor, *, whole: bool) -> Tensor:
    """The norm's largest slope at each row [B, H]: one over its denominator, along everything that is not the row itself."""
    if facts.norm == "none":
        return mixed.new_ones(mixed.shape[:-1])
    centred = mixed - mixed.mean(-1, keepdim=True) if facts.norm == "layer" else mixed
    square = centred.square().mean((1, 2) if whole else -1, keepdim=True)[..., 0]
    square = square.expand(mixed.shape[:-1])
    if facts.norm == "rms_outside":
        return 1 / (square.sqrt() + facts.norm_eps)
    return 1 / (square + facts.norm_eps).sqrt()
