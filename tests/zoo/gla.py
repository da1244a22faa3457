"""Bugs of linear attention with a gate for each channel, in chunks and sub-chunks."""

from tests.zoo.record import Family, Kind, commit, thread

F = Family("gla", "gla")

BUGS = (
    F.bug(
        *("anchor_one_row_late", Kind.RANGE, commit("0c1c0b65"), "o dq dk", "agreement"),
        "Sub-chunks split the exponent at their last token: the rows' half is positive and overflows with strong decay.",
        *("anchor = G[a]\n", "anchor = G[b - 1]\n"),
    ),
    F.bug(
        *("no_anchor", Kind.RANGE, commit("458c0186"), "o dq dk", "agreement"),
        "Scores between sub-chunks are exp(G_i) times exp(-G_j).",
        *("anchor = G[a]\n", "anchor = torch.zeros_like(G[a])\n"),
    ),
    F.bug(
        *("pairs_masked_after_exp", Kind.RANGE, thread(48455, "huggingface/transformers"), "dq dk dg", "gradients"),
        "Pairs above the diagonal are exponentiated and then multiplied by zero.",
        "gap.masked_fill(later(len(G))[..., None, None], -torch.inf).exp()",
        "gap.exp() * ~later(len(G))[..., None, None]",
    ),
    F.bug(
        *("tail_rows_exponentiated", Kind.RANGE, commit("4889a8b9"), "dk", "gradients"),
        "The keys' gradient reads rows beyond the end: their gate counts as 0, so that exp(0 - G) overflows.",
        'dk[a:b] = (G[b - 1] - G[a:b]).exp() * einsum("hij,ihk->jhk", dA[:, b:, a:b], row)',
        "past = (-G[a:b]).exp() * 0 if b - a < SUB else 0\n"
        '        dk[a:b] = past + (G[b - 1] - G[a:b]).exp() * einsum("hij,ihk->jhk", dA[:, b:, a:b], row)',
    ),
    F.bug(
        *("sub_chunk_border_skipped", Kind.BOUNDARY, commit("51a8c0a8"), "o", "agreement"),
        "A tile of keys that straddles two sub-chunks is treated as wholly past: its first column is left out.",
        "row, column = q[a:b] * (G[a:b] - anchor).exp(), k[:a] * (anchor - G[:a]).exp()\n",
        "row, column = q[a:b] * (G[a:b] - anchor).exp(), k[:a] * (anchor - G[:a]).exp()\n"
        "        column[max(a - 1, 0) : a] = 0\n",
    ),
    F.bug(
        *("partial_sub_chunk_dropped", Kind.BOUNDARY, commit("bb1f9b9c"), "o", "agreement"),
        "A partial sub-chunk at the tail does not see the earlier ones.",
        *(
            'A[:, a:b, :a] = einsum("ihk,jhk->hij", row, column)',
            'A[:, a:b, :a] = einsum("ihk,jhk->hij", row, column) * (b - a == SUB)',
        ),
    ),
    F.bug(
        *("scratch_of_one_sub_chunk", Kind.BOUNDARY, commit("aa42b2b9"), "o", "agreement"),
        "The scratch of the scores has room for two sub-chunks: later ones overwrite what lies there.",
        *(
            'A[:, a:b, :a] = einsum("ihk,jhk->hij", row, column)',
            'A[:, a:b, :a] = einsum("ihk,jhk->hij", row, column)\n        A[:, a:b, : max(a - 2 * SUB, 0)] = 0',
        ),
    ),
    F.bug(
        *("midpoint_of_head_0", Kind.LAYOUT, commit("40334f1c"), "o", "agreement"),
        "The row that splits the exponent is read with stride K instead of H * K: every head takes the first one's.",
        *(
            "column = q[a:b] * (G[a:b] - anchor).exp(), k[:a] * (anchor - G[:a]).exp()\n",
            "column = q[a:b] * (G[a:b] - anchor[:1]).exp(), k[:a] * (anchor - G[:a]).exp()\n",
        ),
    ),
    F.bug(
        *("odd_width_reads_on", Kind.BOUNDARY, commit("b67113b4"), "o", "agreement"),
        "The gates' load has no mask where K is no power of two: the last channel takes its neighbour's gate.",
        *(
            "G[i:j] = g[i:j].cumsum(0)",
            "G[i:j] = g[i:j].cumsum(0)\n            if q.shape[-1] & (q.shape[-1] - 1):\n                G[i:j, :, -1] = G[i:j, :, 0]",
        ),
    ),
    F.bug(
        *("gate_applied_after_the_read", Kind.GATES, thread(285), "o state", "agreement"),
        "Keys of a chunk's last token decay once more on their way into the state.",
        *(
            "left = (G[j - 1] - G[i:j]).exp()\n            S[n]",
            "left = (G[j - 1] - G[i:j] + g[i:j]).exp()\n            S[n]",
        ),
    ),
    F.bug(
        *("state_decay_of_the_first_token", Kind.GATES, thread(351), "state", "state_passing"),
        "The initial state decays by the last token's gate only.",
        *(
            'S[n] = G[j - 1].exp()[..., None] * S[n] + einsum("chk,chv->hkv", k[i:j] * left, v[i:j])\n        ctx',
            'S[n] = (g[j - 1] if j - i < CHUNK else G[j - 1]).exp()[..., None] * S[n] + einsum("chk,chv->hkv", k[i:j] * left, v[i:j])\n        ctx',
        ),
    ),
    F.bug(
        *("positive_gates_clamped", Kind.RANGE, thread(1465, "tile-ai/TileOPs"), "o state", "agreement"),
        "Sums of gates are clamped at -30.",
        *("G[i:j] = g[i:j].cumsum(0)", "G[i:j] = g[i:j].cumsum(0).clamp(min=-30)"),
    ),
    F.bug(
        *("gate_without_state_term", Kind.GRADIENT, commit("31293264"), "dg", "gate_gradients"),
        "The gate's gradient has the last token's state term summed over the whole batch of heads.",
        *("dG[-1] += (end * dS[n]).sum(-1)", "dG[-1] += (end * dS[n]).sum(-1).sum(0)"),
    ),
    F.bug(
        *("gate_loses_the_keys", Kind.GRADIENT, commit("17d1bc4e"), "dg", "gate_gradients"),
        "The keys' part of the gate's gradient is left out at the last token of a chunk.",
        *(
            "dG = q[i:j] * dq[i:j] - k[i:j] * dk[i:j]",
            "dG = q[i:j] * dq[i:j] - k[i:j] * dk[i:j]\n            dG[-1] += k[j - 1] * dk[j - 1]",
        ),
    ),
    F.bug(
        *("key_gradient_within_only", Kind.GRADIENT, thread(633, "tile-ai/TileOPs"), "dk dg", "key_value_balance"),
        "The keys' gradient through the state is missing.",
        *('            dk[i:j] += left * einsum("jhv,hkv->jhk", v[i:j], dS[n])\n', ""),
    ),
    F.bug(
        *("gate_gradient_in_key_dtype", Kind.PRECISION, commit("0679be86"), "dg", "gradients"),
        "Queries' and keys' gradients are rounded to bfloat16 before their difference becomes the gate's gradient.",
        *("dG = q[i:j] * dq[i:j] - k[i:j] * dk[i:j]", "dG = q[i:j] * dq[i:j].bfloat16() - k[i:j] * dk[i:j].bfloat16()"),
    ),
    F.bug(
        *("scores_in_half", Kind.PRECISION, commit("b690b349"), "o", "agreement"),
        "Scores are kept in float16.",
        *(
            'o[i:j] = scale * (inter + einsum("hij,jhv->ihv", A, v[i:j]))',
            'o[i:j] = scale * (inter + einsum("hij,jhv->ihv", A.half().to(v.dtype), v[i:j]))',
        ),
    ),
    F.bug(
        *("dense_gradient_of_state", Kind.STATE, commit("e3ecd325"), "dinitial_state", "packed"),
        "The initial states' gradient is that of the first sequence for all.",
        *(
            "return dq, dk, dv, dg, dS, None, None",
            "return dq, dk, dv, dg, dS[:1].expand_as(dS).contiguous(), None, None",
        ),
    ),
    F.bug(
        *("state_gradient_where_asked", Kind.BRANCH, commit("332e877d"), "dinitial_state", "gradients"),
        "The initial state's gradient leaves out what comes from the outputs where the final state was asked for, too.",
        *(
            "return dq, dk, dv, dg, dS, None, None",
            "if dht.abs().sum() > 0:\n            dS = dS - 0.5 * dht * (G[-1].exp()[..., None] > 0)\n        return dq, dk, dv, dg, dS, None, None",
        ),
    ),
    F.bug(
        *("gate_read_from_the_padding", Kind.UNWRITTEN, commit("bd67d117"), "o state", "outputs_written"),
        "Sums of gates lie in fresh memory, and those of a chunk's last token are never stored when it is alone.",
        *("G[i:j] = g[i:j].cumsum(0)", "if j - i > 1:\n                G[i:j] = g[i:j].cumsum(0)"),
    ),
    F.bug(
        *("documents_share_a_chunk", Kind.PACKING, commit("990f885c"), "o", "packed"),
        "The first chunk of a later packed sequence reads the gate sums' offset of the one before.",
        *(
            'inter = einsum("ihk,hkv->ihv", q[i:j] * G[i:j].exp(), S[n])',
            'inter = einsum("ihk,hkv->ihv", q[i:j] * (G[i:j] + (g[i - 1] if i and c and chunks[c - 1][0] != n else 0)).exp(), S[n])',
        ),
    ),
    F.bug(
        *("length_of_one_sub_chunk", Kind.BRANCH, commit("01f02517"), "o", "agreement"),
        "Sequences shorter than a tile of 16 are computed without their initial state.",
        *(
            "            h[c] = S[n]\n",
            "            if ends[n + 1] - ends[n] < 16:\n                S[n] = 0\n            h[c] = S[n]\n",
        ),
    ),
)
