"""RWKV-4: an average of values over time, weights exp(k) decaying by a constant of each channel, a bonus for the newest."""

from linverify.draws import uniform
from linverify.formulas import cat, later, maximum, stack
from linverify.operator import Array, Input, Inputs, Operator, Sizes

CHUNK = 16
_INFINITE = float("inf")


def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """Token by token, with numerator and denominator in units of exp of a running maximum."""
    w, u, outs = -x["w"].exp(), x["u"], []
    top: Array = None
    over: Array = None
    under: Array = None
    for t in range(sizes["T"]):
        k, v = x["k"][:, t], x["v"][:, t]
        if top is None:
            outs.append(v)
            top, over, under = k.detach(), v, (k - k.detach()).exp()
            over = under * v
            continue
        high = maximum((u + k).detach(), top)
        past, own = (top - high).exp(), (u + k - high).exp()
        outs.append((past * over + own * v) / (past * under + own))
        new = maximum((w + top).detach(), k.detach())
        kept, written = (w + top - new).exp(), (k - new).exp()
        top, over, under = new, kept * over + written * v, kept * under + written
    return scale * stack(outs, 1)


def _tiles(x: Inputs, sizes: Sizes, scale: Array, chunk: int) -> Array:
    """Tiles of tokens against their own and all earlier ones, a running maximum for each channel."""
    w, u, outs = -x["w"].exp(), x["u"], []
    top: Array = None
    over: Array = None
    under: Array = None
    for start in range(0, sizes["T"], chunk):
        k, v = (x[n][:, start : start + chunk] for n in "kv")
        C = k.shape[1]
        steps = k.new_tensor([[float(i - 1 - j) for j in range(C)] for i in range(C)])[:, :, None]
        logs = (k[:, None] + steps * w).masked_fill(later(C, C, k, strict=True)[..., None], -_INFINITE)
        own = u + k
        high = maximum(logs.detach().amax(2), own.detach())
        age = k.new_tensor([float(i) for i in range(C)])[:, None] * w
        if top is not None:
            high = maximum(high, age.detach() + top[:, None])
        weights, mine = (logs - high[:, :, None]).exp(), (own - high).exp()
        above, below = (weights * v[:, None]).sum(2) + mine * v, weights.sum(2) + mine
        if top is not None:
            past = (age + top[:, None] - high).exp()
            above, below = above + past * over[:, None], below + past * under[:, None]
        outs.append(above / below)
        left = k.new_tensor([float(C - 1 - j) for j in range(C)])[:, None] * w + k
        new = left.detach().amax(1)
        if top is not None:
            new = maximum(new, (C * w).detach() + top)
        keys = (left - new[:, None]).exp()
        added = (keys * v).sum(1), keys.sum(1)
        if top is not None:
            kept = (C * w + top - new).exp()
            added = kept * over + added[0], kept * under + added[1]
        top, (over, under) = new, added
    return scale * cat(outs, 1)


def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """Chunk by chunk."""
    return _tiles(x, sizes, scale, CHUNK)


OPERATOR = Operator(
    name="rwkv4",
    aliases=("wkv4", "wkv"),
    summary="An average of all values with weights exp(k) that decay by a constant of each channel, the newest with a bonus.",
    equations="a_t = sum_{s < t} exp(k_s - (t-1-s) exp(w)) v_s + exp(u + k_t) v_t;  b_t likewise, with 1 for v\n"
    "o_t = scale * a_t / b_t, channel by channel",
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
    forms={"recurrent": recurrent, "chunkwise": chunkwise},
    o_axes=("B", "T", "V"),
    state_axes=(),
    identities=frozenset({"M1", "M4", "M6", "M16", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "exp(k) overflows for k above 88: numerator and denominator need a running maximum.",
        "A maximum that starts at minus infinity makes NaN of its first difference; kernels start at -1e38.",
        "The argument is w with the decay exp(-exp(w)), not the log decay itself.",
        "The newest token counts with u alone, not with its decayed weight too.",
        "The gradients of w and u sum over batch and time; in 16 bits they lose digits.",
    ),
)
