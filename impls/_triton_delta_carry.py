# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""What crosses chunks: the state on its way forward, its gradient on the way back, and what each chunk reads of them.

`carry` and `carry_back` walk the chunks of a sequence with a float32 tile of the state in registers; all else is done for all
chunks at once, from the states that they leave behind. With q', k' the queries and keys decayed since the chunk began, k" the
keys decayed until its end, P the scores, D the decay of a chunk and S the state that it begins with:

    U' = U - W S        o = scale (q' S + P U')        S <- D S + k"^T U'
    dU' = scale P^T do + k" dS        dS <- D dS + scale q'^T do - W^T dU'

The walks hold these turned round, [BV, K] and [BV, tokens], so that a tile of few values, and not the chunk, makes the rows of
each product. States between chunks are stored as they are held, [chunks, H, V, K]; initial and final ones are [N, H, K, V].
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import span, step, walk
from linverify.impls._triton_delta_gates import scalar_decays
from linverify.impls._triton_rows import load, load_turned, product, store, store_turned


@triton.jit
def decayed(state, end, c, h, H, K, i, GATE: constexpr):
    """The state [BV, K] after the decay of chunk c."""
    at = (c * H + h).to(tl.int64)
    if GATE == "channel":
        state = state * tl.load(end + at * K + i, mask=i < K, other=0.0)[None, :]
    if GATE == "scalar":
        state = state * tl.load(end + at)
    return state


@triton.jit(do_not_specialize=["H"])
def carry(
    W, U, writes, G, end, initial, written, states, final, starts, slots, H, K, V,
    GATE: constexpr, C: constexpr, BK: constexpr, BV: constexpr,
):  # fmt: skip
    """Write U' and the state before every chunk of sequence p, head h and one block of values; and the final state."""
    p, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    t, i, j = tl.arange(0, C), tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    state = load_turned(initial + (p * H + h) * K * V, i, j, K, V, V).to(tl.float32)
    start, stop, slot, end_slot = walk(starts, slots, p)
    for c in range(slot, end_slot):
        first, n = step(start, stop, slot, c, C)
        row = first * H + h
        store(states + (c * H + h) * K * V, state, j, i, V, K, K)
        Y = load_turned(U + row * V, t, j, n, H * V, V).to(tl.float32)
        Y -= product(state.to(W.dtype.element_ty), tl.trans(load(W + row * K, t, i, n, H * K, K)))
        store_turned(written + row * V, Y, t, j, n, H * V, V)
        if GATE == "scalar":
            _, until = scalar_decays(G + row, t, n, H)
            Y = Y * until[None, :]
        X = load(writes + row * K, t, i, n, H * K, K)
        state = decayed(state, end, c, h, H, K, i, GATE) + product(Y.to(X.dtype), X)
    store_turned(final + (p * H + h) * K * V, state, i, j, K, V, V)


@triton.jit(do_not_specialize=["H"])
def read(
    reads, G, P, written, states, o, spans, scale, H, K, V, GATE: constexpr, C: constexpr, BK: constexpr, BV: constexpr
):  # fmt: skip
    """Write o of chunk c, head h and one block of values."""
    c, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, n = span(spans, c)
    t, j = tl.arange(0, C), tl.program_id(2) * BV + tl.arange(0, BV)
    row = first * H + h
    out = tl.zeros([C, BV], tl.float32)
    for start in range(0, K, BK):
        i = start + tl.arange(0, BK)
        state = load_turned(states + (c * H + h) * K * V, j, i, V, K, K)
        out += product(load(reads + row * K, t, i, n, H * K, K), state.to(reads.dtype.element_ty))
    if GATE == "scalar":
        since, _ = scalar_decays(G + row, t, n, H)
        out = out * since[:, None]
    scores = load(P + row * C, t, t, n, H * C, t[:, None] + 1)
    out += product(scores, load(written + row * V, t, j, n, H * V, V))
    store(o + row * V, scale * out, t, j, n, H * V, V)


@triton.jit(do_not_specialize=["H"])
def carry_back(
    W, reads, writes, P, G, end, do, dfinal, dwritten, dstates, dinitial, starts, slots, scale, H, K, V,
    GATE: constexpr, C: constexpr, BK: constexpr, BV: constexpr,
):  # fmt: skip
    """Write dU' and the gradient of the state after every chunk of sequence p, and that of its initial state."""
    p, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    t, i, j = tl.arange(0, C), tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    dstate = load_turned(dfinal + (p * H + h) * K * V, i, j, K, V, V).to(tl.float32)
    start, stop, slot, end_slot = walk(starts, slots, p)
    for back in range(end_slot - slot):
        c = end_slot - 1 - back
        first, n = step(start, stop, slot, c, C)
        row = first * H + h
        store(dstates + (c * H + h) * K * V, dstate, j, i, V, K, K)
        dO = load_turned(do + row * V, t, j, n, H * V, V)
        dY = product(dstate.to(W.dtype.element_ty), tl.trans(load(writes + row * K, t, i, n, H * K, K)))
        if GATE == "scalar":
            since, until = scalar_decays(G + row, t, n, H)
            dY = dY * until[None, :]
        dY += scale * product(dO, load(P + row * C, t, t, n, H * C, t[:, None] + 1))
        store_turned(dwritten + row * V, dY, t, j, n, H * V, V)
        dstate = decayed(dstate, end, c, h, H, K, i, GATE)
        if GATE == "scalar":
            dO = (dO * since[None, :]).to(dO.dtype)
        dstate += scale * product(dO, load(reads + row * K, t, i, n, H * K, K))
        X = load(W + row * K, t, i, n, H * K, K)
        dstate -= product(dY.to(X.dtype), X)
    store_turned(dinitial + (p * H + h) * K * V, dstate, i, j, K, V, V)


@triton.jit(do_not_specialize=["H"])
def read_gradients(
    k, G, end, beta, do, written, dright, states, dstates, dq, dreader, dwriter, dbeta, carried, spans, scale, H, K, V,
    GATE: constexpr, C: constexpr, BK: constexpr, BV: constexpr,
):  # fmt: skip
    """Write what chunk c, head h and one block of channels owe to the states around the chunk.

    That is a part of dq, of dk as a reader and of dk as a writer (all float32 [tokens, H, K]), a part of dbeta for this block
    [blocks, tokens, H], and rowsum(S_end * dS_end) [chunks, H, K] for the gates.
    """
    c, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, n = span(spans, c)
    t, i = tl.arange(0, C), tl.program_id(2) * BK + tl.arange(0, BK)
    row = first * H + h
    dQ, read, wrote = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    kept = tl.zeros([BK], tl.float32)
    for start in range(0, V, BV):
        j = start + tl.arange(0, BV)
        S = load(states + (c * H + h) * K * V, j, i, V, K, K)
        dS = load(dstates + (c * H + h) * K * V, j, i, V, K, K)
        if GATE != "none":
            kept += tl.sum(S * dS, 0)
        S, dS = S.to(k.dtype.element_ty), dS.to(k.dtype.element_ty)
        dQ += product(load(do + row * V, t, j, n, H * V, V), S)
        read += product(load(dright + row * V, t, j, n, H * V, V), S)
        wrote += product(load(written + row * V, t, j, n, H * V, V), dS)
    X = load(k + row * K, t, i, n, H * K, K).to(tl.float32)
    # Beyond the end the sums are loaded as 0, which a strong gate's sum must not be compared with.
    inside = t < n
    if GATE == "channel":
        total = load(G + row * K, t, i, n, H * K, K)
        last = tl.sum(tl.where(t[:, None] == n - 1, total, 0.0), 0)
        since, until = tl.exp(total), tl.exp(tl.where(inside[:, None], last[None, :] - total, float("-inf")))
        dQ, read, wrote, kept = dQ * since, read * since, wrote * until, kept * tl.exp(last)
    if GATE == "scalar":
        since, until = scalar_decays(G + row, t, n, H)
        dQ, read, wrote = dQ * since[:, None], read * since[:, None], wrote * until[:, None]
        kept = kept * tl.load(end + c * H + h)
    if GATE != "none":
        tl.store(carried + (c * H + h) * K + i, kept + tl.sum(X * wrote, 0), mask=i < K)
    # k' S has left the right-hand side beta (v - k' S).
    tokens = tl.load(spans + 2 * tl.num_programs(0) - 1)
    strength = tl.load(beta + row + t * H, mask=inside, other=0.0).to(tl.float32)
    tl.store(dbeta + tl.program_id(2) * tokens * H + row + t * H, -tl.sum(X * read, 1), mask=inside)
    store(dq + row * K, scale * dQ, t, i, n, H * K, K)
    store(dreader + row * K, -strength[:, None] * read, t, i, n, H * K, K)
    store(dwriter + row * K, wrote, t, i, n, H * K, K)
