"""Bugs of Triton kernels: gated linear attention and the delta rule token by token, a scalar gate in chunks."""

from tests.zoo.record import Family, Kind, commit, thread

G, S = Family("triton_gla", "gla"), Family("triton_simple_gla", "simple_gla")
D = Family("triton_delta", "delta_rule")

BUGS = (
    G.bug(
        *("t_read_beyond_the_width", Kind.BOUNDARY, commit("b67113b4"), "o state", "agreement"),
        "The gates' load has the mask of the values, so that channels beyond V count as gate 0.",
        "b_g = tl.load(g + at * K + ok, mask=mk, other=0.0).to(tl.float32)\n"
        "        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)\n"
        "        S = S * tl.exp(b_g)[:, None] + b_k[:, None] * b_v[None, :]\n"
        "        tl.store(o",
        "b_g = tl.load(g + at * K + ok, mask=ok < V, other=0.0).to(tl.float32)\n"
        "        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)\n"
        "        S = S * tl.exp(b_g)[:, None] + b_k[:, None] * b_v[None, :]\n"
        "        tl.store(o",
    ),
    G.bug(
        *("t_output_at_offset_0", Kind.SPLIT, commit("ccb0ff94"), "o", "agreement"),
        "Each block of values stores its outputs at the first block's columns.",
        *("tl.store(o + at * V + ov,", "tl.store(o + at * V + tl.arange(0, BV),"),
    ),
    G.bug(
        *("t_last_token_skipped", Kind.BOUNDARY, commit("be882f3b"), "o state", "agreement"),
        "The loop ends one token early in sequences longer than 16.",
        "    for t in range(begin, end):\n"
        "        at = t * H + h\n"
        "        b_q = tl.load(q + at * K + ok, mask=mk, other=0.0).to(tl.float32) * scale\n"
        "        b_k = tl.load(k + at * K + ok, mask=mk, other=0.0).to(tl.float32)\n"
        "        b_g = tl.load(g + at * K + ok, mask=mk, other=0.0).to(tl.float32)\n"
        "        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)\n"
        "        S =",
        "    for t in range(begin, end - ((end - begin) > 16).to(tl.int32)):\n"
        "        at = t * H + h\n"
        "        b_q = tl.load(q + at * K + ok, mask=mk, other=0.0).to(tl.float32) * scale\n"
        "        b_k = tl.load(k + at * K + ok, mask=mk, other=0.0).to(tl.float32)\n"
        "        b_g = tl.load(g + at * K + ok, mask=mk, other=0.0).to(tl.float32)\n"
        "        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)\n"
        "        S =",
    ),
    G.bug(
        *("t_heads_of_one_sequence", Kind.LAYOUT, commit("13161ba7"), "o state", "agreement"),
        "The program's number is divided by the number of sequences, not of heads.",
        "    n, h = i_nh // H, i_nh % H\n"
        "    begin, end = tl.load(ends + n), tl.load(ends + n + 1)\n"
        "    ok, ov = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)\n"
        "    mk, mv = ok < K, ov < V\n"
        "    state = i_nh * K * V + ok[:, None] * V + ov[None, :]\n"
        "    m = mk[:, None] & mv[None, :]\n"
        "    S =",
        "    n, h = i_nh // H, i_nh % H\n"
        "    begin, end = tl.load(ends + n), tl.load(ends + n + 1)\n"
        "    ok, ov = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)\n"
        "    mk, mv = ok < K, ov < V\n"
        "    state = (h * (tl.num_programs(1) // H) + n) * K * V + ok[:, None] * V + ov[None, :]\n"
        "    m = mk[:, None] & mv[None, :]\n"
        "    S =",
    ),
    G.bug(
        *("t_state_stored_transposed", Kind.STATE, thread(41292, "vllm-project/vllm"), "state", "agreement"),
        "The final state is stored value-first.",
        *(
            "    tl.store(ht + state, S, mask=m)",
            "    tl.store(ht + i_nh * K * V + ov[None, :] * K + ok[:, None], S, mask=m)",
        ),
    ),
    G.bug(
        *("t_query_part_of_block_0", Kind.SPLIT, commit("0dfd7f5f"), "dq dg", "gradients"),
        "The part's offset is a multiple of the sequence's length where it must be one of all tokens.",
        *(
            "tl.store(dq + (i_v * P * H + at) * K + ok, tl.sum(S",
            "tl.store(dq + (i_v * (end - begin) * H + at) * K + ok, tl.sum(S",
        ),
    ),
    G.bug(
        *("t_parts_not_reset", Kind.UNWRITTEN, thread(9230, "triton-lang/triton"), "dk dg", "gradients"),
        "Only the first block stores its part of the keys' gradient; the sum reads all.",
        *(
            "tl.store(dk + (i_v * P * H + at) * K + ok, tl.sum(dS * b_v[None, :], 1), mask=mk)",
            "tl.store(dk + (i_v * P * H + at) * K + ok, tl.sum(dS * b_v[None, :], 1), mask=mk & ((ok * 0 + i_v) == 0))",
        ),
    ),
    G.bug(
        *("t_key_parts_overwrite", Kind.SPLIT, commit("e4c7f880"), "dk", "key_value_balance"),
        "All blocks of values write one slot of the keys' gradient.",
        *("tl.store(dk + (i_v * P * H + at) * K + ok", "tl.store(dk + at * K + ok"),
        *("dq, dk = dq.sum(0), dk.sum(0)", "dq, dk = dq.sum(0), dk[0]"),
    ),
    G.bug(
        *("t_gate_gradient_without_end", Kind.GRADIENT, commit("31293264"), "dg", "gate_gradients"),
        "The gate's gradient lacks the final state's term.",
        *(".flip(0).cumsum(0).flip(0) + end[n]", ".flip(0).cumsum(0).flip(0)"),
    ),
    G.bug(
        *("t_gate_sum_across_documents", Kind.PACKING, commit("ddee66d9"), "dg", "packed"),
        "The gate's gradient is summed over all rows, whatever sequence they belong to.",
        *(
            "dg[i:j] = terms[i:j].flip(0).cumsum(0).flip(0) + end[n]",
            "dg[i:j] = terms[i:].flip(0).cumsum(0).flip(0)[: j - i] + end[n]",
        ),
    ),
    G.bug(
        *("t_initial_gradient_from_batch", Kind.STATE, commit("e3ecd325"), "dinitial_state", "packed"),
        "The gradient of the initial state is stored for the first sequence of the batch only.",
        *(
            "    tl.store(dh0 + state, dS, mask=m)",
            "    tl.store(dh0 + state, dS, mask=m & ((ok[:, None] * 0 + n) < 2))",
        ),
        *("dv, dh0 = torch.empty_like(v), torch.empty_like(h0)", "dv, dh0 = torch.empty_like(v), torch.zeros_like(h0)"),
    ),
    G.bug(
        *("t_final_gradient_not_loaded", Kind.GRADIENT, commit("c85a4388"), "dk dv dinitial_state", "gradients"),
        "The backward kernel starts from zero.",
        *("    dS = tl.load(dht + state, mask=m, other=0.0)", "    dS = tl.load(dht + state, mask=m, other=0.0) * 0.0"),
    ),
    G.bug(
        *("t_exp2_without_conversion", Kind.GATES, thread(30860, "sgl-project/sglang"), "dk dv", "gradients"),
        "The backward kernel takes powers of 2 where the forward one takes powers of e.",
        *("dS = dS * tl.exp(b_g)[:, None]", "dS = dS * tl.exp2(b_g)[:, None]"),
    ),
    G.bug(
        *("t_strides_of_dense_inputs", Kind.STRIDES, commit("f5347537"), "o", "strided_inputs"),
        "There is no guard for inputs with gaps: the kernel reads them as if dense.",
        *("        q, k, v, g = (x.contiguous() for x in (q, k, v, g))\n", "        v = v.contiguous()\n"),
    ),
    G.bug(
        *("t_strides_of_dense_cotangents", Kind.STRIDES, commit("6d80721f"), "dq dk dv", "strided_cotangents"),
        "The upstream gradient is read as if dense.",
        *("do, dht = do.contiguous(), dht.contiguous()", "dht = dht.contiguous()"),
    ),
    S.bug(
        *("t_mask_after_exp", Kind.RANGE, commit("39fc5878"), "o", "agreement"),
        "Above the diagonal the exponential overflows, and the mask multiplies infinity by zero.",
        "D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        A = tl.dot(b_q, tl.trans(b_k), allow_tf32=False) * D\n"
        "        b_o",
        "D = tl.exp(G[:, None] - G[None, :]) * causal.to(tl.float32)\n"
        "        A = tl.dot(b_q, tl.trans(b_k), allow_tf32=False) * D\n"
        "        b_o",
    ),
    S.bug(
        *("t_rows_beyond_the_end", Kind.BOUNDARY, commit("3a904f02"), "state", "agreement"),
        "Keys of a partial chunk are not masked: the next sequence's tokens enter the state.",
        "b_k = tl.load(k + at[:, None] * K + ok[None, :], mask=mt[:, None] & mk[None, :], other=0.0).to(tl.float32)\n"
        "        b_v = tl.load(v + at[:, None] * V + ov[None, :], mask=mt[:, None] & mv[None, :], other=0.0).to(tl.float32)\n"
        "        b_g = tl.load(g + at, mask=mt, other=0.0).to(tl.float32)\n"
        "        G = tl.cumsum(b_g, 0)\n"
        "        total = tl.sum(b_g, 0)\n"
        "        causal = oc[:, None] >= oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        A =",
        "inside = at < tl.load(ends + tl.num_programs(0) // H) * H\n"
        "        b_k = tl.load(k + at[:, None] * K + ok[None, :], mask=inside[:, None] & mk[None, :], other=0.0).to(tl.float32)\n"
        "        b_v = tl.load(v + at[:, None] * V + ov[None, :], mask=inside[:, None] & mv[None, :], other=0.0).to(tl.float32)\n"
        "        b_g = tl.load(g + at, mask=mt, other=0.0).to(tl.float32)\n"
        "        G = tl.cumsum(b_g, 0)\n"
        "        total = tl.sum(b_g, 0)\n"
        "        causal = oc[:, None] >= oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        A =",
    ),
    S.bug(
        *("t_strict_causal", Kind.CAUSALITY, commit("c57e6c29"), "dk dv", "gradients"),
        "The keys' kernel leaves the diagonal out.",
        "causal = oc[:, None] >= oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        left",
        "causal = oc[:, None] > oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        left",
    ),
    S.bug(
        *("t_acausal_chunk", Kind.CAUSALITY, thread(2623, "Dao-AILab/flash-attention"), "o", "causality_values"),
        "The comparison of the causal mask is turned round.",
        "causal = oc[:, None] >= oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        A = tl.dot(b_q, tl.trans(b_k), allow_tf32=False) * D\n"
        "        b_o",
        "causal = oc[:, None] <= oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[None, :] - G[:, None], 0.0)), 0.0)\n"
        "        A = tl.dot(b_q, tl.trans(b_k), allow_tf32=False) * D\n"
        "        b_o",
    ),
    S.bug(
        *("t_state_decays_late", Kind.GATES, commit("a226c0c9"), "o state", "agreement"),
        "What is left of a key is measured to its own token.",
        "        left = tl.exp(total - G)\n"
        "        S = S * tl.exp(total) + tl.dot(tl.trans(b_k * left[:, None]), b_v, allow_tf32=False)\n"
        "    tl.store(ht",
        "        left = tl.exp(total - G + b_g)\n"
        "        S = S * tl.exp(total) + tl.dot(tl.trans(b_k * left[:, None]), b_v, allow_tf32=False)\n"
        "    tl.store(ht",
    ),
    S.bug(
        *("t_gate_folded_into_keys", Kind.PRECISION, commit("867f30a6"), "o", "agreement"),
        "The gate is multiplied into the keys, which are rounded to float16 for the product.",
        *(
            "b_o = tl.dot(b_q * tl.exp(G)[:, None], S, allow_tf32=False)",
            "b_o = tl.dot((b_q * tl.exp(G)[:, None]).to(tl.float16), S.to(tl.float16)).to(tl.float32)",
        ),
    ),
    S.bug(
        *("t_gate_of_another_token", Kind.BOUNDARY, commit("9d148e32"), "o", "agreement"),
        "The gates of the chunk are read from one token earlier where there is one.",
        "b_g = tl.load(g + at, mask=mt, other=0.0).to(tl.float32)\n"
        "        G = tl.cumsum(b_g, 0)\n"
        "        total = tl.sum(b_g, 0)\n"
        "        causal = oc[:, None] >= oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        A =",
        "b_g = tl.load(g + at - tl.minimum(t, 1) * H, mask=mt, other=0.0).to(tl.float32)\n"
        "        G = tl.cumsum(b_g, 0)\n"
        "        total = tl.sum(b_g, 0)\n"
        "        causal = oc[:, None] >= oc[None, :]\n"
        "        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)\n"
        "        A =",
    ),
    S.bug(
        *("t_query_gradient_within_only", Kind.GRADIENT, commit("c85a4388"), "dq dg", "query_euler"),
        "The queries' gradient through the state is missing.",
        *(" + tl.dot(b_do, tl.trans(S), allow_tf32=False) * tl.exp(G)[:, None]\n", "\n"),
    ),
    S.bug(
        *("t_scale_missing_in_dq", Kind.SCALE, commit("332e877d"), "dq dg", "query_euler"),
        "The queries' gradient lacks the scale.",
        *("b_dq * scale, mask", "b_dq, mask"),
    ),
    S.bug(
        *("t_scale_twice_in_dk", Kind.SCALE, commit("3a904f02"), "dk", "key_value_balance"),
        "The scale enters the keys' gradient twice.",
        *(
            "b_dk = tl.dot(tl.trans(dA), b_q, allow_tf32=False)",
            "b_dk = scale * tl.dot(tl.trans(dA), b_q, allow_tf32=False)",
        ),
    ),
    S.bug(
        *("t_value_gradient_undecayed", Kind.GRADIENT, commit("7362d874"), "dv", "linear_balance"),
        "The values' gradient through the state lacks the keys' decay.",
        *("tl.dot(b_k * left, dS, allow_tf32=False)", "tl.dot(b_k, dS, allow_tf32=False)"),
    ),
    S.bug(
        *("t_backward_chunks_in_order", Kind.STATE, thread(10, "NX-AI/mlstm_kernels"), "dk dv", "gradients"),
        "The keys' kernel runs through the chunks from the first to the last.",
        *("for c in range(tl.cdiv(end - begin, BT) - 1, -1, -1):", "for c in range(tl.cdiv(end - begin, BT)):"),
    ),
    S.bug(
        *("t_chunks_of_the_dense_grid", Kind.PACKING, commit("585bb3c1"), "dk dv dinitial_state", "packed"),
        "The number of chunks is that of the whole batch, so that a sequence's last chunk is counted from its end.",
        *(
            "t = begin + c * BT + oc\n        mt = t < end\n",
            "t = begin // BT * BT + c * BT + oc\n        mt = (t < end) & (t >= begin)\n",
        ),
    ),
    S.bug(
        *("t_tail_gradient_unwritten", Kind.UNWRITTEN, thread(892), "dq dg", "gradients"),
        "The queries' kernel stores whole chunks only.",
        *(
            "b_dq * scale, mask=mt[:, None] & mk[None, :])",
            "b_dq * scale, mask=mt[:, None] & mk[None, :] & ((oc * 0 + i)[:, None] + BT <= end))",
        ),
    ),
    S.bug(
        *("t_state_mask_transposed", Kind.STATE, commit("eb7c8baa"), "dq", "gradients"),
        "The mask of the initial state has the axes of keys and values swapped.",
        *(
            "+ ov[None, :], mask=mk[:, None] & mv[None, :], other=0.0)\n    for i in range(begin, end, BT):\n        t = i + oc\n        mt = t < end\n        at = t * H + h\n        b_k",
            "+ ov[None, :], mask=(ok < V)[:, None] & (ov < K)[None, :], other=0.0)\n    for i in range(begin, end, BT):\n        t = i + oc\n        mt = t < end\n        at = t * H + h\n        b_k",
        ),
    ),
    D.bug(
        *("t_removal_reads_after", Kind.MATHS, commit("f636f5a1"), "o state", "agreement"),
        "The write strength is left out of what is written.",
        *(
            "S += b_k[:, None] * (b_beta * b_u)[None, :]\n        tl.store(u",
            "S += b_k[:, None] * b_u[None, :]\n        tl.store(u",
        ),
    ),
    D.bug(
        *("t_strength_parts_overwrite", Kind.SPLIT, commit("7d808a33"), "dbeta", "delta_gauge"),
        "Blocks of values write one slot of the write strength's gradient.",
        *("tl.store(dbeta + i_v * P * H + at,", "tl.store(dbeta + at,"),
        *("dq, dk, dbeta = (x.sum(0) for x in (dq, dk, dbeta))", "dq, dk, dbeta = dq.sum(0), dk.sum(0), dbeta[0]"),
    ),
    D.bug(
        *("t_key_gradient_one_kernel", Kind.GRADIENT, thread(633, "tile-ai/TileOPs"), "dk", "delta_gauge"),
        "The second kernel's part of the keys' gradient is not stored.",
        *("        tl.store(dk + part, b_dk, mask=mk)\n", ""),
    ),
    D.bug(
        *("t_second_kernel_reads_after", Kind.GRADIENT, thread(984), "dk", "gradients"),
        "The keys' second part reads the state after the token.",
        "        b_dk = tl.load(dk + part, mask=mk, other=0.0) - tl.sum(S * b_dv[None, :], 1)\n"
        "        tl.store(dk + part, b_dk, mask=mk)\n"
        "        S += b_k[:, None] * (b_beta * b_u)[None, :]\n",
        "        S += b_k[:, None] * (b_beta * b_u)[None, :]\n"
        "        b_dk = tl.load(dk + part, mask=mk, other=0.0) - tl.sum(S * b_dv[None, :], 1)\n"
        "        tl.store(dk + part, b_dk, mask=mk)\n",
    ),
    D.bug(
        *("t_error_in_half", Kind.PRECISION, thread(465, "meta-pytorch/attention-gym"), "o state", "agreement"),
        "What the key reads is rounded to float16 before it is subtracted.",
        *(
            "b_u = b_v - tl.sum(S * b_k[:, None], 0)",
            "b_u = b_v - tl.sum(S * b_k[:, None], 0).to(tl.float16).to(tl.float32)",
        ),
    ),
    D.bug(
        *("t_strength_of_the_last_head", Kind.LAYOUT, commit("7c730eb5"), "o state", "agreement"),
        "The write strength is read by the number of the program, not of the token's head.",
        "b_beta = tl.load(beta + at).to(tl.float32)\n        b_u = b_v",
        "b_beta = tl.load(beta + t * H).to(tl.float32)\n        b_u = b_v",
    ),
    D.bug(
        *("t_key_gradient_stride", Kind.LAYOUT, commit("1c403c3a"), "dk", "gradients"),
        "Values' columns are stepped with the block of keys in the second kernel.",
        *("BV = 16\n", "BV = 8\n"),
        "        b_u = tl.load(u + at * V + ov, mask=mv, other=0.0)\n"
        "        b_do = tl.load(do + at * V + ov, mask=mv, other=0.0).to(tl.float32)\n"
        "        b_dv",
        "        b_u = tl.load(u + at * V + ov, mask=mv, other=0.0)\n"
        "        b_do = tl.load(do + at * V + i_v * BK + tl.arange(0, BV), mask=mv, other=0.0).to(tl.float32)\n"
        "        b_dv",
    ),
    D.bug(
        *("t_gradient_in_half", Kind.PRECISION, thread(984), "dk dbeta", "gradients"),
        "What is left of the values is kept in float16 for the backward pass.",
        *(
            "torch.empty_like(v, dtype=torch.float32), torch.empty_like(h0)\n        grid",
            "torch.empty_like(v, dtype=torch.float16), torch.empty_like(h0)\n        grid",
        ),
        *(
            "        ctx.save_for_backward(q, k, beta, u,",
            "        u = u.float()\n        ctx.save_for_backward(q, k, beta, u,",
        ),
    ),
    D.bug(
        *(
            "t_state_gradient_without_read",
            Kind.GRADIENT,
            thread(633, "tile-ai/TileOPs"),
            "dk dv dinitial_state",
            "gradients",
        ),
        "The state's gradient lacks the path through the removal.",
        *("        dS -= b_k[:, None] * (b_beta * b_de)[None, :]\n", ""),
    ),
    D.bug(
        *("t_workspace_of_the_module", Kind.STALE, thread(1274), "dbeta dk", "interleaved_backward"),
        "What is left of the values lies in a workspace of the module, which another call overwrites.",
        *(
            "o, u, ht = torch.empty_like(v), torch.empty_like(v, dtype=torch.float32), torch.empty_like(h0)",
            "o, ht = torch.empty_like(v), torch.empty_like(h0)\n        u = _KEPT.setdefault(v.shape, torch.empty_like(v, dtype=torch.float32))",
        ),
        *("BV = 16\n", "BV = 16\n_KEPT = {}\n"),
    ),
    D.bug(
        *("t_initial_state_ignored", Kind.STATE, thread(1557, "tile-ai/TileOPs"), "o state", "agreement"),
        "The kernel is built without initial states, and those given are ignored.",
        *("    S = tl.load(h0 + state, mask=m, other=0.0)\n", "    S = tl.zeros([BK, BV], tl.float32)\n"),
    ),
)
