"""Bugs of linear attention with a scalar gate in chunks: forward, states, packing and manners."""

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
        *("clamped_factors", Kind.RANGE, thread(1465, "tile-ai/TileOPs"), "o dq dk dv", "agreement"),
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
        *(
            "left = (G[j - 1] - G[i:j]).exp()\n        S[n]",
            "left = (G[min(i + CHUNK, len(G)) - 1] - G[i:j]).exp()\n        S[n]",
        ),
    ),
    F.bug(
        *("tail_skipped", Kind.BOUNDARY, commit("be882f3b"), "o", "outputs_written"),
        "A program returns early when its chunk reaches the end, where it should when it begins beyond it.",
        *(
            '        A = einsum("ihk,jhk->hij", q[i:j], k[i:j]) * decays(G[i:j])\n',
            '        if i + CHUNK > len(q):\n            continue\n        A = einsum("ihk,jhk->hij", q[i:j], k[i:j]) * decays(G[i:j])\n',
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
        *(
            "        return o, ht\n",
            "        for n, (a, b) in enumerate(zip(ends, ends[1:])):\n            ht[n] *= b > a\n        return o, ht\n",
        ),
    ),
    F.bug(
        *("state_runs_on", Kind.PACKING, commit("7438488", "state-spaces/mamba"), "o state", "packed"),
        "The state is carried from one packed sequence into the next.",
        *(
            "        h[c] = S[n]\n",
            "        if len(ends) > 2 and q_packed and n and i == ends[n]:\n            S[n] = S[n] + S[n - 1]\n        h[c] = S[n]\n",
        ),
        *("def forward_states(k, v, G, h0, chunks):", "def forward_states(k, v, G, h0, chunks, ends, q_packed):"),
        *(
            "forward_states(k, v, G, h0, chunks)\n        o",
            "forward_states(k, v, G, h0, chunks, ends, len({b - a for a, b in zip(ends, ends[1:])}) > 1)\n        o",
        ),
    ),
    F.bug(
        *("single_tokens_skip_the_state", Kind.PACKING, thread(50649, "vllm-project/vllm"), "o", "agreement"),
        "A sequence of one token takes a path that does not read the initial state.",
        *("        inter = einsum(", "        inter = (j - i > 1 or c and chunks[c - 1][0] == chunks[c][0]) * einsum("),
    ),
    F.bug(
        *("table_kept_by_address", Kind.STALE, commit("85ea8320"), "o state", "changed_borders"),
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
        *(
            "        return o, ht\n",
            "        for c, (n, i, j) in enumerate(chunks):\n            if 0 < j - i < CHUNK and ends[n] < i:\n                ht[n] = h[c]\n        return o, ht\n",
        ),
    ),
    F.bug(
        *("last_gate_not_in_the_state", Kind.STATE, thread(23279, "vllm-project/vllm"), "o state", "state_passing"),
        "The initial state's decay is counted from the second token of the sequence.",
        *(
            "S[n] = G[j - 1].exp()[:, None, None] * S[n] + e",
            "S[n] = (G[j - 1] - G[i] * (j - i < CHUNK)).exp()[:, None, None] * S[n] + e",
        ),
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
        *('einsum("hij,jhv->ihv", A, v[i:j])', 'einsum("hij,jhv->ihv", A.bfloat16().to(v.dtype), v[i:j])'),
    ),
    F.bug(
        *("gate_gradient_rounded", Kind.PRECISION, commit("0679be86"), "dg", "gradients"),
        "The gate's gradient is returned in bfloat16, for a gate in float32.",
        *(
            "        return dq, dk, dv, dg, dh0, None, None",
            "        return dq, dk, dv, dg.bfloat16().to(dq.dtype), dh0, None, None",
        ),
    ),
    F.bug(
        *("reverse_sum_by_difference", Kind.PRECISION, commit("3e432dec"), "dg", "gradients"),
        "Reverse sums are formed as total - prefix + own from terms in bfloat16: small ones cancel.",
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
        *(
            "o, ht = Attend.apply(*rows(q, k, v, g), h0, scale, ends)",
            "o, ht = Attend.apply(*rows(q, k, v, g), h0[:1].expand_as(h0), scale, ends)",
        ),
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
        *("output_buffer_kept", Kind.STALE, thread(4476, "flashinfer-ai/flashinfer"), "o", "earlier_result_untouched"),
        "A workspace of the module holds the outputs of every call of the same shape.",
        *("    o = torch.empty_like(v)\n", "    o = _KEPT.setdefault(v.shape, torch.empty_like(v))\n"),
        *("CHUNK = 16\n", "CHUNK = 16\n_KEPT = {}\n"),
    ),
    F.bug(
        *("state_gradients_accumulate", Kind.STALE, thread(781, "triton-lang/triton"), "dk dv dg", "repeated_call"),
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
        "    if not q.requires_grad:\n        q = wide(q).mul_(scale)\n        scale = 1.0\n    o, ht = Attend.apply(",
    ),
    F.bug(
        *("powers_of_two", Kind.GATES, thread(30860, "sgl-project/sglang"), "o state", "agreement"),
        "The decays are powers of 2 of gates in natural logarithms.",
        *("-torch.inf).exp()", "-torch.inf).exp2()"),
    ),
    F.bug(
        *("gate_after_the_write", Kind.GATES, commit("0c1c0b65"), "o dq", "agreement"),
        "A token reads the state before its own gate.",
        *(
            'inter = einsum("ihk,hkv->ihv", q[i:j] * G[i:j].exp()[..., None], h[c])',
            'inter = einsum("ihk,hkv->ihv", q[i:j] * (G[i:j] - G[i]).exp()[..., None], h[c])',
        ),
    ),
    F.bug(
        *("head_0_of_many_sequences", Kind.PACKING, thread(31833, "sgl-project/sglang"), "state", "packed"),
        "Chunks are counted from the start of the batch: states of sequences that begin within a chunk are off.",
        *(
            "        S[n] = G[j - 1].exp()[:, None, None] * S[n] + e",
            "        left = left * (1 if i % CHUNK == 0 or i - 1 < 0 or n == 0 else 0.5)\n        S[n] = G[j - 1].exp()[:, None, None] * S[n] + e",
        ),
    ),
)
