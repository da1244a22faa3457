"""Recurrent kernels with the mistakes that their operators' hazards name; tests/test_recurrent_mistakes.py checks them."""

import torch
from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw
from torch.nn.functional import logsigmoid, pad

from linverify.impls import torch_chunkwise as chunkwise
from linverify.impls import torch_recurrent as recurrent


def mlstm_floor_of_one(q, k, v, i, f):
    """The floor in plain units, in a memory measured in units of exp(m)."""
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    total = logsigmoid(f.float()).cumsum(1).transpose(1, 2)
    logs = total[..., None] - total[..., None, :] + i.float().transpose(1, 2)[..., None, :]
    logs = logs.masked_fill(torch.ones(logs.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    scores = q @ k.mT * q.shape[-1] ** -0.5 * (logs - logs.amax(-1, keepdim=True)).exp()
    return (scores @ v / scores.sum(-1, keepdim=True).abs().clamp(min=1)).transpose(1, 2).to(q.dtype)


def mlstm_without_maximum(q, k, v, i, f):
    """exp of the input gate as it comes."""
    one = torch.ones_like(v[..., :1])
    keys = k.float() * i.float().exp()[..., None]
    read, _ = recurrent.simple_gla(q.float(), keys, torch.cat([v, one], -1).float(), logsigmoid(f.float()))
    return (read[..., :-1] / read[..., -1:].abs().clamp(min=1)).to(v.dtype)


def mlstm_of_the_authors(q, k, v, i, f, eps=1e-6):
    """Right: the step of mlstm_kernels."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v, i, f))
    return mlstm_recurrent_sequence__native_fw(*heads_first, eps=eps).transpose(1, 2).contiguous()


def hgrn2_key_in_half(q, v, g, scale=1.0):
    """1 - exp(g) subtracted in bfloat16."""
    key = (1 - g.exp().bfloat16()).to(g.dtype)
    return chunkwise.gla(q, key, v, g, scale=scale)[0]


def hgrn2_one_path(q, v, g, scale=1.0):
    """The gate's gradient without its path through the key."""
    return chunkwise.gla(q, -g.detach().expm1(), v, g, scale=scale)[0]


def hgrn_gate_of_the_token_before(x, g):
    """The gates shifted by one token."""
    return recurrent.hgrn(x, pad(g, (0, 0, 1, 0))[:, :-1])[0]


def rwkv4_newest_twice(w, u, k, v):
    """The newest token counts with its bonus and with its own weight."""
    T = k.shape[1]
    age = (torch.arange(T)[:, None] - 1 - torch.arange(T)).clamp(min=0)[..., None]
    weights = (k.float()[:, None] - age * w.exp()).exp() * torch.ones(T, T).tril()[..., None]
    weights = weights + (u + k).float().exp()[:, None] * torch.eye(T)[..., None]
    return ((weights * v.float()[:, None]).sum(2) / weights.sum(2)).to(v.dtype)


def rwkv5_decay_before_read(q, k, v, w, u, scale=1.0):
    """The state decays before the query reads it."""
    decay = (-w.exp()).exp()
    state, out = torch.zeros(*q.shape[::2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        state = decay[..., None] * state
        write = k[:, t, :, :, None].float() * v[:, t, :, None].float()
        out.append((scale * q[:, t, :, :, None].float() * (state + u[..., None].float() * write)).sum(-2))
        state = state + write
    return torch.stack(out, 1).to(v.dtype)


def mamba1_exact_hold(u, dt, A, B, C):
    """B discretised as (exp(dt A) - 1) / A in the place of dt B."""
    decay = dt[..., None] * A
    state, out = 0.0, []
    for t in range(u.shape[1]):
        write = decay[:, t].expm1() / A * B[:, t, None].float() * u[:, t, :, None].float()
        state = decay[:, t].exp() * state + write
        out.append((C[:, t, None].float() * state).sum(-1))
    return torch.stack(out, 1).to(u.dtype)


def mamba1_one_path(u, dt, A, B, C):
    """The step size's gradient without its path through the write."""
    state, out = 0.0, []
    for t in range(u.shape[1]):
        write = dt[:, t, :, None].detach() * B[:, t, None].float() * u[:, t, :, None].float()
        state = (dt[:, t, :, None] * A).exp() * state + write
        out.append((C[:, t, None].float() * state).sum(-1))
    return torch.stack(out, 1).to(u.dtype)


def product_gate_at_every_step(q, k, v, g, beta):
    """The gate acts at every step of a token."""
    n = k.shape[1] // q.shape[1]
    queries = torch.stack([torch.zeros_like(q)] * (n - 1) + [q], 2).flatten(1, 2)
    return recurrent.gated_delta_rule(queries, k, v, g.repeat_interleave(n, 1), beta)[0][:, n - 1 :: n].contiguous()


def dplr_reads_decayed(q, k, v, a, b, g):
    """The removal reads the state after its decay."""
    return recurrent.dplr(q, k, v, (a * g.exp()).to(a.dtype), b, g)[0]


def iplr_exchanged(q, k, v, a, b):
    """The reader and the writer of the removal exchanged."""
    return recurrent.iplr(q, k, v, b, a)[0]


def ttt_rate_of_the_first(q, k, v, w, b, eta):
    """The first learning rate of a mini-batch for all its tokens."""
    starts = [eta[:, s : s + 1].expand(-1, min(16, eta.shape[1] - s), -1, -1) for s in range(0, eta.shape[1], 16)]
    return chunkwise.ttt_linear(q, k, v, w, b, torch.cat(starts, 1))[0]


def ttt_of_fla(q, k, v, w, b, eta, scale=None):
    """Multiplies q by the scale in place, where q is float32 and, as with mini-batches of one token, nothing is padded."""
    from fla.ops.ttt.naive import chunk_ttt_linear_ref

    return chunk_ttt_linear_ref(q, k, v, w, b, eta, scale=scale, mini_batch_size=1)[0].to(v.dtype)


def lru_real_parts(u, nu_log, theta_log, gamma_log, B_re, B_im, C_re, C_im):
    """The real part of the states taken before C."""
    return recurrent.lru(u, nu_log, theta_log, gamma_log, B_re, B_im, C_re, torch.zeros_like(C_im))[0]


def _wrapped(kernel, u):
    """A convolution by transforms of length T: what passes the end comes back at the beginning."""
    spectrum = torch.fft.rfft(kernel, n=u.shape[1]) * torch.fft.rfft(u.float().transpose(1, 2), n=u.shape[1])
    return torch.fft.irfft(spectrum, n=u.shape[1]).transpose(1, 2).contiguous().to(u.dtype)


def s4d_wrapped(u, log_dt, log_A_real, A_imag, C_re, C_im):
    """A transform of length T."""
    A = torch.complex(-log_A_real.exp(), A_imag)
    step = A * log_dt.exp()[:, None]
    weight = torch.complex(C_re, C_im) * (step.exp() - 1) / A
    kernel = 2 * (weight[..., None] * (step[..., None] * torch.arange(u.shape[1])).exp()).sum(1).real
    return _wrapped(kernel, u)


def s4_transposed(u, log_dt, Lambda_re, Lambda_im, P_re, P_im, B_re, B_im, C_re, C_im):
    """P P^T in the place of P P^*: one factor without its conjugate."""
    rate, low, write, read = (
        torch.complex(a, b) for a, b in ((Lambda_re, Lambda_im), (P_re, P_im), (B_re, B_im), (C_re, C_im))
    )
    half, eye = 0.5 * log_dt.exp()[:, None, None], torch.eye(rate.shape[-1])
    A = torch.diag_embed(rate) - low[..., None] * low[:, None]
    step = torch.linalg.solve(eye - half * A, eye + half * A)
    write = torch.linalg.solve(eye - half * A, 2 * half * write[..., None])
    x, out = torch.zeros(u.shape[0], *rate.shape, dtype=rate.dtype), []
    for t in range(u.shape[1]):
        x = (step @ x[..., None] + write * u[:, t, :, None, None].float())[..., 0]
        out.append((read * x).sum(-1).real)
    return torch.stack(out, 1).to(u.dtype)


def legs_from_two(f):
    """The first step counted as the second."""
    late = recurrent.hippo_legs(torch.cat([torch.zeros_like(f[:, :1]), f], 1))[0]
    return late[:, 1:].contiguous()


def hgrn_of_fla_in_chunks(x, g):
    """fla's chunked twin, whose view of the gates takes the chunk's length for the sequence's."""
    from fla.ops.hgrn.naive import naive_chunk_hgrn

    return naive_chunk_hgrn(x, g, chunk_size=16)[0]


def product_without_scale(q, k, v, g, beta, scale=None):
    """Accepts a scale and does not use it."""
    return chunkwise.gated_delta_product(q, k, v, g, beta)[0]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *x):
        ctx.save_for_backward(*x)
        from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

        q, k, v, w, u, state = x
        return naive_recurrent_rwkv6(q, k, v, w, u, 1.0, state, True)

    @staticmethod
    def backward(ctx, do, _):
        from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6_bwd

        q, k, v, w, u, state = ctx.saved_tensors
        return naive_recurrent_rwkv6_bwd(q, k, v, w, u, do, do, state)


def rwkv6_of_fla(q, k, v, w, u, initial_state=None, output_final_state=False):
    """The backward pass knows no gradient of the final state, and leaves the last gate's at zero."""
    first = [x.transpose(1, 2).float() for x in (q * q.shape[-1] ** -0.5, k, v, w)]
    if initial_state is None:
        initial_state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    o, state = _Backward.apply(*first, u.float(), initial_state.float())
    return o.transpose(1, 2).to(v.dtype), state if output_final_state else None


def state_unasked(q, k, v, scale=None, initial_state=None, output_final_state=False):
    """Returns the state and the sum of keys, asked or not."""
    o, state = recurrent.linear_attention(q, k, v, scale=scale, initial_state=initial_state, output_final_state=True)
    return o, (state, k.sum(1))


def cosformer_elu(q, k, v):
    """Its feature map is the sum of a number and a function."""
    feature = 1 + torch.nn.functional.elu
    return recurrent.cosformer(feature(q), feature(k), v)[0]


def dplr_of_fla(q, k, v, a, b, g):
    """Right: casts every input but one, which the products then cast."""
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    o, _ = dplr_recurrence(*(x.transpose(1, 2) for x in (q, k, v, a, b, g)))
    return o.transpose(1, 2).to(v.dtype)


def mlstm_forget_gate_of_the_next_token(q, k, v, i, f):
    """Reads f one token ahead."""
    return chunkwise.mlstm(q, k, v, i, torch.cat([f[:, 1:], f[:, -1:]], 1))[0]


def cosformer_of_the_tokens_at_hand(q, k, v):
    """The period M = max(T, S) of published code: prefill and decode weigh the same tokens differently."""
    return chunkwise.cosformer(q, k, v)
