"""Agent attention: a few agent tokens gather from all keys, and every query reads from the agents."""

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import heads_first, maximum, softmax
from linverify.identities import ALL_TOKENS
from linverify.operator import Array, Input, Inputs, Operator, Sizes

TILE = 16
AGENTS = 49
"""Agents of a drawn case: 7 x 7, as in the paper's models."""


def quadratic(x: Inputs, _: Sizes, scale: Array) -> Array:
    """Weights of all pairs of tokens first, a product of two matrices whose rows sum to one."""
    q, k, v, agent = (heads_first(x[n]) for n in ("q", "k", "v", "agent"))
    reading = softmax((q * scale) @ agent.transpose(-1, -2))
    gathering = softmax((agent * scale) @ k.transpose(-1, -2))
    return heads_first((reading @ gathering) @ v)


def streamed(x: Inputs, _: Sizes, scale: Array) -> Array:
    """Agents gather their values first, over tiles of tokens with a running maximum."""
    q, k, v, agent = (heads_first(x[n]) for n in ("q", "k", "v", "agent"))
    top: Array = None
    total: Array = None
    read: Array = None
    for first in range(0, k.shape[2], TILE):
        keys, values = k[:, :, first : first + TILE], v[:, :, first : first + TILE]
        scores = (agent * scale) @ keys.transpose(-1, -2)
        high = scores.detach().amax(-1, keepdim=True)
        new = high if top is None else maximum(top, high)
        weights = (scores - new).exp()
        kept: Array = None if top is None else (top - new).exp()
        total = weights.sum(-1, keepdim=True) + (0 if kept is None else kept * total)
        read = weights @ values if kept is None else weights @ values + kept * read
        top = new
    return heads_first(softmax((q * scale) @ agent.transpose(-1, -2)) @ (read / total))


OPERATOR = Operator(
    name="agent_attention",
    aliases=("agent_attn",),
    summary="Two softmax attentions in a row over all tokens: agents read the values, queries read the agents.",
    equations="a_m = sum_j softmax_j(scale * agent_m . k_j) v_j\no_i = sum_m softmax_m(scale * q_i . agent_m) a_m",
    source="Han et al. 2023, arXiv:2312.08874, section 3; LeapLabTHU/Agent-Attention, agent_transformer/models/"
    "agent_deit.py. Agents (pooled queries there) are an input; position biases and the convolution of v are no part of it",
    inputs=(
        QUERY,
        KEY,
        VALUE,
        Input("agent", ("B", "A", "H", "K"), "parameter", aliases=("agents", "agent_tokens", "a", "A")),
    ),
    forms={"naive": quadratic, "chunkwise": streamed},
    identities=(ALL_TOKENS - {"M19"}) | {"M16", "G12"},
    own_axes={"A": lambda _: AGENTS},
    state_axes=(),
    hazards=(
        "The scale belongs to both softmaxes.",
        "One softmax runs over the tokens, the other over the agents: over the wrong axis the shapes still fit.",
        "The number of agents is no multiple of a tile (49): padded agents must not take weight.",
        "Agents get a gradient from both products; with agents pooled from q it joins that of q.",
    ),
)
