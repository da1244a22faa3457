"""Linformer: keys and values are projected along the time axis to a fixed number of rows before softmax attention."""

import math
from typing import Any

import torch
from torch import Tensor

from linverify.arguments import KEY, QUERY, VALUE
from linverify.formulas import heads_first, softmax
from linverify.operator import Array, Input, Inputs, Operator, Sizes

TILE = 16
RANK = 32
"""Projected rows of a drawn case."""


def _projection(generator: Any, shape: tuple[int, ...]) -> Tensor:
    """Entries of variance 1 / R, as in the paper's theorem 2."""
    drawn: Tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
    scaled: Tensor = drawn / math.sqrt(shape[0])
    return scaled


def quadratic(x: Inputs, _: Sizes, scale: Array) -> Array:
    """Weights of all pairs of tokens first: softmax over the projected rows, times F."""
    q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
    weights = softmax((q * scale) @ (x["E"] @ k).transpose(-1, -2))
    return heads_first((weights @ x["F"]) @ v)


def projected(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """Keys and values are projected first, summed up over tiles of tokens."""
    q, k, v = (heads_first(x[n]) for n in ("q", "k", "v"))
    keys: Array = None
    values: Array = None
    for first in range(0, sizes["T"], TILE):
        part = slice(first, first + TILE)
        more_keys, more_values = x["E"][:, part] @ k[:, :, part], x["F"][:, part] @ v[:, :, part]
        keys = more_keys if keys is None else keys + more_keys
        values = more_values if values is None else values + more_values
    return heads_first(softmax((q * scale) @ keys.transpose(-1, -2)) @ values)


OPERATOR = Operator(
    name="linformer",
    summary="Softmax attention over keys and values that were projected along time to R rows; E and F serve every head.",
    equations="o_i = sum_r softmax_r(scale * q_i . (E k)_r) (F v)_r,  E, F [R, T]",
    source="Wang et al. 2020, arXiv:2006.04768, eq. 7 (E and F shared by the heads: section 4)",
    inputs=(
        QUERY,
        KEY,
        VALUE,
        Input("E", ("R", "T"), "parameter", "N(0, 1/R)", aliases=("proj_k", "e", "E_proj"), draw=_projection),
        Input("F", ("R", "T"), "parameter", "N(0, 1/R)", aliases=("proj_v", "f", "F_proj"), draw=_projection),
    ),
    forms={"naive": quadratic, "chunkwise": projected},
    identities=frozenset({"M1", "M7", "M8", "M15", "G13"}),
    own_axes={"R": lambda _: RANK},
    state_axes=(),
    hazards=(
        "E mixes all tokens: nothing about it is causal, and a mask on T x T scores has no meaning.",
        "A projection learned for the longest sequence is cut for a shorter one: its columns belong to positions.",
        "The softmax runs over the R projected rows; padded rows of a tile must not take weight.",
        "Gradients of E and F sum over batch and heads: in 16 bits they lose digits.",
    ),
)
