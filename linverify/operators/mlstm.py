"""mLSTM (xLSTM): a matrix memory with exponential input gates, a normaliser with a floor, and a running maximum."""

from collections.abc import Mapping

from linverify.arguments import KEY, QUERY, VALUE
from linverify.draws import normal, shifted
from linverify.formulas import (
    cat,
    heads_first,
    later,
    logsigmoid,
    maximum,
    ones_like,
    smallest_normal,
    stack,
    zeros_like,
)
from linverify.identities import NORMALISED
from linverify.mechanism import Mechanism
from linverify.operator import Array, Form, Input, Inputs, Operator, Reduction, Sizes

CHUNK = 16
_INFINITE = float("inf")


def _terms(x: Inputs, scale: Array) -> tuple[Array, ...]:
    """Queries (scaled), k, v as [B, H, T, .]; input gates and log forget gates as [B, H, T]."""
    q, k, v = (heads_first(x[n]) for n in "qkv")
    return q * scale, k, v, x["i"].transpose(1, 2), logsigmoid(x["f"].transpose(1, 2))


def _divided(read: Array, weights: Array, top: Array, eps: float) -> Array:
    """What was read over max(|sum of weights|, exp(-m)) + eps, all of it measured in units of exp(m)."""
    floor = (-top).exp()
    # where exp(-m) underflows a query of zero would be 0 / 0; in float64 it does not, and nothing bounds that query's gradient
    return read / (maximum(weights.abs(), floor.clamp(min=smallest_normal(floor))) + eps)


def _naive(eps: float) -> Form:
    def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        q, k, v, i, f = _terms(x, scale)
        T, total = sizes["T"], f.cumsum(-1)
        mask = later(T, T, f)
        logs = (total[..., :, None] - total[..., None, :] + i[..., None, :]).masked_fill(mask, -_INFINITE)
        top = logs.detach().amax(-1, keepdim=True)
        scores = (q @ k.transpose(-1, -2)) * (logs - top).exp()
        return heads_first(_divided(scores @ v, scores.sum(-1, keepdim=True), top, eps))

    return naive


def _scores(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """Products of queries and keys with their gates, in plain units."""
    q, k, _, i, f = _terms(x, scale)
    total = f.cumsum(-1)
    logs = total[..., :, None] - total[..., None, :] + i[..., None, :]
    mask = later(sizes["T"], sizes["T"], f)
    return (q @ k.transpose(-1, -2)) * logs.masked_fill(mask, -_INFINITE).exp()


def _recurrent(eps: float) -> Form:
    def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        q, k, v, i, f = _terms(x, scale)
        outs: list[Array] = []
        memory: Array = None
        norm: Array = None
        top: Array = None
        for t in range(sizes["T"]):
            forget, write = f[..., t, None], i[..., t, None]
            new = write.detach() if top is None else maximum(forget.detach() + top, write.detach())
            key = k[..., t, :] * (write - new).exp()
            added = key[..., :, None] * v[..., t, None, :]
            if top is None:
                memory, norm = added, key
            else:
                kept = (forget + top - new).exp()
                memory, norm = kept[..., None] * memory + added, kept * norm + key
            top, query = new, q[..., t, :]
            read = (query[..., :, None] * memory).sum(-2)
            outs.append(_divided(read, (query * norm).sum(-1, keepdim=True), top, eps))
        return stack(outs, 1)

    return recurrent


def _chunkwise(eps: float, size: int = CHUNK, *, beside: bool = False) -> Form:
    """Chunks of `size` tokens; the normaliser from scores and keys as they are, or `beside` the values, as one more of them.

    A kernel that adds up the scores, keys and queries that it multiplies adds up what was rounded for multiplying.
    """

    def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        terms, outs = _terms(x, scale), []
        if beside:
            values = terms[2]
            terms = *terms[:2], cat([values, ones_like(values[..., :1])], -1), *terms[3:]
        memory: Array = None
        norm: Array = None
        top = zeros_like(terms[3][..., :1])
        for start in range(0, sizes["T"], size):
            q, k, v = (y[..., start : start + size, :] for y in terms[:3])
            i, f = (y[..., start : start + size] for y in terms[3:])
            C, total = i.shape[-1], f.cumsum(-1)
            logs = total[..., :, None] - total[..., None, :] + i[..., None, :]
            logs = logs.masked_fill(later(C, C, i), -_INFINITE)
            high, end = logs.detach().amax(-1, keepdim=True), total[..., -1:]
            out = end - total + i
            if memory is None:
                rows, new = high, out.detach().amax(-1, keepdim=True)
            else:
                rows = maximum(total.detach()[..., None] + top[..., None], high)
                new = maximum(end.detach() + top, out.detach().amax(-1, keepdim=True))
            scores = (q @ k.transpose(-1, -2)) * (logs - rows).exp()
            read, weights = scores @ v, scores.sum(-1, keepdim=True)
            keys = k * (out - new).exp()[..., None]
            added = keys.transpose(-1, -2) @ v, keys.sum(-2)
            if memory is None:
                memory, norm = added
            else:
                query = q * (total[..., None] + top[..., None] - rows).exp()
                read, weights = read + query @ memory, weights + (query * norm[..., None, :]).sum(-1, keepdim=True)
                kept = (end + top - new).exp()
                memory, norm = kept[..., None] * memory + added[0], kept * norm + added[1]
            top = new
            if beside:
                read, weights = read[..., :-1], read[..., -1:]
            outs.append(_divided(read, weights, rows, eps))
        return heads_first(cat(outs, 2))

    return chunkwise


def _without_gates(x: Mapping[str, Array]) -> dict[str, Array]:
    """Restrict to i = 0 and queries so small that the floor of the normaliser holds."""
    return {**x, "q": x["q"] * 2.0**-12, "i": x["i"].new_zeros(x["i"].shape)}


def operator(eps: float = 0.0) -> Operator:
    """State the operator with the eps that is added to the normaliser after it is measured in units of exp(m)."""
    return Operator(
        name="mlstm",
        aliases=("xlstm", "matrix_lstm"),
        summary="A decaying sum of key-value products with exponential input gates, divided by a normaliser of at least one.",
        equations="m_t = max(log sigmoid(f_t) + m_{t-1}, i_t),  m_0 = -infinity\n"
        "C_t = exp(log sigmoid(f_t) + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_t^T;  n_t likewise, with 1 for v_t\n"
        "o_t = scale * C_t^T q_t / (max(|scale * n_t . q_t|, exp(-m_t)) + eps)",
        source="Beck et al. 2024, arXiv:2405.04517, eq. 19 to 27 and appendix A.2 (parallel form and stabiliser); "
        "chunks: Beck et al. 2025, arXiv:2503.14376",
        inputs=(
            QUERY,
            KEY,
            VALUE,
            Input(
                "i",
                ("B", "T", "H"),
                "parameter",
                "input gate before exp",
                aliases=("igate_preact", "input_gate", "vecI", "i_preact"),
                draw=shifted(normal(0.0, 3.0), by=100.0, share=0.25),
            ),
            Input(
                "f",
                ("B", "T", "H"),
                "parameter",
                "forget gate before the sigmoid",
                aliases=("fgate_preact", "forget_gate", "vecF", "f_preact"),
                draw=shifted(normal(4.0, 2.0), by=-5.0, share=0.25),
            ),
        ),
        forms={"naive": _naive(eps), "recurrent": _recurrent(eps), "chunkwise": _chunkwise(eps)},
        ways={"chunkwise 64, normaliser beside the values": _chunkwise(eps, 64, beside=True)},
        mechanism=Mechanism(divisor="floor", scores=_scores, signed=True),
        identities=NORMALISED - {"M16"} | {"M15"},
        state_axes=(),
        rebuild=operator,
        hazards=(
            "exp of an input gate of 89 overflows in float32: only a running maximum keeps the memory finite.",
            "eps is added in units of exp(m), so forms whose m starts at 0 and at minus infinity differ by eps / |n . q|.",
            "The floor is one in plain units, exp(-m) in the stabilised ones; left at one it is wrong wherever m is not 0.",
            "The maximum has no gradient: a path through it is wrong by its own size.",
            "exp(-m) underflows for gates above 87: without an eps a query of zero is then 0 / 0.",
            "|n . q| has a kink at the floor; on its far side the normaliser's gradient carries the sign of n . q.",
        ),
        reductions=(
            Reduction(
                "simple_gla",
                "i = 0 and |n . q| below one",
                _without_gates,
                lambda x: {**{n: x[n] for n in "qkv"}, "g": logsigmoid(x["f"].double())},
            ),
            Reduction(
                "linear_attention",
                "i = 0, sigmoid(f) = 1 and |n . q| below one",
                lambda x: {**_without_gates(x), "f": x["f"].new_full(x["f"].shape, 1024.0)},
                lambda x: {n: x[n] for n in "qkv"},
            ),
        ),
        # as good as none, but for a query of zero where exp(-m) underflows
        pins={"eps": eps or 1e-30},
    )


OPERATOR = operator()
