"""mLSTM in chunks: exponential input gates measured from a running maximum, autograd behind it.

C_t = f_t C_{t-1} + i_t k_t v_t^T, n_t likewise with 1 for v_t, f_t = sigmoid(f), i_t = exp(i);
o_t = scale * C_t^T q_t / max(|scale * n_t . q_t|, 1), all of it divided by exp(m_t).
"""

import torch
from pack import borders, chunk_table, later, rows
from torch import einsum
from torch.nn.functional import logsigmoid

CHUNK = 16


def mlstm(q, k, v, i, f, scale=None, cu_seqlens=None):
    """q, k [B, T, H, K], v [B, T, H, V], gates before their functions [B, T, H]."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    ends, shape, dtype = borders(q, cu_seqlens), q.shape[:2], v.dtype
    q, k, v, i, f = rows(q, k, v, i, f)
    one = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    state = [q.new_zeros(*k.shape[1:], one.shape[-1])] * (len(ends) - 1)
    top = [q.new_full(k.shape[1:2], -torch.inf)] * (len(ends) - 1)
    out = []
    for n, a, b in chunk_table(ends, CHUNK):
        F = logsigmoid(f[a:b]).cumsum(0).mT
        log = (F[:, :, None] - F[:, None, :] + i[a:b].mT[:, None, :]).masked_fill(later(b - a), -torch.inf)
        before = F + top[n][:, None]
        m = torch.maximum(log.amax(-1), before).detach()
        P = einsum("ihk,jhk->hij", q[a:b], k[a:b]) * (log - m[..., None]).exp()
        past = (before - m).exp().mT[..., None] * einsum("ihk,hkv->ihv", q[a:b], state[n])
        read = scale * (einsum("hij,jhv->ihv", P, one[a:b]) + past)
        below = torch.maximum(read[..., -1:].abs(), (-m.mT).exp()[..., None])
        out.append(read[..., :-1] / below.clamp(min=1e-38))  # a query of zero where exp(-m) underflows reads zero
        left = F[:, -1:] - F + i[a:b].mT
        new = torch.maximum(left.amax(-1), F[:, -1] + top[n]).detach()
        kept = (F[:, -1] + top[n] - new).exp()[:, None, None] * state[n]
        state[n] = kept + einsum("chk,chv->hkv", k[a:b] * (left - new[:, None]).exp().mT[..., None], one[a:b])
        top[n] = new
    return torch.cat(out).unflatten(0, shape).to(dtype)
