"""Bugs of Mamba-2, softmax attention, normalised linear attention, HGRN, RWKV-4 and mLSTM."""

from tests.zoo.record import Family, Kind, commit, thread

M, X = Family("mamba2", "mamba2"), Family("softmax", "softmax_attention")
N, L = Family("normalized", "normalized_linear_attention"), Family("mlstm", "mlstm")
R = Family("scans", "hgrn")
MAMBA, FLASH = "state-spaces/mamba", "Dao-AILab/flash-attention"

BUGS = (
    M.bug(
        *("exp_of_the_upper_half", Kind.RANGE, thread(713, MAMBA), "o dx ddt", "agreement"),
        "The segment sums above the diagonal are exponentiated, and the overflow masked by a product.",
        *("gap.masked_fill(later(len(G)), -torch.inf).exp()", "gap.exp() * ~later(len(G))"),
    ),
    M.bug(
        *("step_beyond_the_tail", Kind.BOUNDARY, thread(368, MAMBA), "o state", "state_passing"),
        "Padded steps are not zero: a partial chunk's state decays by one step more.",
        *(
            "    S = G[-1].exp()[:, None, None] * S + einsum",
            "    pad = 0 if len(x) == CHUNK else a[-1]\n    S = (G[-1] + pad).exp()[:, None, None] * S + einsum",
        ),
    ),
    M.bug(
        *("groups_interleaved", Kind.LAYOUT, thread(27, "XunhaoLai/native-sparse-attention-triton"), "o", "agreement"),
        "Head h takes group h mod G.",
        *("(y.repeat_interleave(H // G, 1) for y in (B, C))", "(y.repeat(1, H // G, 1) for y in (B, C))"),
    ),
    M.bug(
        *("group_of_the_first_head", Kind.LAYOUT, commit("7c730eb5"), "o", "agreement"),
        "All heads take the first group's C.",
        *("    a = dt * wide(A)\n", "    C = C[:, :1].expand_as(C)\n    a = dt * wide(A)\n"),
    ),
    M.bug(
        *("step_not_in_the_value", Kind.MATHS, thread(895, "ooples/AiDotNet.Tensors"), "o state", "agreement"),
        "The state takes x where it should take dt x.",
        *('einsum("chk,chv->hkv", B * left[..., None], value)', 'einsum("chk,chv->hkv", B * left[..., None], x)'),
    ),
    M.bug(
        *("step_gradient_of_one_path", Kind.GRADIENT, thread(537, MAMBA), "ddt", "gradients"),
        "The gradient of dt lacks its path through the decay.",
        *("    a = dt * wide(A)\n", "    a = dt.detach() * wide(A)\n"),
    ),
    M.bug(
        *("decay_from_the_chunk", Kind.PACKING, thread(23279, "vllm-project/vllm"), "o", "state_passing"),
        "The initial state's decay is counted from the second token of a chunk.",
        *(
            'einsum("ihk,hkv->ihv", C * G.exp()[..., None], S)',
            'einsum("ihk,hkv->ihv", C * (G - G[0]).exp()[..., None], S)',
        ),
    ),
    M.bug(
        *("sums_in_bfloat16", Kind.PRECISION, commit("883db37b"), "o state", "agreement"),
        "Sums of dt A are formed in bfloat16.",
        *("    G = a.cumsum(0)\n", "    G = a.bfloat16().cumsum(0).to(a.dtype)\n"),
    ),
    M.bug(
        *("state_of_the_last_request", Kind.PACKING, thread(31833, "sgl-project/sglang"), "state", "packed"),
        "All sequences store their state in the last one's slot but the first.",
        *(
            "        parts.append(scale * o)\n",
            "        parts.append(scale * o)\n        if n:\n            states[-1] = states[n]\n",
        ),
    ),
    X.bug(
        *("maximum_not_carried", Kind.RANGE, thread(119320, "pytorch/pytorch"), "o", "agreement"),
        "The online maximum is dropped: rows with large scores overflow.",
        *("new = torch.maximum(m, s.amax(-1))", "new = torch.zeros_like(m)"),
    ),
    X.bug(
        *("old_sum_not_rescaled", Kind.MATHS, thread(9186, "ggml-org/llama.cpp"), "o", "agreement"),
        "The running sum is not rescaled when the maximum rises.",
        *("total = old * total + p.sum(-1)", "total = total + p.sum(-1)"),
    ),
    X.bug(
        *("last_tile_acausal", Kind.CAUSALITY, commit("3d70f7de"), "o", "causality_values"),
        "The mask lets a row see one column more.",
        *(
            "(j + torch.arange(len(k))) > (i + torch.arange(len(q)))[:, None]",
            "(j + torch.arange(len(k))) > (i + 1 + torch.arange(len(q)))[:, None]",
        ),
    ),
    X.bug(
        *("tail_not_masked", Kind.BOUNDARY, commit("d7150bf9"), "o", "agreement"),
        "A partial tile's missing columns count with score 0 in the sum.",
        *("total = old * total + p.sum(-1)", "total = old * total + p.sum(-1) + (TILE - (j_end - j)) * (-new).exp()"),
    ),
    X.bug(
        *("groups_modulo", Kind.LAYOUT, commit("95a89568"), "o", "agreement"),
        "Query head h reads key head h mod G.",
        "keys, values = (x[j:j_end].repeat_interleave(r, 1) for x in (k, v))\n                    s =",
        "keys, values = (x[j:j_end].repeat(1, r, 1) for x in (k, v))\n                    s =",
    ),
    X.bug(
        *(
            "group_gradient_of_the_last_head",
            Kind.SPLIT,
            thread(27, "XunhaoLai/native-sparse-attention-triton"),
            "dk",
            "gradients",
        ),
        "Query heads of a group overwrite one another's part of the keys' gradient.",
        *("dk[j:j_end] += own.unflatten(1, (-1, r)).sum(2)", "dk[j:j_end] += own.unflatten(1, (-1, r))[:, :, -1]"),
    ),
    X.bug(
        *("delta_for_every_value_tile", Kind.SPLIT, commit("2cec2a33"), "dq dk", "gradients"),
        "The row sum of o do is subtracted once for each block of 16 value columns.",
        *("delta = (o * do).sum(-1)\n", "delta = (o * do).sum(-1) * -(-o.shape[-1] // 16)\n"),
    ),
    X.bug(
        *("value_gradient_step_of_the_key", Kind.LAYOUT, thread(2552, FLASH), "dv", "gradients"),
        "Columns of the values' gradient beyond K are not reached.",
        *(
            'own = einsum("hij,ihv->jhv", p, do[i:i_end])\n',
            'own = einsum("hij,ihv->jhv", p, do[i:i_end])\n                    own[..., q.shape[-1] :] = 0\n',
        ),
    ),
    X.bug(
        *("log_sum_in_half", Kind.PRECISION, thread(119320, "pytorch/pytorch"), "dq dk dv", "gradients"),
        "The log-sum-exp is kept in bfloat16 for the backward pass.",
        *("lse[i:i_end] = (m + total.log()).mT", "lse[i:i_end] = (m + total.log()).mT.bfloat16().to(q.dtype)"),
    ),
    X.bug(
        *("documents_visible", Kind.PACKING, thread(2192, FLASH), "o", "packed"),
        "Queries see the last tile of the packed sequence before their own.",
        *(
            "                for j, j_end in tiles(begin, i_end):\n                    keys, values = (x[j:j_end].repeat_interleave(r, 1) for x in (k, v))\n                    s =",
            "                for j, j_end in tiles(begin - (begin == ends[1] and len(set(b - a for a, b in zip(ends, ends[1:]))) > 1), i_end):\n                    keys, values = (x[j:j_end].repeat_interleave(r, 1) for x in (k, v))\n                    s =",
        ),
    ),
    X.bug(
        *("query_gradient_not_scaled", Kind.SCALE, commit("332e877d"), "dq", "gradients"),
        "The queries' gradient lacks the scale.",
        *("dq[i:i_end] += scale * einsum", "dq[i:i_end] += einsum"),
    ),
    N.bug(
        *("normaliser_within_the_chunk", Kind.MATHS, commit("12e2a700"), "o", "agreement"),
        "The normaliser sums the keys of a chunk, not of the sequence.",
        *("below[i:j] = scale * read[..., -1] + EPS", "below[i:j] = scale * A.sum(-1).mT + EPS"),
    ),
    N.bug(
        *("normaliser_over_the_heads", Kind.LAYOUT, commit("1d48579a"), "o", "agreement"),
        "The running sum of keys runs over the heads.",
        *("below[i:j] = scale * read[..., -1] + EPS", "below[i:j] = scale * read[..., -1].cumsum(1) + EPS"),
    ),
    N.bug(
        *("normaliser_in_half", Kind.PRECISION, thread(32, "idiap/fast-transformers"), "o", "agreement"),
        "The running sum of keys is kept in bfloat16, where it stops growing.",
        *(
            '            S[n] += einsum("chk,chv->hkv", fk[i:j], one[i:j])\n        ctx',
            '            S[n] += einsum("chk,chv->hkv", fk[i:j], one[i:j])\n            S[n, ..., -1] = S[n, ..., -1].bfloat16().to(S.dtype)\n        ctx',
        ),
    ),
    N.bug(
        *("gradient_without_normaliser", Kind.GRADIENT, commit("4b02d15d"), "dk", "gradients"),
        "The keys' gradient through the normaliser is missing.",
        *(
            'dA = einsum("ihv,jhv->hij", grad[i:j], one[i:j]).tril()\n            dk',
            'dA = einsum("ihv,jhv->hij", grad[i:j, :, :-1], one[i:j, :, :-1]).tril()\n            dk',
        ),
    ),
    N.bug(
        *("query_gradient_without_normaliser", Kind.GRADIENT, commit("4b02d15d"), "dq", "gradients"),
        "The queries' gradient through the normaliser's past is missing.",
        *('einsum("ihv,hkv->ihk", grad[i:j], S[n])', 'einsum("ihv,hkv->ihk", grad[i:j, :, :-1], S[n][..., :-1])'),
    ),
    N.bug(
        *("eps_inside_the_scale", Kind.SCALE, commit("9b9e47d7"), "o", "agreement"),
        "The normaliser lacks the scale that the numerator has.",
        *("below[i:j] = scale * read[..., -1] + EPS", "below[i:j] = read[..., -1] + EPS"),
    ),
    N.bug(
        *("slope_of_the_positive_half", Kind.GRADIENT, commit("674f0852"), "dq dk", "gradients"),
        "The feature map's derivative is taken as 1 everywhere.",
        *("return x.clamp(max=0).exp()", "return torch.ones_like(x)"),
    ),
    R.bug(
        *("gate_of_the_next_token", Kind.GATES, commit("9d148e32"), "o state", "agreement"),
        "A token's state decays by the gate of the token after it.",
        *("g[t].exp() * states[n]", "g[min(t + 1, end - 1)].exp() * states[n]"),
    ),
    R.bug(
        *("scan_restarts_every_64", Kind.STATE, thread(3889, "flashinfer-ai/flashinfer"), "o state", "agreement"),
        "The scan restarts at every 64th token of the batch.",
        *("g[t].exp() * states[n]", "(t % 64 > 0) * g[t].exp() * states[n]"),
    ),
    R.bug(
        *("input_multiplied_by_the_rest", Kind.MATHS, commit("17d1bc4e"), "o state", "agreement"),
        "The input is weighted with 1 - exp(g), as the layer does before the kernel.",
        *("states[n] + x[t]\n", "states[n] - g[t].expm1() * x[t]\n"),
    ),
    R.bug(
        *("weights_without_maximum", Kind.RANGE, thread(1, "tensorpro/tpu_rwkv"), "o", "agreement"),
        "Weights are exponentials of the keys as they come.",
        *("top = torch.maximum(m, u + k[t]).detach()", "top = torch.zeros_like(m)"),
        *("top = torch.maximum(m - step, k[t]).detach()", "top = torch.zeros_like(m)"),
        function="rwkv4",
        operator="rwkv4",
    ),
    R.bug(
        *("decay_once_too_often", Kind.GATES, commit("a0c938eb"), "o", "agreement"),
        "The past decays once more before it is read.",
        *(
            "old, new = (m - top).exp(), (u + k[t] - top).exp()",
            "old, new = (m - step - top).exp(), (u + k[t] - top).exp()",
        ),
        function="rwkv4",
        operator="rwkv4",
    ),
    L.bug(
        *("floor_without_maximum", Kind.SCALE, thread(16, "NX-AI/mlstm_kernels"), "o", "agreement"),
        "The normaliser's floor is 1, not 1 in units of exp(m).",
        *("torch.maximum(read[..., -1:].abs(), (-m.mT).exp()[..., None])", "read[..., -1:].abs().clamp(min=1)"),
    ),
    L.bug(
        *("maximum_of_the_chunk_before", Kind.STATE, thread(10, "NX-AI/mlstm_kernels"), "o", "agreement"),
        "The state is rescaled to the maximum of the chunk before.",
        *(
            "        top[n] = new\n",
            "        top[n] = torch.maximum(top[n], i[a:b].amax(0)) if b - a == CHUNK else new\n",
        ),
    ),
    L.bug(
        *("forget_gate_as_a_logarithm", Kind.GATES, thread(4476, "flashinfer-ai/flashinfer"), "o", "agreement"),
        "The forget gate is taken for a logarithm: min(f, 0) in the place of log sigmoid(f).",
        *("F = logsigmoid(f[a:b]).cumsum(0).mT", "F = f[a:b].clamp(max=0).cumsum(0).mT"),
    ),
    L.bug(
        *("signed_normaliser", Kind.MATHS, thread(895, "ooples/AiDotNet.Tensors"), "o", "agreement"),
        "The normaliser is not made positive.",
        *("read[..., -1:].abs(), (-m", "read[..., -1:], (-m"),
    ),
)
