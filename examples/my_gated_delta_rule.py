"""The gated delta rule in PyTorch, chunk by chunk, forward and backward written by hand.

    S <- exp(g_t) S;   S <- S + beta_t k_t (v_t - S^T k_t)^T;   o_t = scale S^T q_t

A chunk of C tokens is a triangular system: with G the sum of the log gates since the chunk began and w_t the row that
token t writes, w_t + sum_{s<t} beta_t exp(G_t - G_s) (k_t . k_s) w_s = beta_t (v_t - exp(G_t) S_0^T k_t) (Yang et al. 2024,
arXiv:2412.06464, section 3.3). The comments of the backward name the line of the forward that each line differentiates.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

import linverify

C = 16


def chunks(x: Tensor) -> Tensor:
    """Cut time into chunks, filled up with zeros: [B, T, H, ...] to [N, B, H, C, ...] in float32."""
    x = x.float().movedim(1, -1)
    x = pad(x, (0, -x.shape[-1] % C)).unflatten(-1, (-1, C))
    return x.movedim((-2, -1), (0, 3))


def tokens(x: Tensor, like: Tensor) -> Tensor:
    """Put chunks together again: [N, B, H, C, ...] to [B, T, H, ...], without the filling."""
    x = x.movedim((0, 3), (1, 2)).flatten(1, 2)
    return x[:, : like.shape[1]].to(like.dtype)


def decays(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decay since the chunk began [B, H, C, 1], from s to t >= s [B, H, C, C], and until the chunk ends [B, H, C, 1]."""
    total = g.cumsum(-1)
    between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    return total.exp()[..., None], between, (total[..., -1:] - total).exp()[..., None]


def solve(k: Tensor, beta: Tensor, between: Tensor) -> Tensor:
    """Inverse of the triangular system of a chunk, [B, H, C, C]."""
    coupling = (beta * (k @ k.mT) * between).tril(-1)
    one = torch.eye(C, device=k.device)
    return torch.linalg.solve_triangular(one + coupling, one.expand_as(coupling), upper=False, unitriangular=True)


class GatedDeltaRule(torch.autograd.Function):
    """Forward and backward over all chunks; the states that chunks begin with are kept for the backward."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, scale, initial_state):
        """Return o and the final state."""
        state, states, outputs = initial_state.float(), [], []
        for qc, kc, vc, gc, bc in zip(*map(chunks, (q, k, v, g, beta[..., None])), strict=True):
            since, between, until = decays(gc)
            rows = solve(kc, bc, between) @ (bc * (vc - (since * kc) @ state))
            scores = (qc @ kc.mT) * between
            outputs.append(scale * ((since * qc) @ state + scores @ rows))
            states.append(state)
            state = since[:, :, -1:] * state + (until * kc).mT @ rows
        ctx.save_for_backward(q, k, v, g, beta, *states)
        ctx.scale = scale
        return tokens(torch.stack(outputs), v), state

    @staticmethod
    def backward(ctx, do, dstate):
        """Return the gradients, from the last chunk to the first."""
        q, k, v, g, beta, *states = ctx.saved_tensors
        cut = [chunks(x) for x in (q, k, v, g, beta[..., None], do)]
        found = []
        for n in reversed(range(len(states))):
            (qc, kc, vc, gc, bc, doc), state = (x[n] for x in cut), states[n]
            since, between, until = decays(gc)
            inverse = solve(kc, bc, between)
            error = vc - (since * kc) @ state
            rows = inverse @ (bc * error)
            last = since[:, :, -1:]
            doc = ctx.scale * doc
            # the rows that tokens write: read by later outputs of the chunk, and carried out of it
            drows = ((qc @ kc.mT) * between).mT @ doc + (until * kc) @ dstate
            dsystem = inverse.mT @ drows
            derror = bc * dsystem
            dbeta = (dsystem * error).sum(-1, keepdim=True)
            # the coupling of the triangular system
            dcoupling = -(dsystem @ rows.mT).tril(-1)
            similar = (kc @ kc.mT) * between
            dbeta += (dcoupling * similar).sum(-1, keepdim=True)
            dsimilar = dcoupling * bc * between
            # the scores
            dscores = (doc @ rows.mT).tril() * between
            dq = since * (doc @ state.mT) + dscores @ kc
            dcarried = until * (rows @ dstate.mT)
            dread = -since * (derror @ state.mT)
            dk = dscores.mT @ qc + dsimilar @ kc + dsimilar.mT @ kc + dcarried + dread
            # the gates: every decay once, where it begins and where it ends
            dpairs = dscores * (qc @ kc.mT) + dsimilar * (kc @ kc.mT)
            dtotal = dpairs.sum(-1) - dpairs.sum(-2)
            dtotal += (since * (doc @ state.mT) * qc + dread * kc - dcarried * kc).sum(-1)
            dtotal[..., -1] += (dcarried * kc).sum((-1, -2)) + (last * state * dstate).sum((-1, -2))
            dg = dtotal.flip(-1).cumsum(-1).flip(-1)
            # the state that the chunk began with
            dstate = last * dstate + (since * qc).mT @ doc - (since * kc).mT @ derror
            found.append((dq, dk, derror, dg, dbeta))
        dq, dk, dv, dg, dbeta = (torch.stack(x[::-1]) for x in zip(*found, strict=True))
        whole = tokens(dq, q), tokens(dk, k), tokens(dv, v), tokens(dg, g), tokens(dbeta[..., 0], beta)
        return *whole, None, dstate


@linverify.kernel("gated_delta_rule", form="chunkwise", backend="torch")
def my_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    """Return o, and the final state where it is asked for."""
    if initial_state is None:
        initial_state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o, state = GatedDeltaRule.apply(q, k, v, g, beta, scale, initial_state)
    return o, state if output_final_state else None
