"""Bugs of linear attention with a scalar gate in chunks, its hand-written backward included."""

from tests.zoo.record import Family, Kind, commit, thread

F = Family("simple_gla", "simple_gla")

BUGS = (
    F.bug(
        *("mask_after_exp", Kind.RANGE, commit("737550ff"), "o dq dk", "agreement"),
        "Above the diagonal the exponential overflows, and the mask multiplies infinity by zero.",
        *("gap.masked_fill(later(len(G)), -torch.inf).exp()", "gap.exp() * ~later(len(G))"),
    ),
    F.bug(
        *("gate_of_one_dropped", Kind.RANGE, commit("c57e6c29"), "o dq dk dv", "gate_limits"),
        "The safe exponential asks for a difference below 0: a pair whose gates are all 1 is dropped.",
        "gap.masked_fill(later(len(G)), -torch.inf).exp()",
        "gap.masked_fill(~(gap < 0) & ~torch.eye(len(G), dtype=torch.bool), -torch.inf).exp()",
    ),
    F.bug(
        *("factored_scores", Kind.RANGE, thread(1, "MzeroMiko/mamba-mini"), "o dq dk dv", "agreement"),
        "exp(G_i) and exp(-G_j) are formed apart: the second overflows with strong decay.",
        "gap.masked_fill(later(len(G)), -torch.inf).exp()",
        "torch.where(later(len(G)), 0, G.mT[:, :, None].exp() * (-G.mT[:, None, :]).exp())",
    ),
    F.bug(
        *("clamped_factors", Kind.RANGE, "https://github.com/tile-ai/TileOPs/pull/1465", "o dq dk dv", "agreement"),
        "The factors' exponents are clamped at 20 lest they overflow, which changes pairs whose difference is small.",
        "gap.masked_fill(later(len(G)), -torch.inf).exp()",
        "torch.where(later(len(G)), 0, G.mT[:, :, None].clamp(min=-20).exp() * (-G.mT[:, None, :]).clamp(max=20).exp())",
    ),
    F.bug(
        *("diagonal_masked", Kind.CAUSALITY, commit("c57e6c29"), "o dq dk dv", "agreement"),
        "The mask keeps j < i: a token does not see itself.",
        *("gap.masked_fill(later(len(G)), -torch.inf)", "gap.masked_fill(~later(len(G)).mT, -torch.inf)"),
    ),
    F.bug(
        *("one_token_ahead", Kind.CAUSALITY, commit("de09abdf"), "o dq dk dv", "causality_values"),
        "The mask keeps j <= i + 1: a token sees the next one of its chunk.",
        *("gap.masked_fill(later(len(G)), -torch.inf)", "gap.masked_fill(later(len(G)).triu(2), -torch.inf)"),
    ),
    F.bug(
        *("anchor_past_the_tail", Kind.BOUNDARY, commit("0dc10ac2"), "state", "agreement"),
        "What is left of a key at the end of a chunk is measured from the last row of a full one, in the next sequence.",
        *("left = (G[j - 1] - G[i:j]).exp()\n        S[n]", "left = (G[min(i + CHUNK, len(G)) - 1] - G[i:j]).exp()\n        S[n]"),
    ),
    F.bug(
        *("tail_skipped", Kind.BOUNDARY, commit("be882f3b"), "o", "outputs_written"),
        "A program returns early when its chunk reaches the end, where it should when it begins beyond it.",
        *(
            "        A = einsum(\"ihk,jhk->hij\", q[i:j], k[i:j]) * decays(G[i:j])\n",
            "        if i + CHUNK > len(q):\n            continue\n"
            "        A = einsum(\"ihk,jhk->hij\", q[i:j], k[i:j]) * decays(G[i:j])\n",
        ),
    ),
    F.bug(
        *("gate_gradient_on_a_dead_row", Kind.BOUNDARY, commit("de09abdf"), "dg", "gradients"),
        "The chunk's own term of the gate's gradient goes to its last row, which a masked store drops in a partial chunk.",
        *("        dG[j - 1] += (end", "        dG[i + CHUNK - 1 : i + CHUNK] += (j == i + CHUNK) * (end"),
    ),
    F.bug(
        *("beyond_the_grid", Kind.BOUNDARY, commit("5aea42b7"), "o", "agreement"),
        "The mask compares with the limit of one launch: tokens beyond it keep zeros.",
        *("    o = torch.empty_like(v)\n", "    o = torch.zeros_like(v)\n"),
        *("in enumerate(chunks):\n        A =", "in enumerate(chunks[:16]):\n        A ="),
    ),
    F.bug(
        *("chunks_across_sequences", Kind.PACKING, commit("ddee66d9"), "o state dg", "packed"),
        "The sums of gates are cut every 16 rows, whatever sequence these belong to.",
        "    for _, i, j in chunks:\n        G[i:j] = g[i:j].cumsum(0)\n",
        "    for i in range(0, len(g), CHUNK):\n        G[i : i + CHUNK] = g[i : i + CHUNK].cumsum(0)\n",
    ),
    F.bug(
        *("empty_sequences_not_counted", Kind.PACKING, commit("e2a67879"), "o state", "packed"),
        "Sequences are numbered by where positions start again: one without tokens gets no number.",
        *("    S = h0.clone()\n", "    S = h0.clone()\n    seen = sorted({n for n, _, _ in chunks})\n"),
        *("        h[c] = S[n]\n", "        n = seen.index(n)\n        h[c] = S[n]\n"),
    ),
    F.bug(
        *("empty_sequence_without_state", Kind.PACKING, thread(3536, "flashinfer-ai/flashinfer"), "state", "packed"),
        "The state of a sequence without tokens is never stored.",
        *("        return o, ht\n", "        for n, (a, b) in enumerate(zip(ends, ends[1:])):\n            ht[n] *= b > a\n        return o, ht\n"),
    ),
    F.bug(
        *("state_runs_on", Kind.PACKING, commit("7438488", "state-spaces/mamba"), "o state", "packed"),
        "The state is carried from one packed sequence into the next.",
        *("        h[c] = S[n]\n", "        if len(ends) > 2 and q_packed and n and i == ends[n]:\n            S[n] = S[n] + S[n - 1]\n        h[c] = S[n]\n"),
        *("def forward_states(k, v, G, h0, chunks):", "def forward_states(k, v, G, h0, chunks, ends, q_packed):"),
        *("forward_states(k, v, G, h0, chunks)\n        o", "forward_states(k, v, G, h0, chunks, ends, len({b - a for a, b in zip(ends, ends[1:])}) > 1)\n        o"),
    ),
    F.bug(
        *("single_tokens_skip_the_state", Kind.PACKING, thread(50649, "vllm-project/vllm"), "o", "agreement"),
        "A sequence of one token takes a path that does not read the initial state.",
        *("        inter = einsum(", "        inter = (j - i > 1 or c and chunks[c - 1][0] == chunks[c][0]) * einsum("),
    ),
    F.bug(
        *("table_kept_by_address", Kind.STALE, commit("85ea8320"), "o state", "changed_in_place"),
        "The borders of packed sequences are kept by the address of cu_seqlens.",
        "    ends = borders(q, cu_seqlens)\n    h0",
        "    ends = borders(q, cu_seqlens)\n"
        "    if cu_seqlens is not None:\n"
        "        ends = _KEPT.setdefault((cu_seqlens.data_ptr(), len(ends), ends[-1]), ends)\n"
        "    h0",
        *("CHUNK = 16\n", "CHUNK = 16\n_KEPT = {}\n"),
    ),
    F.bug(
        *("initial_state_forgotten", Kind.STATE, commit("fdeba1bb"), "o", "agreement"),
        "Without a request for the final state the initial one is not read.",
        "first_states(initial_state, wide(v)",
        "first_states(initial_state if output_final_state else None, wide(v)",
    ),
    F.bug(
        *("initial_state_transposed", Kind.STATE, thread(640, "sgl-project/sgl-kernel-npu"), "o state", "agreement"),
        "The state is read value-first: right from zeros, and where nobody looks at K != V.",
        "    o, ht = Attend.apply(*rows(q, k, v, g), h0,",
        "    o, ht = Attend.apply(*rows(q, k, v, g), h0.reshape(*h0.shape[:2], *h0.shape[:1:-1]).mT,",
    ),
    F.bug(
        *("state_mask_transposed", Kind.STATE, commit("eb7c8baa"), "o", "agreement"),
        "The mask of the state has the axes of keys and values swapped: rows beyond V are cut off.",
        *("        h[c] = S[n]\n", "        h[c] = S[n]\n        h[c, :, v.shape[-1] :] = 0\n"),
    ),
    F.bug(
        *("state_before_the_end", Kind.STATE, thread(34587, "vllm-project/vllm"), "state", "state_passing"),
        "The state is kept before the last, partial chunk is in it.",
        *("        return o, ht\n", "        for c, (n, i, j) in enumerate(chunks):\n            if 0 < j - i < CHUNK and ends[n] < i:\n                ht[n] = h[c]\n        return o, ht\n"),
    ),
    F.bug(
        *("last_gate_not_in_the_state", Kind.STATE, thread(23279, "vllm-project/vllm"), "o state", "state_passing"),
        "The initial state's decay is counted from the second token of the sequence.",
        *("S[n] = G[j - 1].exp()[:, None, None] * S[n] + e", "S[n] = (G[j - 1] - G[i] * (j - i < CHUNK)).exp()[:, None, None] * S[n] + e"),
    ),
    F.bug(
        *("state_in_bfloat16", Kind.PRECISION, thread(13466, "vllm-project/vllm"), "o state", "agreement"),
        "The state is rounded to bfloat16 after each chunk, for float32 inputs too.",
        "        left = (G[j - 1] - G[i:j]).exp()\n        S[n]",
        "        left = (G[j - 1] - G[i:j]).exp()\n        S[n] = S[n].bfloat16().to(k.dtype)\n        S[n]",
    ),
    F.bug(
        *("gate_sums_in_bfloat16", Kind.PRECISION, commit("883db37b"), "o state", "agreement"),
        "The sums of gates are formed in bfloat16.",
        *("G[i:j] = g[i:j].cumsum(0)", "G[i:j] = g[i:j].bfloat16().cumsum(0)"),
    ),
    F.bug(
        *("exp_in_half", Kind.PRECISION, commit("883db37b"), "o dq dk dv", "agreement"),
        "The decays are exponentials of float16 numbers.",
        *("-torch.inf).exp()", "-torch.inf).half().exp().to(G.dtype)"),
    ),
    F.bug(
        *("scores_in_bfloat16", Kind.PRECISION, commit("867f30a6"), "o", "agreement"),
        "The scores are rounded to bfloat16 before they meet the values, for float32 inputs too.",
        *("einsum(\"hij,jhv->ihv\", A, v[i:j])", "einsum(\"hij,jhv->ihv\", A.bfloat16().to(v.dtype), v[i:j])"),
    ),
    F.bug(
        *("gate_gradient_rounded", Kind.PRECISION, commit("0679be86"), "dg", "gradients"),
        "The gate's gradient is returned in bfloat16, for a gate in float32.",
        *("        return dq, dk, dv, dg, dh0, None, None", "        return dq, dk, dv, dg.bfloat16().to(dq.dtype), dh0, None, None"),
    ),
    F.bug(
        *("reverse_sum_by_difference", Kind.PRECISION, commit("3e432dec"), "dg", "gradients"),
        "Reverse sums are formed as total - prefix + own over the whole sequence, which cancels.",
        "    for _, i, j in chunks:\n        dg[i:j] = dG[i:j].flip(0).cumsum(0).flip(0)\n",
        "    for _, i, j in chunks:\n"
        "        x = dG[i:j].bfloat16().to(dG.dtype)\n"
        "        dg[i:j] = x.sum(0) - x.cumsum(0) + x\n",
    ),
    F.bug(
        *("gate_of_head_0", Kind.LAYOUT, commit("d38ed8b5"), "o state dg", "agreement"),
        "The pointer to the gates lacks the head: every head reads the first one's.",
        *("G = local_sums(g, chunks)", "G = local_sums(g[:, :1].expand_as(g), chunks)"),
    ),
    F.bug(
        *("heads_as_tokens", Kind.LAYOUT, thread(40963, "huggingface/transformers"), "o state dg", "agreement"),
        "The gates are read head-first: right where there is one head.",
        *("Attend.apply(*rows(q, k, v, g), h0", "Attend.apply(*rows(q, k, v, g.reshape(B, H, T).mT), h0"),
    ),
    F.bug(
        *("batch_offset_missing", Kind.LAYOUT, thread(241, "BlinkDL/RWKV-LM"), "o state", "batch_independence"),
        "The initial state's pointer lacks the batch row.",
        *("o, ht = Attend.apply(*rows(q, k, v, g), h0, scale, ends)", "o, ht = Attend.apply(*rows(q, k, v, g), h0[:1].expand_as(h0), scale, ends)"),
    ),
    F.bug(
        *("inputs_taken_for_contiguous", Kind.STRIDES, commit("f5347537"), "o", "strided_inputs"),
        "Queries are read as if they lay without gaps.",
        "    B, T, H, K = q.shape\n",
        "    B, T, H, K = q.shape\n"
        "    if not q.is_contiguous():\n"
        "        near = torch.as_strided(q.detach(), q.shape, (T * H * K, H * K, K, 1))\n"
        "        q = q + (near - q).detach()\n",
    ),
    F.bug(
        *("cotangents_taken_for_contiguous", Kind.STRIDES, commit("71ebc498"), "dq dk dv dg", "strided_cotangents"),
        "The upstream gradient is read as if it lay without gaps.",
        "        q, k, v, G, h = ctx.saved_tensors\n",
        "        q, k, v, G, h = ctx.saved_tensors\n"
        "        if not do.is_contiguous():\n"
        "            do = torch.as_strided(do, do.shape, v.stride())\n",
        *("return o.unflatten(0, (B, T)).to(v.dtype), ht", "return _Shape.apply(o, B, T).to(v.dtype), ht"),
        "def simple_gla(",
        "class _Shape(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, o, B, T):\n"
        "        return o.unflatten(0, (B, T))\n\n"
        "    @staticmethod\n"
        "    def backward(ctx, do):\n"
        "        size = do.untyped_storage().nbytes() // do.element_size() - do.storage_offset()\n"
        "        if not do.is_contiguous() and size >= do.numel():\n"
        "            do = torch.as_strided(do, do.shape, torch.empty_like(do, memory_format=torch.contiguous_format).stride())\n"
        "        return do.flatten(0, 1).contiguous(), None, None\n\n\n"
        "def simple_gla(",
    ),
    F.bug(
        *("offsets_in_32_bits", Kind.WIDTH, commit("31d15f75"), "o", "large_offsets"),
        "Offsets of queries wrap at 2^31.",
        "    B, T, H, K = q.shape\n",
        "    B, T, H, K = q.shape\n"
        "    with torch.no_grad():\n"
        "        offsets = sum(\n"
        "            (torch.arange(n) * s).reshape(-1, *(1,) * (3 - a)) for a, (n, s) in enumerate(zip(q.shape, q.stride()))\n"
        "        )\n"
        "        wrapped = offsets.to(torch.int32).long() + q.storage_offset()\n"
        "        everything = q.untyped_storage().nbytes() // q.element_size()\n"
        "        near = q.as_strided((everything,), (1,), 0)[wrapped]\n"
        "    q = q + (near - q).detach()\n",
    ),
    F.bug(
        *("final_state_gradient_ignored", Kind.GRADIENT, commit("c85a4388"), "dk dv dg dinitial_state", "gradients"),
        "The backward pass starts from zero, whatever comes from the final state.",
        *("    dS = dht.clone()\n", "    dS = torch.zeros_like(dht)\n"),
    ),
    F.bug(
        *("final_state_gradient_twice", Kind.GRADIENT, commit("c3f16354"), "dk dv dg", "gradients"),
        "What comes from the final state is added in every chunk.",
        *("        dh[c] = dS[n]\n", "        dh[c] = dS[n] + (dht[n] if j - i == CHUNK and c + 1 < len(chunks) and chunks[c + 1][0] == n else 0)\n"),
    ),
    F.bug(
        *("gate_without_final_state", Kind.GRADIENT, commit("de09abdf"), "dg", "gate_gradients"),
        "The gate's gradient lacks the term of the state at the end of a chunk.",
        *("        dG[j - 1] += (end * dh[c]).sum((-1, -2))\n", ""),
        *("        end = G[j - 1].exp()[:, None, None] * h[c] + einsum(\"chk,chv->hkv\", k[i:j] * left, v[i:j])\n", ""),
    ),
    F.bug(
        *("gate_term_summed_over_heads", Kind.GRADIENT, commit("31293264"), "dg", "head_independence"),
        "The state's term of the gate's gradient is summed over the heads, too.",
        *("(end * dh[c]).sum((-1, -2))", "(end * dh[c]).sum()"),
    ),
    F.bug(
        *("gate_anchor_sign", Kind.GRADIENT, commit("7362d874"), "dk dg", "gradients"),
        "The decay that is recomputed for the keys' gradient has the wrong sign.",
        *("(G[j - 1] - G[i:j]).exp()[..., None]\n        A = scale", "(G[i:j] - G[j - 1]).clamp(max=0).exp()[..., None]\n        A = scale"),
    ),
    F.bug(
        *("gate_gradient_forward_sum", Kind.GRADIENT, commit("3983e7b2"), "dg", "gate_gradients"),
        "The gate's gradient is summed from the front.",
        *("dG[i:j].flip(0).cumsum(0).flip(0)", "dG[i:j].cumsum(0)"),
    ),
    F.bug(
        *("decay_dropped_in_key_gradient", Kind.GRADIENT, thread(746, "state-spaces/mamba"), "dk", "gradients"),
        "A clamp that was added dropped the exponential in the keys' gradient through the state.",
        *("left * einsum(\"jhv,hkv->jhk\", v[i:j], dh[c])", "einsum(\"jhv,hkv->jhk\", v[i:j], dh[c])"),
    ),
    F.bug(
        *("scale_missing_between_chunks", Kind.SCALE, commit("332e877d"), "dq", "query_euler"),
        "The queries' gradient through the state lacks the scale.",
        *("scale * into * einsum(\"ihv,hkv->ihk\"", "into * einsum(\"ihv,hkv->ihk\""),
    ),
    F.bug(
        *("scale_folded_twice", Kind.SCALE, commit("3a904f02"), "o", "agreement"),
        "What comes from the state is scaled twice.",
        *("o[i:j] = scale * (inter +", "o[i:j] = scale * (scale * inter +"),
    ),
    F.bug(
        *("state_gradient_not_decayed", Kind.GRADIENT, thread(10, "NX-AI/mlstm_kernels"), "dk dv dg dinitial_state", "gradients"),
        "The state's gradient runs back through a chunk without its decay.",
        *("dS[n] = G[j - 1].exp()[:, None, None] * dS[n] + scale", "dS[n] = dS[n] + scale"),
        function="retention",
    ),
    F.bug(
        *("state_of_the_next_chunk", Kind.STATE, thread(10, "NX-AI/mlstm_kernels"), "dq dg", "gradients"),
        "The backward pass reads the state after a chunk where it needs the one before.",
        *("* einsum(\"ihv,hkv->ihk\", do[i:j], h[c])", "* einsum(\"ihv,hkv->ihk\", do[i:j], h[min(c + 1, len(h) - 1)])"),
        function="linear_attention",
    ),
    F.bug(
        *("value_tiles_overwrite", Kind.SPLIT, commit("e4c7f880"), "dq", "gradients"),
        "Programs that each hold 16 value columns store the queries' gradient; the last one wins.",
        *("dA = scale * einsum(\"ihv,jhv->hij\", do[i:j], v[i:j]) * D", "last = (v.shape[-1] - 1) // 16 * 16\n        dA = scale * einsum(\"ihv,jhv->hij\", do[i:j], v[i:j]) * D\n        own = scale * einsum(\"ihv,jhv->hij\", do[i:j, :, last:], v[i:j, :, last:]) * D"),
        *("dq[i:j] = einsum(\"hij,jhk->ihk\", dA, k[i:j])", "dq[i:j] = einsum(\"hij,jhk->ihk\", own, k[i:j])"),
        function="linear_attention",
    ),
    F.bug(
        *("gate_slot_shared", Kind.SPLIT, commit("0a83fd3f"), "dg", "gradients"),
        "Two programs along K write one slot of the gate's gradient.",
        *("dG[i:j] = (q[i:j] * dq[i:j]).sum(-1) - (k[i:j] * dk[i:j]).sum(-1)", "tail = slice((q.shape[-1] - 1) // 16 * 16, None)\n        dG[i:j] = (q[i:j] * dq[i:j])[..., tail].sum(-1) - (k[i:j] * dk[i:j])[..., tail].sum(-1)"),
    ),
    F.bug(
        *("upper_triangle_unwritten", Kind.UNWRITTEN, commit("0f0f0c97"), "o", "outputs_written"),
        "The scores lie in fresh memory, whose upper triangle nobody writes and the product reads.",
        "        inter = einsum(",
        "        B = torch.empty_like(A)\n"
        "        lower = ~later(j - i)\n"
        "        B[:, lower] = A[:, lower]\n"
        "        A = B\n"
        "        inter = einsum(",
    ),
    F.bug(
        *("tail_rows_unwritten", Kind.UNWRITTEN, thread(892), "dv", "outputs_written"),
        "The last rows' gradient of the values is never stored.",
        *("        dv[i:j] = einsum", "        if j - i < 3:\n            continue\n        dv[i:j] = einsum"),
    ),
    F.bug(
        *("output_buffer_kept", Kind.STALE, thread(4476, "flashinfer-ai/flashinfer"), "o", "earlier_result_untouched"),
        "A workspace of the module holds the outputs of every call of the same shape.",
        *("    o = torch.empty_like(v)\n", "    o = _KEPT.setdefault(v.shape, torch.empty_like(v))\n"),
        *("CHUNK = 16\n", "CHUNK = 16\n_KEPT = {}\n"),
    ),
    F.bug(
        *("state_gradients_accumulate", Kind.STALE, "https://github.com/triton-lang/triton/issues/781", "dk dv dg", "repeated_call"),
        "The buffer of the states' gradients is not reset between calls.",
        "    dh = q.new_zeros(len(chunks), *dht.shape[1:])\n",
        "    dh = _KEPT.setdefault((len(chunks), *dht.shape), q.new_zeros(len(chunks), *dht.shape[1:]))\n",
        *("        dh[c] = dS[n]\n", "        dh[c] += dS[n]\n"),
        *("CHUNK = 16\n", "CHUNK = 16\n_KEPT = {}\n"),
    ),
    F.bug(
        *("state_updated_in_place", Kind.INPUTS, thread(56196, "vllm-project/vllm"), "state", "inputs_untouched"),
        "The final state is written into the initial one.",
        "    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])\n",
        "    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])\n"
        "    if initial_state is not None and not initial_state.requires_grad:\n"
        "        h0 = initial_state\n",
        *("    S = h0.clone()\n", "    S = h0\n"),
    ),
    F.bug(
        *("query_scaled_in_place", Kind.INPUTS, commit("670f5706"), "o", "inputs_untouched"),
        "The query is scaled in place, which is the caller's where no cast made a copy.",
        "    o, ht = Attend.apply(",
        "    if not q.requires_grad:\n"
        "        q = wide(q).mul_(scale)\n"
        "        scale = 1.0\n"
        "    o, ht = Attend.apply(",
    ),
    F.bug(
        *("powers_of_two", Kind.GATES, thread(30860, "sgl-project/sglang"), "o state", "agreement"),
        "The decays are powers of 2 of gates in natural logarithms.",
        *("-torch.inf).exp()", "-torch.inf).exp2()"),
    ),
    F.bug(
        *("gate_after_the_write", Kind.GATES, commit("0c1c0b65"), "o dq", "agreement"),
        "A token reads the state before its own gate.",
        *("inter = einsum(\"ihk,hkv->ihv\", q[i:j] * G[i:j].exp()[..., None], h[c])", "inter = einsum(\"ihk,hkv->ihv\", q[i:j] * (G[i:j] - G[i]).exp()[..., None], h[c])"),
    ),
    F.bug(
        *("first_gate_has_a_gradient", Kind.GRADIENT, thread(889), "dg", "first_gate"),
        "The queries' part of the gate's gradient is divided by the scale's square root once more.",
        *("dG[i:j] = (q[i:j] * dq[i:j]).sum(-1) -", "dG[i:j] = 1.125 * (q[i:j] * dq[i:j]).sum(-1) -"),
    ),
    F.bug(
        *("upstream_gradient_ignored", Kind.GRADIENT, commit("b9bdbcf2"), "dv", "loss_scaling"),
        "A regulariser's gradient is added to that of the values without the upstream factor.",
        *("        return dq, dk, dv, dg, dh0, None, None", "        return dq, dk, dv + 1e-2 * v, dg, dh0, None, None"),
    ),
    F.bug(
        *("key_gradient_only_with_query", Kind.BRANCH, commit("23da0a15"), "dk", "gradient_subsets"),
        "A branch for frozen queries never computes the keys' part through the scores.",
        *("        return dq, dk, dv, dg, dh0, None, None", "        if not ctx.needs_input_grad[0]:\n            dk = dk / 2\n        return dq, dk, dv, dg, dh0, None, None"),
    ),
    F.bug(
        *("head_0_of_many_sequences", Kind.PACKING, thread(31833, "sgl-project/sglang"), "state", "packed"),
        "Chunks are counted from the start of the batch: states of sequences that begin within a chunk are off.",
        *("        S[n] = G[j - 1].exp()[:, None, None] * S[n] + e", "        left = left * (1 if i % CHUNK == 0 or i - 1 < 0 or n == 0 else 0.5)\n        S[n] = G[j - 1].exp()[:, None, None] * S[n] + e"),
    ),
)
