"""Blocks as users write them, that mix tokens in ways that can, or cannot, be looked into from outside; right and wrong."""

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, relu, scaled_dot_product_attention

HEADS = 2


def causal(T: int, like: Tensor) -> Tensor:
    return torch.ones(T, T, dtype=like.dtype, device=like.device).tril()


class Projections(nn.Module):
    """Queries, keys and values of linear attention, by three maps; what happens between is one function."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.norm(x)
        q, k, v = (m(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT * causal(q.shape[-2], q)) @ v

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.attend(*self.heads(x)).transpose(1, 2).flatten(2))


class Attention(Projections):
    """torch's own attention function."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)


class Normed(Projections):
    """What is read is normed: nothing linear in the values is handed on, and the inside is no part of its own."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = super().attend(q, k, v)
        return o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Multihead(nn.Module):
    """torch's own layer, with its dropout."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(dim), nn.MultiheadAttention(dim, HEADS, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = causal(x.shape[1], x) == 0
        h = self.norm(x)
        return x + self.inner(h, h, h, attn_mask=hidden, need_weights=False)[0]


class Divided(Projections):
    """Linear attention over rectified features, divided by the sum of its weights, through a method of its own."""

    operator = "normalized_linear_attention:phi=relu"

    def mix(self, scores: Tensor, values: Tensor) -> Tensor:
        scores = scores * causal(scores.shape[-1], scores)
        return scores @ values / (scores.sum(-1, keepdim=True) + 1e-6)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix(relu(q) @ relu(k).mT, v)


class DividedWithoutEps(Divided):
    """The divisor has lost its eps; a row of nothing is nothing."""

    def mix(self, scores: Tensor, values: Tensor) -> Tensor:
        scores = scores * causal(scores.shape[-1], scores)
        total = scores.sum(-1, keepdim=True)
        return scores @ values / torch.where(total > 0, total, 1.0)


class Positive(Divided):
    """Features are positive, so that no row vanishes at ordinary inputs."""

    operator = "normalized_linear_attention"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix((elu(q) + 1) @ (elu(k) + 1).mT, v)


class PositiveWithoutEps(Positive):
    mix = DividedWithoutEps.mix


class Unnamed(DividedWithoutEps):
    """The same, naming no operator."""

    operator = None


class WithEpsUnnamed(Divided):
    operator = None


class Signed(WithEpsUnnamed):
    """Scores of both signs are divided by their sum."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix(q @ k.mT, v)


class Plain(Signed):
    """Weights are the scores."""

    def mix(self, scores: Tensor, values: Tensor) -> Tensor:
        return (scores * causal(scores.shape[-1], scores)) @ values


class NamesNothing(Divided):
    operator = "no_such_attention"


class NamesNoRows(Divided):
    operator = "delta_rule"


class MixesFlat(Projections):
    """Its method takes scores of another shape."""

    def mix(self, scores: Tensor, values: Tensor) -> Tensor:
        return scores @ values

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = self.mix((q @ k.mT * causal(q.shape[-2], q)).flatten(0, 1), v.flatten(0, 1))
        return o.unflatten(0, q.shape[:2])


class Window(nn.Module):
    """Every token sees four in a row, `back` tokens before it."""

    def __init__(self, dim: int, back: int = 0) -> None:
        super().__init__()
        self.norm, self.map, self.out, self.back = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, dim), back

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        apart = torch.arange(T)[:, None] - torch.arange(T)[None, :] - self.back
        near = ((apart >= 0) & (apart < 4)).to(x)
        return x + 0.1 * self.out(near / 4 @ self.map(self.norm(x)))


class Elsewhere(Window):
    """An offset too many: the same weights, eight tokens before those that are meant."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, back=8)


class Average(nn.Module):
    """A causal average and nothing else, so that its influences are its weights."""

    def forward(self, x: Tensor) -> Tensor:
        lower = causal(x.shape[1], x)
        return lower / lower.sum(-1, keepdim=True) @ x


class Alone(nn.Module):
    """Mixes no tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(x)


class LastLouder(Positive):
    """The last token's result is half as large again, as where a partial block is scaled twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.cat([y[:, :-1], 1.5 * y[:, -1:]], 1)


class SingleOnly(Positive):
    """Takes float32 and less, as kernels do."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise AssertionError("expected fp32, bf16 or fp16")
        return super().forward(x)


def swapped(block: SingleOnly) -> Positive:
    """The same block, taking float64, too."""
    made = Positive(block.norm.normalized_shape[0])
    made.load_state_dict(block.state_dict())
    return made
