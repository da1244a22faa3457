"""RWKV-4: an average of values over time, weights exp(k) decaying by a constant of each channel, a bonus for the newest."""

import torch

from linverify.draws import uniform
from linverify.formulas import cat, later, maximum, positive, stack
from linverify.operator import Array, Input, Inputs, Operator, Sizes

CHUNK = 16
NOTHING = 1e38
"""A maximum of minus this stands for no token at all."""
_INFINITE = float("inf")


def _start(x: Inputs) -> tuple[Array, Array, Array]:
    """Numerator, denominator and maximum [B, V] that the sequence starts from, all None where no state is given.

    The units of the sums are exp of the maximum as a number; what it has of a gradient stays in the sums.
    """
    state = x.get("initial_state")
    if state is None:
        return None, None, None
    over, under, path = (state[:, i, 0] for i in range(3))
    unit = (path - path.detach()).exp()
    return over * unit, under * unit, path


def _end(over: Array, under: Array, path: Array) -> Array:
    """The state [B, 3, 1, V]: sums in units of exp of the maximum, and the maximum."""
    unit = (path.detach() - path).exp()
    return stack([over * unit, under * unit, path], 1)[:, :, None]


def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """Token by token, with numerator and denominator in units of exp of a running maximum."""
    w, u, outs = -x["w"].exp(), x["u"], []
    over, under, path = _start(x)
    for t in range(sizes["T"]):
        k, v = x["k"][:, t], x["v"][:, t]
        if path is None:
            outs.append(v)
            path, under = k, (k - k.detach()).exp()
            over = under * v
            continue
        top = path.detach()
        high = maximum((u + k).detach(), top)
        past, own = (top - high).exp(), (u + k - high).exp()
        outs.append((past * over + own * v) / (past * under + own))
        path = maximum(w + path, k)
        new = path.detach()
        kept, written = (w + top - new).exp(), (k - new).exp()
        over, under = kept * over + written * v, kept * under + written
    return scale * stack(outs, 1), _end(over, under, path)


def _tiles(x: Inputs, sizes: Sizes, scale: Array, chunk: int) -> tuple[Array, Array]:
    """Tiles of tokens against their own and all earlier ones, a running maximum for each channel."""
    w, u, outs = -x["w"].exp(), x["u"], []
    over, under, path = _start(x)
    for start in range(0, sizes["T"], chunk):
        k, v = (x[n][:, start : start + chunk] for n in "kv")
        C = k.shape[1]
        steps = k.new_tensor([[float(i - 1 - j) for j in range(C)] for i in range(C)])[:, :, None]
        logs = (k[:, None] + steps * w).masked_fill(later(C, C, k, strict=True)[..., None], -_INFINITE)
        own = u + k
        high = maximum(logs.detach().amax(2), own.detach())
        age = k.new_tensor([float(i) for i in range(C)])[:, None] * w
        top = None if path is None else path.detach()
        if top is not None:
            high = maximum(high, age.detach() + top[:, None])
        weights, mine = (logs - high[:, :, None]).exp(), (own - high).exp()
        above, below = (weights * v[:, None]).sum(2) + mine * v, weights.sum(2) + mine
        if top is not None:
            past = (age + top[:, None] - high).exp()
            above, below = above + past * over[:, None], below + past * under[:, None]
        outs.append(above / below)
        left = k.new_tensor([float(C - 1 - j) for j in range(C)])[:, None] * w + k
        largest = left.masked_fill(positive(left.detach().amax(1)[:, None] - left), 0.0).sum(1)
        path = largest if path is None else maximum(C * w + path, largest)
        new = path.detach()
        keys = (left - new[:, None]).exp()
        added = (keys * v).sum(1), keys.sum(1)
        if top is not None:
            kept = (C * w + top - new).exp()
            added = kept * over + added[0], kept * under + added[1]
        over, under = added
    return scale * cat(outs, 1), _end(over, under, path)


def naive(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """All pairs of tokens at once: one tile."""
    return _tiles(x, sizes, scale, sizes["T"])


def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """Chunk by chunk."""
    return _tiles(x, sizes, scale, CHUNK)


OPERATOR = Operator(
    name="rwkv4",
    aliases=("wkv4", "wkv"),
    summary="An average of all values with weights exp(k) that decay by a constant of each channel, the newest with a bonus.",
    equations="a_t = sum_{s < t} exp(k_s - (t-1-s) exp(w)) v_s + exp(u + k_t) v_t;  b_t likewise, with 1 for v\n"
    "o_t = scale * a_t / b_t, channel by channel\n"
    "the state is (a, b, m), both sums without the bonus and in units of exp(m), m the largest exponent in them",
    source="Peng et al. 2023, arXiv:2305.13048, eq. 16 and appendix D (running maximum)",
    inputs=(
        Input(
            "w",
            ("V",),
            "log_rate",
            "real; the decay is exp(-exp(w))",
            aliases=("time_decay", "decay"),
            draw=uniform(-6.0, 1.0),
        ),
        Input("u", ("V",), "bonus", aliases=("time_first", "bonus")),
        Input("k", ("B", "T", "V"), "key", aliases=("key", "keys")),
        Input("v", ("B", "T", "V"), "value", aliases=("value", "values")),
    ),
    forms={"recurrent": recurrent, "naive": naive, "chunkwise": chunkwise},
    o_axes=("B", "T", "V"),
    own_axes={"P": lambda _: 3, "E": lambda _: 1},
    state_axes=("N", "P", "E", "V"),
    linear_state=False,
    state_domain=lambda x: torch.cat([x[:, :1], x[:, 1:2].abs(), x[:, 2:]], 1),
    blank_state=lambda x: torch.cat([x[:, :2], x[:, 2:] - NOTHING], 1),
    identities=frozenset({"M1", "M4", "M5", "M6", "M16", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "exp(k) overflows for k above 88: numerator and denominator need a running maximum.",
        "A maximum that starts at minus infinity makes NaN of its first difference; kernels start at -1e38.",
        "The argument is w with the decay exp(-exp(w)), not the log decay itself.",
        "The newest token counts with u alone, not with its decayed weight too.",
        "The gradients of w and u sum over batch and time; in 16 bits they lose digits.",
    ),
)
