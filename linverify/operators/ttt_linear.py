"""TTT-Linear: the state is a linear model that takes a gradient step on every mini-batch of tokens."""

from collections.abc import Callable
from functools import partial

from linverify.arguments import KEY, PINS, QUERY, VALUE
from linverify.draws import normal, uniform
from linverify.formulas import cat, heads_first, later, layer_norm, zeros_like
from linverify.operator import Array, Form, Input, Inputs, Operator, Reduction, Sizes

_LEARNS = ("B", "T", "H", "E")
_NORM = ("H", "K")
RESIDUALS = ("model", "query")


class _Model:
    """The inner model f(x) = LN(x W + b) + x, or x W: what it learns from keys and values, and what it answers."""

    def __init__(self, x: Inputs, scale: Array, eps: float, residual: str, *, norm: bool) -> None:
        self.q, self.k, self.v, self.eta = (heads_first(x[n]) for n in ("q", "k", "v", "eta"))
        self.q, self.eps, self.residual, self.norm = self.q * scale, eps, residual, norm
        self.given = x.get("initial_state")
        if norm:
            self.weight, self.bias = x["w"][:, None], x["b"][:, None]

    def slope(self, u: Array, span: slice) -> Array:
        """Gradient of the loss by u = k W + b: |LN(u) - (v - k)|^2 / 2, or |u - v|^2 / 2."""
        k, v = self.k[:, :, span], self.v[:, :, span]
        if not self.norm:
            return u - v
        centred = u - u.mean(-1, keepdim=True)
        spread = ((centred * centred).mean(-1, keepdim=True) + self.eps).sqrt()
        hat = centred / spread
        g = (self.weight * hat + self.bias - (v - k)) * self.weight
        return (g - g.mean(-1, keepdim=True) - hat * (g * hat).mean(-1, keepdim=True)) / spread

    def answer(self, z: Array, span: slice) -> Array:
        """The output from z = q W + b."""
        if not self.norm:
            return z
        normed = layer_norm(z, self.eps) * self.weight + self.bias
        return normed + (z if self.residual == "model" else self.q[:, :, span])

    def start(self) -> tuple[Array, Array]:
        """W, zero where none is given, and b, zero."""
        k, v = self.k[:, :, :1], self.v[:, :, :1]
        return zeros_like(k.transpose(-1, -2) * v) if self.given is None else self.given, zeros_like(v)


def _forms(size: int, eps: float, residual: str, *, norm: bool) -> tuple[dict[str, Form], dict[str, Form]]:
    """The forms, and another way to compute the chunkwise one."""

    def results(outs: list[Array], W: Array) -> Array:
        o = heads_first(cat(outs, 2))
        return o if norm else (o, W)

    def by_scores(q: Array, k: Array, eta: Array, d: Array, mask: Array) -> Array:
        """What a mini-batch takes from its own answers: the step sizes beside the scores, and beside the bias."""
        taken = (eta * (q @ k.transpose(-1, -2)).masked_fill(mask, 0.0)) @ d
        return taken + eta * d.cumsum(2) if norm else taken

    def by_products(q: Array, k: Array, eta: Array, d: Array, mask: Array) -> Array:
        """The same where each term is a product: so is the step sizes' gradient, (dS k) q and dS, as kernels compute it."""
        taken = ((eta * q) @ k.transpose(-1, -2)).masked_fill(mask, 0.0) @ d
        return taken + (eta + zeros_like(eta.transpose(-1, -2))).masked_fill(mask, 0.0) @ d if norm else taken

    def in_chunks(own: Callable[..., Array], x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """The dual form: the answers of a mini-batch from products of its queries and keys."""
        m, outs = _Model(x, scale, eps, residual, norm=norm), []
        W, b = m.start()
        for start in range(0, sizes["T"], size):
            span = slice(start, start + size)
            q, k, eta = m.q[:, :, span], m.k[:, :, span], m.eta[:, :, span]
            mask = later(q.shape[2], q.shape[2], q)
            d = m.slope(k @ W + b, span)
            z, last = q @ W - own(q, k, eta, d, mask), eta[:, :, -1:]
            if norm:
                z = z + b
                b = b - last * d.sum(2, keepdim=True)
            W = W - (last * k).transpose(-1, -2) @ d
            outs.append(m.answer(z, span))
        return results(outs, W)

    def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """The primal form: the gradient of the mini-batch summed up token by token, a model for each token."""
        m, outs = _Model(x, scale, eps, residual, norm=norm), []
        W, b = m.start()
        W_now, b_now, up, up_b = W, b, zeros_like(W), zeros_like(b)
        for t in range(sizes["T"]):
            if t % size == 0:
                W, b, up, up_b = W_now, b_now, zeros_like(W), zeros_like(b)
            span = slice(t, t + 1)
            key = m.k[:, :, span].transpose(-1, -2)
            eta = m.eta[:, :, span]
            d = m.slope((key * W).sum(-2, keepdim=True) + b, span)
            up, up_b = up + key * d, up_b + d
            W_now = W - eta * up
            b_now = b - eta * up_b if norm else b
            z = (m.q[:, :, span].transpose(-1, -2) * W_now).sum(-2, keepdim=True) + b_now
            outs.append(m.answer(z, span))
        return results(outs, W_now)

    chunkwise, products = partial(in_chunks, by_scores), partial(in_chunks, by_products)
    return {"recurrent": recurrent, "chunkwise": chunkwise}, {"chunkwise, all in products": products}


def operator(mini_batch_size: int = 16, norm: bool = True, residual: str = "model", eps: float = 1e-6) -> Operator:
    """State the operator.

    Args:
        mini_batch_size: tokens whose gradients are taken at the same model.
        norm: LayerNorm, bias and residual in the inner model; without them v may be wider than k.
        residual: of the answer, "model" (z + LN(z), flash-linear-attention) or "query" (q + LN(z), the authors' code).
        eps: of the LayerNorm.

    Raises:
        ValueError: a mini-batch below one token, or an unknown residual.
    """
    if mini_batch_size < 1 or residual not in RESIDUALS:
        raise ValueError(
            f"expected mini_batch_size >= 1 and residual among {', '.join(RESIDUALS)}, got {mini_batch_size}, {residual!r}"
        )
    rate = Input(
        "eta", _LEARNS, "parameter", "eta >= 0, learning rates", aliases=("lr", "ttt_lr"), draw=uniform(0.01, 0.1)
    )
    width = "K" if norm else "V"
    weights = (
        Input("w", _NORM, "parameter", "LayerNorm weight", aliases=("ln_weight", "weight"), draw=normal(1.0, 0.2)),
        Input("b", _NORM, "parameter", "LayerNorm bias", aliases=("ln_bias", "bias"), draw=normal(0.0, 0.2)),
    )
    value = Input("v", ("B", "T", "H", width), "value", aliases=VALUE.aliases)
    inner = "W x + b, LN, plus x; the loss |LN(k W + b) - (v - k)|^2 / 2" if norm else "x W; the loss |k W - v|^2 / 2"
    answers = (
        {"model": "o_i = z_i + LN(z_i)", "query": "o_i = scale * q_i + LN(z_i)"}[residual] if norm else "o_i = z_i"
    )
    delta = Reduction(
        "delta_rule",
        "mini-batches of one token, no norm",
        dict,
        lambda x: {**{n: x[n] for n in "qkv"}, "beta": x["eta"][..., 0].clone()},
    )
    forms, ways = _forms(mini_batch_size, eps, residual, norm=norm)
    return Operator(
        name="ttt_linear",
        aliases=("ttt", "test_time_training"),
        summary=f"A linear model as state, trained by one gradient step on every mini-batch of {mini_batch_size} tokens.",
        equations=f"inner model: {inner}\n"
        "d_j = dloss / d(k_j W + b) at the W, b that enter the mini-batch (0 at first)\n"
        "z_i = scale * q_i W + b - eta_i sum_{j <= i} (scale * q_i . k_j + 1) d_j, j in the mini-batch (b, + 1 with the norm)\n"
        f"{answers};  W <- W - eta_last sum_j k_j d_j^T;  b <- b - eta_last sum_j d_j"
        + ("" if norm else "\nthe state is W; a sequence may be resumed behind whole mini-batches"),
        source="Sun et al. 2024, arXiv:2407.04620, section 2.4 to 2.6 (mini-batches, dual form, TTT-Linear)",
        inputs=(QUERY, KEY, value, *(weights if norm else ()), rate),
        forms=forms,
        ways=ways,
        o_axes=("B", "T", "H", width),
        own_axes={"E": lambda _: 1},
        state_axes=() if norm else ("N", "H", "K", "V"),
        resumes_every=mini_batch_size,
        identities=frozenset({"M4", "M7", "M19", "G13"}) | (frozenset() if norm else frozenset({"M1", "M5", "M15"})),
        unit_keys=True,
        rebuild=operator,
        hazards=(
            "The step of a token uses its own learning rate for every gradient before it, that of the state the last one's.",
            "A mini-batch is part of the definition: another chunk size is another operator.",
            "At W = 0 the LayerNorm divides by sqrt(eps): its gradient is a thousand times larger than later ones.",
            "The target is v - k because the model adds its input; with v as target the first tokens look the same.",
            "Published forms differ in the residual of the answer: z + LN(z) or q + LN(z).",
        ),
        reductions=(delta,) if not norm and mini_batch_size == 1 else (),
        pins={**PINS, "mini_batch_size": mini_batch_size, "chunk_size": mini_batch_size, "eps": eps},
    )


OPERATOR = operator()
