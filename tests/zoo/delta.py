"""Bugs of the delta rule with and without gates, and of Kimi Delta Attention."""

from tests.zoo.record import Family, Kind, commit, thread

G, D = Family("gated_delta", "gated_delta_rule"), Family("gated_delta", "delta_rule")
K = Family("kda", "kda")

BUGS = (
    G.bug(
        *("triangle_with_its_diagonal", Kind.CAUSALITY, commit("370fe304"), "o state", "agreement"),
        "The products keep their diagonal: a token removes what it has not written.",
        *("return L.tril(-1)\n", "return L.tril()\n"),
        *(
            "torch.linalg.solve_triangular(L, right",
            "torch.linalg.solve_triangular(L + torch.eye(L.shape[-1], dtype=L.dtype), right",
        ),
        *("upper=False, unitriangular=True)", "upper=False)"),
    ),
    G.bug(
        *("neumann_series", Kind.PRECISION, commit("78d7a93b"), "o state", "agreement"),
        "The triangle's inverse is a series cut off after four terms.",
        "return torch.linalg.solve_triangular(L, right.movedim(0, 1), upper=False, unitriangular=True).movedim(1, 0)",
        "x = y = right.movedim(0, 1)\n    for _ in range(4):\n        y = -L @ y\n        x = x + y\n    return x.movedim(1, 0)",
    ),
    G.bug(
        *("inverse_in_bfloat16", Kind.PRECISION, commit("3f675a2d"), "o state", "agreement"),
        "The triangle is solved from products in bfloat16: the requested precision is ignored.",
        *("return L.tril(-1)\n", "return L.tril(-1).bfloat16().to(k.dtype)\n"),
    ),
    G.bug(
        *("read_in_bfloat16", Kind.PRECISION, thread(465, "meta-pytorch/attention-gym"), "o state", "agreement"),
        "What the keys read from the state is rounded to bfloat16 before it is subtracted from the values.",
        *(
            'error = v[i:j] - into * einsum("ihk,hkv->ihv", k[i:j], S[n])',
            'error = v[i:j] - (into * einsum("ihk,hkv->ihv", k[i:j], S[n])).bfloat16().to(v.dtype)',
        ),
    ),
    G.bug(
        *("keys_read_before_the_gate", Kind.GATES, commit("cb36e67a"), "o state", "agreement"),
        "Keys read the state without this token's decay.",
        *("error = v[i:j] - into * einsum(", "error = v[i:j] - (G[i:j] - g[i:j]).exp()[..., None] * einsum("),
    ),
    G.bug(
        *("columns_beyond_the_chunk", Kind.RANGE, commit("91d870f8"), "o state", "agreement"),
        "In a partial chunk, rows beyond the end have gate 0: exp(0 - G) overflows, and infinity times 0 is NaN.",
        *(
            "    return gap.masked_fill(later(len(G)), -torch.inf).exp()\n",
            "    past = ((-G.mT[:, None, :]).exp() * 0) if len(G) < CHUNK else 0\n    return gap.masked_fill(later(len(G)), -torch.inf).exp() + past\n",
        ),
    ),
    G.bug(
        *("strength_of_the_column", Kind.LAYOUT, commit("1c403c3a"), "o state", "agreement"),
        "The products take the write strength of the earlier token.",
        *("L = beta.mT[..., None] * einsum", "L = beta.mT[:, None] * einsum"),
    ),
    G.bug(
        *("strength_forgotten_without_gate", Kind.BRANCH, commit("f636f5a1"), "o state", "gate_limits"),
        "The removal is inside the branch for gates: where the gate is 0 nothing is removed.",
        *("            error = v[i:j] - into * einsum(", "            error = v[i:j] - (into < 1) * into * einsum("),
    ),
    G.bug(
        *("state_not_removed_across_chunks", Kind.STATE, thread(1282, "kekzl/imp"), "o state", "state_passing"),
        "The removal reads the state only from the second chunk of a sequence on.",
        *("error = v[i:j] - into * einsum(", "error = v[i:j] - (i > ends[n]) * into * einsum("),
    ),
    G.bug(
        *("layout_of_the_state", Kind.LAYOUT, thread(41292, "vllm-project/vllm"), "o state", "agreement"),
        "The state is read value-first, which sizes K = V hide.",
        *(
            "    o, ht = Attend.apply(",
            "    h0 = h0.reshape(*h0.shape[:2], *h0.shape[:1:-1]).mT.contiguous()\n    o, ht = Attend.apply(",
        ),
    ),
    G.bug(
        *("delta_gate_of_head_0", Kind.LAYOUT, commit("d38ed8b5"), "dg dk dq", "gradients"),
        "The backward pass reads head 0's gate for every head.",
        *("D, grad = decays(G[i:j]), ctx", "D, grad = decays(G[i:j, :1].expand_as(G[i:j])), ctx"),
    ),
    G.bug(
        *("gate_gradient_without_removal", Kind.GRADIENT, thread(640), "dg", "gate_gradients"),
        "The gate's gradient lacks the part of what keys read.",
        *(" - (b * from_state * dR).sum(-1)\n", "\n"),
    ),
    G.bug(
        *("gate_gradient_without_triangle", Kind.GRADIENT, thread(640), "dg", "gate_gradients"),
        "The gate's gradient lacks the part of the triangle.",
        *('W = dA * einsum("ihk,jhk->hij", qc, kc) + dL * L', 'W = dA * einsum("ihk,jhk->hij", qc, kc)'),
    ),
    G.bug(
        *("strength_gradient_twice", Kind.GRADIENT, thread(640), "dbeta", "gradients"),
        "The write strength's gradient leaves out what the triangle contributes.",
        *(".sum(-1) + (dL * KK).sum(-1).mT", ".sum(-1)"),
    ),
    D.bug(
        *("key_gradient_without_triangle", Kind.GRADIENT, thread(984), "dk", "gradients"),
        "The keys' gradient lacks one side of the triangle's products.",
        *(
            'dk[i:j] += einsum("hij,jhk->ihk", M, kc) + einsum("hij,ihk->jhk", M, kc)',
            'dk[i:j] += einsum("hij,jhk->ihk", M, kc)',
        ),
    ),
    D.bug(
        *("key_gradient_without_read", Kind.GRADIENT, thread(633, "tile-ai/TileOPs"), "dk", "delta_gauge"),
        "The keys' gradient through what they read from the state is missing.",
        *(" + dk_end + dk_read\n", " + dk_end\n"),
    ),
    D.bug(
        *(
            "state_gradient_without_read",
            Kind.GRADIENT,
            thread(633, "tile-ai/TileOPs"),
            "dk dinitial_state",
            "gradients",
        ),
        "The state's gradient lacks the path through what keys read.",
        *('            dS[n] -= einsum("chk,chv->hkv", kc * into * b, dR)\n', ""),
    ),
    D.bug(
        *(
            "inverse_not_transposed",
            Kind.GRADIENT,
            thread(2623, "Dao-AILab/flash-attention"),
            "dv dk dbeta",
            "gradients",
        ),
        "The backward pass solves with the triangle of the forward pass, not with its transpose.",
        *("dR = solve_transposed(L, du)", "dR = solve(L, du)"),
    ),
    D.bug(
        *("value_columns_capped", Kind.BRANCH, commit("d1fc1c54"), "o", "agreement"),
        "The block of values is capped at 16: columns beyond it are read with the first block's error.",
        *(
            "            o[i:j] = scale * (inter",
            "            u[i:j, :, 16:] *= 0.5\n            o[i:j] = scale * (inter",
        ),
    ),
    D.bug(
        *("chunk_longer_than_the_sequence", Kind.BOUNDARY, commit("91059ccc"), "o state", "agreement"),
        "Where the sequence is shorter than a chunk, its last token is masked.",
        *(
            "            u[i:j] = solve(",
            "            error[-1] *= j - i == CHUNK or i > ends[n]\n            u[i:j] = solve(",
        ),
    ),
    D.bug(
        *("program_of_half_the_columns", Kind.SPLIT, commit("cff34514"), "dq", "query_euler"),
        "The queries' gradient of each tile of values is stored, not added.",
        *(
            'dq[i:j] = einsum("hij,jhk->ihk", dA, kc) + dq_state',
            'dq[i:j] = einsum("hij,jhk->ihk", dA, kc) + into * einsum("ihv,hkv->ihk", grad[..., 16:] if grad.shape[-1] > 16 else grad, h[c][..., 16:] if grad.shape[-1] > 16 else h[c])',
        ),
    ),
    D.bug(
        *("written_values_kept", Kind.STALE, thread(28293, "vllm-project/vllm"), "dbeta dk", "call_history"),
        "What was written is kept in a buffer of the module for the backward pass: another call overwrites it.",
        *(
            "        ctx.save_for_backward(q, k, v, G, beta, u, h)\n",
            "        _KEPT[u.shape] = u\n        ctx.save_for_backward(q, k, v, G, beta, _KEPT.setdefault((u.shape, k.shape), u), h)\n",
        ),
        *("CHUNK = 16\n", "CHUNK = 16\n_KEPT = {}\n"),
    ),
    K.bug(
        *("removal_reads_the_past", Kind.GATES, thread(895, "ooples/AiDotNet.Tensors"), "o state", "agreement"),
        "The removal reads the state before its decay.",
        *("error = v[t] - (k[t, :, :, None] * P).sum(1)", "error = v[t] - (k[t, :, :, None] * S).sum(1)"),
    ),
    K.bug(
        *("gate_in_powers_of_two", Kind.GATES, thread(30860, "sgl-project/sglang"), "o state", "agreement"),
        "One path decays by 2^g, the other by e^g.",
        *(
            "                P = g[t].exp()[..., None] * S\n",
            "                P = (g[t].exp() if ends[n + 1] - ends[n] > 16 else g[t].exp2())[..., None] * S\n",
        ),
    ),
    K.bug(
        *("gate_lower_bound", Kind.RANGE, thread(1017, "NVIDIA/cudnn-frontend"), "o state", "agreement"),
        "Gates are held above -2, the mild ones of the tests.",
        *("rows(q, k, v, g, beta)", "rows(q, k, v, g.clamp(min=-2), beta)"),
    ),
    K.bug(
        *(
            "key_gradient_without_removal",
            Kind.GRADIENT,
            thread(48455, "huggingface/transformers"),
            "dk",
            "delta_gauge",
        ),
        "The keys' gradient lacks what they read.",
        *(" - (P * dv[t, :, None]).sum(-1)\n", "\n"),
    ),
    K.bug(
        *("gate_gradient_before_removal", Kind.GRADIENT, thread(889), "dg", "gate_gradients"),
        "The gate's gradient is formed before the removal's path is taken off.",
        *("dg[t] = (P * dP).sum(-1)", "dg[t] = (P * dS).sum(-1)"),
    ),
    K.bug(
        *("strength_gradient_of_the_value", Kind.GRADIENT, thread(984), "dbeta", "delta_gauge"),
        "The write strength's gradient takes the value where it needs the value less what was read.",
        *("dbeta[t] = (written * error).sum(-1)", "dbeta[t] = (written * v[t]).sum(-1)"),
    ),
    K.bug(
        *("odd_head_of_the_state", Kind.LAYOUT, commit("7c730eb5"), "state", "head_independence"),
        "The last head stores its state in the slot of the one before.",
        *(
            "            final[n] = S\n",
            "            final[n] = S\n            final[n, -2:-1] = S[-1:] if S.shape[0] > 1 else S[:0]\n",
        ),
    ),
    K.bug(
        *("value_branch_updates_keys", Kind.BRANCH, commit("3ddba2a0"), "o state", "agreement"),
        "The write strength multiplies the key twice and the error not at all, in sequences of one token.",
        *(
            "S = P + (beta[t, :, None] * k[t])[..., None] * error[:, None]\n                o",
            "S = P + ((beta[t, :, None] if ends[n + 1] - ends[n] > 1 else beta[t, :, None] ** 2) * k[t])[..., None] * error[:, None]\n                o",
        ),
    ),
    K.bug(
        *("state_in_half", Kind.PRECISION, thread(1187), "o state", "agreement"),
        "The state is carried in float16.",
        *(
            "                P = g[t].exp()[..., None] * S\n",
            "                S = S.half().to(q.dtype)\n                P = g[t].exp()[..., None] * S\n",
        ),
    ),
)
