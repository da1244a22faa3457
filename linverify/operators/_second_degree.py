"""Causal sums of values weighted by polynomials of second degree in the scores: what Based and ReBased share."""

from collections.abc import Callable

from linverify.formulas import cat, heads_first, later, ones_like, stack
from linverify.operator import Array, Form, Inputs, Sizes

CHUNK = 16

# Numerator [B, T, H, V] and normaliser [B, T, H, 1] to o.
Finish = Callable[[Array, Array], Array]


def _operands(x: Inputs, scale: Array) -> tuple[Array, Array, Array]:
    """Scaled queries, keys, and values with a column of ones: [B, H, T, .]."""
    return heads_first(x["q"] * scale), heads_first(x["k"]), heads_first(cat([x["v"], ones_like(x["v"][..., :1])]))


def _squares(x: Array) -> Array:
    """All products of two channels: [B, H, T, K] to [B, H, T, K^2]."""
    B, H, T, K = x.shape
    return (x[:, :, :, :, None] * x[:, :, :, None, :]).reshape(B, H, T, K * K)


def weights_of(c0: float, c1: float, c2: float) -> Form:
    """The weights c0 + c1 x + c2 x^2 [B, H, T, T] of all pairs, for bounds of gradients."""

    def weights(x: Inputs, _: Sizes, scale: Array) -> Array:
        found = heads_first(x["q"] * scale) @ heads_first(x["k"]).transpose(-1, -2)
        return c0 + c1 * found + c2 * (found * found)

    return weights


def second_degree(c0: float, c1: float, c2: float, finish: Finish) -> dict[str, Form]:
    """The forms of o_t = finish(sum_s w(q_t . k_s) v_s, sum_s w(q_t . k_s)), w(x) = c0 + c1 x + c2 x^2, s <= t."""

    def weights(q: Array, k: Array) -> Array:
        scores = q @ k.transpose(-1, -2)
        found = c2 * (scores * scores)
        found = found + c1 * scores if c1 else found
        found = found + c0 if c0 else found
        return found.masked_fill(later(q.shape[2], k.shape[2], scores), 0)

    def naive(x: Inputs, _: Sizes, scale: Array) -> Array:
        """The definition: all weights at once."""
        q, k, v = _operands(x, scale)
        o = heads_first(weights(q, k) @ v)
        return finish(o[..., :-1], o[..., -1:])

    def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """One state of each degree between chunks: sums of v [1, V], k v^T [K, V] and (k k^T) v^T [K^2, V]."""
        q, k, v = _operands(x, scale)
        outs, states = [], None
        for start in range(0, sizes["T"], CHUNK):
            a, b, c = (y[:, :, start : start + CHUNK] for y in (q, k, v))
            o = weights(a, b) @ c
            if states is not None:
                constant, linear, square = states
                o = o + c2 * (_squares(a) @ square)
                o = o + c1 * (a @ linear) if c1 else o
                o = o + c0 * constant if c0 else o
            outs.append(o)
            new = (c.sum(2, keepdim=True), b.transpose(-1, -2) @ c, _squares(b).transpose(-1, -2) @ c)
            states = new if states is None else tuple(old + more for old, more in zip(states, new, strict=True))
        o = heads_first(cat(outs, 2))
        return finish(o[..., :-1], o[..., -1:])

    def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Token by token, with the same three states."""
        q, k, v = _operands(x, scale)
        a, b = _squares(q), _squares(k)
        outs = []
        constant: Array = None
        linear: Array = None
        square: Array = None
        for t in range(sizes["T"]):
            new = v[:, :, t]
            added = k[:, :, t, :, None] * new[:, :, None], b[:, :, t, :, None] * new[:, :, None]
            constant = new if constant is None else constant + new
            linear = added[0] if linear is None else linear + added[0]
            square = added[1] if square is None else square + added[1]
            o = c2 * (a[:, :, t, :, None] * square).sum(-2)
            o = o + c1 * (q[:, :, t, :, None] * linear).sum(-2) if c1 else o
            outs.append(o + c0 * constant if c0 else o)
        o = stack(outs, 1)
        return finish(o[..., :-1], o[..., -1:])

    return {"naive": naive, "recurrent": recurrent, "chunkwise": chunkwise}
