"""Kernels that behave and misbehave in the ways a session must tell apart; tests/test_session.py checks them."""

import ctypes
import sys
import time

import torch

from linverify import kernel


def good(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    S = torch.zeros(*q.shape[::2], q.shape[3], v.shape[3], dtype=wide) if initial_state is None else initial_state
    out = []
    for t in range(q.shape[1]):
        S = S * g[:, t, :, :, None].to(wide).exp() + k[:, t, :, :, None].to(wide) * v[:, t, :, None].to(wide)
        out.append((scale * q[:, t, :, :, None].to(wide) * S).sum(-2))
    return torch.stack(out, 1).to(v.dtype), S if output_final_state else None


def ragged(q, k, v, g):
    o = good(q, k, v, g)[0]
    whole = q.shape[1] // 16 * 16
    return torch.cat([o[:, :whole], 1.5 * o[:, whole:]], 1) if whole else o


@kernel("gla", form="recurrent", backend="torch")
def first(q, k, v, g, scale=None):
    return good(q, k, v, g, scale)[0]


@kernel("gla", backend="triton")
def marked(q, k, v, g, scale=None):
    return good(q, k, v, g, scale)[0]


def forward_only(q, k, v, g):
    return good(q, k, v, g)[0].detach()


def single(q, k, v, g):
    return good(*(x.float() for x in (q, k, v, g)))[0].to(v.dtype)


def three(q, k, v, g):
    return good(q, k, v, g)[0], None, None


def short(q, k, v, g):
    return good(q, k, v, g)[0][:, :-1]


def wide(q, k, v, g):
    return good(q, k, v, g)[0].double()


def listed(q, k, v, g):
    return good(q, k, v, g)[0].tolist()


def nan(q, k, v, g):
    o = good(q, k, v, g)[0]
    return torch.cat([o[:, :-1], o[:, -1:] * float("nan")], 1)


def refuses(q, k, v, g):
    raise ValueError("no kernel for this head size")


def refuses_long(q, k, v, g):
    assert q.shape[1] <= 16, "at most 16 tokens"
    return good(q, k, v, g)[0]


def segfault(q, k, v, g):
    if q.shape[1] > 4:
        ctypes.string_at(0)
    return good(q, k, v, g)[0]


def leaves(q, k, v, g):
    sys.exit(7)


def hangs(q, k, v, g):
    time.sleep(3600 if q.shape[1] > 2 else 0)
    return good(q, k, v, g)[0]


def needs_more(q, k, v, g, page_table):
    return good(q, k, v, g)[0]
