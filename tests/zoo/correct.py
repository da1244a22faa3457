"""Correct kernels that make other choices than their twins, all of which published kernels make: they must pass."""

from tests.zoo.record import Correct, Family

S, L, R = (Family("simple_gla", n) for n in ("simple_gla", "linear_attention", "retention"))
G, G2, K, R6 = (Family(n, n) for n in ("gla", "rwkv7", "kda", "rwkv6"))
GD, D = Family("gated_delta", "gated_delta_rule"), Family("gated_delta", "delta_rule")
M, X = Family("mamba2", "mamba2"), Family("softmax", "softmax_attention")
N, H = Family("normalized", "normalized_linear_attention"), Family("scans", "hgrn")
ML = Family("mlstm", "mlstm")
TG, TS, TD = (
    Family("triton_gla", "gla"),
    Family("triton_simple_gla", "simple_gla"),
    Family("triton_delta", "delta_rule"),
)

_EXP = "gap.masked_fill(later(len(G)), -torch.inf).exp()"
_EXP2 = "(gap.masked_fill(later(len(G)), -torch.inf) * 1.4426950408889634).exp2()"
_WHERE = "torch.where(later(len(G)), 0, gap.clamp(max=0).exp())"
_SCALED_QUERY = (
    "*rows(q, k, v, g), h0, scale, ends)",
    "*rows(q * scale if q.dtype == torch.float32 else wide(q) * scale, k, v, g), h0, 1.0, ends)",
)


def _chunks(family: Family, prefix: str, *sizes: int) -> tuple[Correct, ...]:
    return tuple(
        family.correct(f"{prefix}_chunks_of_{n}", f"Chunks of {n} tokens.", "CHUNK = 16\n", f"CHUNK = {n}\n")
        for n in sizes
    )


CORRECT = (
    *_chunks(S, "simple", 1, 4, 8, 32, 64, 128, 13),
    *_chunks(L, "linear", 8, 32, 64),
    *_chunks(R, "retention", 8, 32, 64),
    *_chunks(GD, "gated_delta", 4, 8, 32, 64),
    *_chunks(D, "delta", 8, 32, 64),
    *_chunks(N, "normalized", 8, 32, 64),
    *_chunks(M, "mamba", 8, 32, 64),
    *_chunks(ML, "mlstm", 8, 32, 64),
    S.correct("simple_powers_of_two", "exp(x) as 2^(x log2(e)), as GPUs have it.", _EXP, _EXP2),
    GD.correct("gated_delta_powers_of_two", "exp(x) as 2^(x log2(e)), as GPUs have it.", _EXP, _EXP2),
    M.correct("mamba_powers_of_two", "exp(x) as 2^(x log2(e)), as GPUs have it.", _EXP, _EXP2),
    S.correct(
        "simple_clamped_mask", "Differences are clamped at 0 before the exponential, and selected after.", _EXP, _WHERE
    ),
    GD.correct("gated_delta_clamped_mask", "Differences are clamped at 0, and selected after.", _EXP, _WHERE),
    S.correct("simple_query_scaled_first", "The scale goes to the queries.", *_SCALED_QUERY),
    G.correct("gla_query_scaled_first", "The scale goes to the queries.", *_SCALED_QUERY),
    S.correct(
        "simple_sums_in_reverse",
        "Sums over keys run from the last token to the first.",
        'einsum("hij,jhv->ihv", A, v[i:j]))\n    return',
        'einsum("hij,jhv->ihv", A.flip(2), v[i:j].flip(0)))\n    return',
    ),
    S.correct(
        "simple_split_values",
        "Outputs are formed for two halves of the values.",
        'o[i:j] = scale * (inter + einsum("hij,jhv->ihv", A, v[i:j]))',
        "w = v.shape[-1] // 2\n"
        '        o[i:j, :, :w] = scale * (inter[..., :w] + einsum("hij,jhv->ihv", A, v[i:j, :, :w]))\n'
        '        o[i:j, :, w:] = scale * (inter[..., w:] + einsum("hij,jhv->ihv", A, v[i:j, :, w:]))',
    ),
    S.correct(
        "simple_split_keys",
        "Scores are the sum of two halves of the key channels.",
        'A = einsum("ihk,jhk->hij", q[i:j], k[i:j]) * decays(G[i:j])',
        "w = q.shape[-1] // 2\n"
        '        low = einsum("ihk,jhk->hij", q[i:j, :, :w], k[i:j, :, :w])\n'
        '        A = (low + einsum("ihk,jhk->hij", q[i:j, :, w:], k[i:j, :, w:])) * decays(G[i:j])',
    ),
    S.correct(
        "simple_gate_on_values",
        "What is left at the end of a chunk goes to the values, as Mamba-2 has it.",
        'einsum("chk,chv->hkv", k[i:j] * left[..., None], v[i:j])\n    return h, S',
        'einsum("chk,chv->hkv", k[i:j], v[i:j] * left[..., None])\n    return h, S',
    ),
    S.correct(
        "simple_gate_on_outputs",
        "The decay goes to what the queries read, not to the queries.",
        'inter = einsum("ihk,hkv->ihv", q[i:j] * G[i:j].exp()[..., None], h[c])',
        'inter = einsum("ihk,hkv->ihv", q[i:j], h[c]) * G[i:j].exp()[..., None]',
    ),
    S.correct(
        "simple_direct_gate_gradient",
        "The gate sums' gradient is formed from the scores, not from dq and dk.",
        "dG[i:j] = (q[i:j] * dq[i:j]).sum(-1) - (k[i:j] * dk[i:j]).sum(-1)",
        'W = einsum("ihk,jhk->hij", q[i:j], k[i:j]) * dA\n'
        '        dG[i:j] = (W.sum(-1) - W.sum(-2)).mT + (q[i:j] * scale * into * einsum("ihv,hkv->ihk", do[i:j], h[c])).sum(-1)\n'
        '        dG[i:j] -= (k[i:j] * left * einsum("jhv,hkv->jhk", v[i:j], dh[c])).sum(-1)',
    ),
    S.correct(
        "simple_double_sums",
        "Sums of gates are formed in float64.",
        "G[i:j] = g[i:j].cumsum(0)",
        "G[i:j] = g[i:j].double().cumsum(0)",
    ),
    S.correct(
        "simple_states_recomputed",
        "States are formed anew in the backward pass.",
        "        q, k, v, G, h = ctx.saved_tensors\n",
        "        q, k, v, G, h = ctx.saved_tensors\n        h = forward_states(k, v, G, ctx.h0, ctx.chunks)[0]\n",
        "        ctx.scale, ctx.chunks = scale, chunks\n",
        "        ctx.scale, ctx.chunks, ctx.h0 = scale, chunks, h0\n",
    ),
    S.correct(
        "simple_operands_in_bfloat16",
        "In bfloat16 the scores are rounded before they meet the values, as tensor cores want them.",
        'einsum("hij,jhv->ihv", A, v[i:j])',
        'einsum("hij,jhv->ihv", A.bfloat16().to(v.dtype), v[i:j])',
        dtypes="bf16",
    ),
    G.correct("gla_sub_chunks_of_4", "Sub-chunks of 4 tokens.", "CHUNK, SUB = 32, 8", "CHUNK, SUB = 32, 4"),
    G.correct("gla_sub_chunks_of_16", "Sub-chunks of 16 tokens.", "CHUNK, SUB = 32, 8", "CHUNK, SUB = 64, 16"),
    G.correct(
        "gla_no_sub_chunks",
        "One sub-chunk: every pair's difference is formed.",
        "CHUNK, SUB = 32, 8",
        "CHUNK, SUB = 8, 8",
    ),
    G.correct("gla_token_by_token", "Chunks of one token.", "CHUNK, SUB = 32, 8", "CHUNK, SUB = 1, 1"),
    G.correct(
        "gla_anchor_before",
        "Sub-chunks split the exponent at the token before them.",
        "anchor = G[a]\n",
        "anchor = G[max(a - 1, 0)]\n",
    ),
    K.correct(
        "kda_strength_on_the_error",
        "The write strength multiplies the error, not the key.",
        "S = P + (beta[t, :, None] * k[t])[..., None] * error[:, None]\n                o",
        "S = P + k[t, :, :, None] * (beta[t, :, None] * error)[:, None]\n                o",
    ),
    K.correct(
        "kda_removal_by_decayed_key",
        "The removal reads the undecayed state with a decayed key.",
        "error = v[t] - (k[t, :, :, None] * P).sum(1)\n                S = P + (",
        "error = v[t] - ((k[t] * g[t].exp())[..., None] * S).sum(1)\n                S = P + (",
    ),
    R6.correct(
        "rwkv6_bonus_apart",
        "The bonus is a weight of the newest value, apart from what is read from the state.",
        "o[t] = scale * (q[t, :, :, None] * (S + u[..., None] * write)).sum(1)",
        "weight = (q[t] * u * k[t]).sum(-1, keepdim=True)\n"
        "                o[t] = scale * (q[t, :, :, None] * S).sum(1) + scale * weight * v[t]",
    ),
    G2.correct(
        "rwkv7_write_first",
        "The new key's write is added before the removal's.",
        "S = w[t].exp()[..., None] * S + b[t, :, :, None] * read[:, None] + k[t, :, :, None] * v[t, :, None]",
        "S = (w[t].exp()[..., None] * S + k[t, :, :, None] * v[t, :, None]) + b[t, :, :, None] * read[:, None]",
    ),
    GD.correct(
        "gated_delta_inverse",
        "The triangle is inverted, and the inverse multiplied.",
        "return torch.linalg.solve_triangular(L, right.movedim(0, 1), upper=False, unitriangular=True).movedim(1, 0)",
        "eye = torch.eye(L.shape[-1], dtype=L.dtype).expand_as(L)\n"
        "    inverse = torch.linalg.solve_triangular(L, eye, upper=False, unitriangular=True)\n"
        "    return (inverse @ right.movedim(0, 1)).movedim(1, 0)",
    ),
    D.correct(
        "delta_forward_substitution",
        "The triangle is solved row by row.",
        "return torch.linalg.solve_triangular(L, right.movedim(0, 1), upper=False, unitriangular=True).movedim(1, 0)",
        "x = right.movedim(0, 1).clone()\n"
        "    for i in range(1, L.shape[-1]):\n"
        "        x[:, i] -= (L[:, i, :i, None] * x[:, :i]).sum(1)\n"
        "    return x.movedim(1, 0)",
    ),
    X.correct("softmax_tiles_of_8", "Tiles of 8.", "TILE = 16\n", "TILE = 8\n"),
    X.correct("softmax_tiles_of_64", "Tiles of 64.", "TILE = 16\n", "TILE = 64\n"),
    X.correct(
        "softmax_powers_of_two",
        "exp(x) as 2^(x log2(e)), as FlashAttention has it.",
        "p, old = (s - new[..., None]).exp(), (m - new).exp()",
        "p, old = ((s - new[..., None]) * 1.4426950408889634).exp2(), ((m - new) * 1.4426950408889634).exp2()",
    ),
    X.correct(
        "softmax_query_scaled_first",
        "The scale goes to the queries.",
        's = scale * einsum("ihk,jhk->hij", q, k)',
        's = einsum("ihk,jhk->hij", scale * q, k)',
    ),
    N.correct(
        "normalized_weights_divided",
        "Weights are divided before they meet the values.",
        "o[i:j] = scale * read[..., :-1] / below[i:j, :, None]",
        "o[i:j] = read[..., :-1] * (scale / below[i:j, :, None])",
    ),
    H.correct(
        "hgrn_multiply_add",
        "The step is one multiply-add.",
        "states[n] = g[t].exp() * states[n] + x[t]",
        "states[n] = torch.addcmul(x[t], g[t].exp(), states[n])",
    ),
    ML.correct(
        "mlstm_powers_of_two",
        "exp(x) as 2^(x log2(e)).",
        "(log - m[..., None]).exp()",
        "((log - m[..., None]) * 1.4426950408889634).exp2()",
    ),
    M.correct(
        "mamba_step_on_keys",
        "dt goes to B, not to x, on the way into the state.",
        'einsum("chk,chv->hkv", B * left[..., None], value)',
        'einsum("chk,chv->hkv", B * (left * dt)[..., None], x)',
    ),
    TG.correct("triton_gla_blocks_of_32", "Blocks of 32 value columns.", "BV = 16\n", "BV = 32\n"),
    TD.correct("triton_delta_blocks_of_32", "Blocks of 32 value columns.", "BV = 16\n", "BV = 32\n"),
    TS.correct("triton_simple_chunks_of_32", "Chunks of 32 tokens.", "BT = 16\n", "BT = 32\n"),
)
