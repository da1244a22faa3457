"""Bugs in the backward pass of linear attention with a scalar gate in chunks."""

from tests.zoo.record import Family, Kind, commit, thread

F = Family("simple_gla", "simple_gla")

BUGS = (
    F.bug(
        *("final_state_gradient_ignored", Kind.GRADIENT, commit("c85a4388"), "dk dv dg dinitial_state", "gradients"),
        "The backward pass starts from zero, whatever comes from the final state.",
        *("    dS = dht.clone()\n", "    dS = torch.zeros_like(dht)\n"),
    ),
    F.bug(
        *("final_state_gradient_twice", Kind.GRADIENT, commit("c3f16354"), "dk dv dg", "gradients"),
        "What comes from the final state is added in every chunk.",
        *(
            "        dh[c] = dS[n]\n",
            "        dh[c] = dS[n] + (dht[n] if j - i == CHUNK and c + 1 < len(chunks) and chunks[c + 1][0] == n else 0)\n",
        ),
    ),
    F.bug(
        *("gate_without_final_state", Kind.GRADIENT, commit("de09abdf"), "dg", "gate_gradients"),
        "The gate's gradient lacks the term of the state at the end of a chunk.",
        *("        dG[j - 1] += (end * dh[c]).sum((-1, -2))\n", ""),
        *('        end = G[j - 1].exp()[:, None, None] * h[c] + einsum("chk,chv->hkv", k[i:j] * left, v[i:j])\n', ""),
    ),
    F.bug(
        *("gate_term_summed_over_heads", Kind.GRADIENT, commit("31293264"), "dg", "head_independence"),
        "The state's term of the gate's gradient is summed over the heads, too.",
        *("(end * dh[c]).sum((-1, -2))", "(end * dh[c]).sum()"),
    ),
    F.bug(
        *("gate_anchor_sign", Kind.GRADIENT, commit("7362d874"), "dk dg", "gradients"),
        "The decay that is recomputed for the keys' gradient has the wrong sign.",
        *(
            "(G[j - 1] - G[i:j]).exp()[..., None]\n        A = scale",
            "(G[i:j] - G[j - 1]).clamp(max=0).exp()[..., None]\n        A = scale",
        ),
    ),
    F.bug(
        *("gate_gradient_forward_sum", Kind.GRADIENT, commit("3983e7b2"), "dg", "gate_gradients"),
        "The gate's gradient is summed from the front.",
        *("dG[i:j].flip(0).cumsum(0).flip(0)", "dG[i:j].cumsum(0)"),
    ),
    F.bug(
        *("decay_dropped_in_key_gradient", Kind.GRADIENT, thread(746, "state-spaces/mamba"), "dk", "gradients"),
        "A clamp that was added dropped the exponential in the keys' gradient through the state.",
        *('left * einsum("jhv,hkv->jhk", v[i:j], dh[c])', 'einsum("jhv,hkv->jhk", v[i:j], dh[c])'),
    ),
    F.bug(
        *("scale_missing_between_chunks", Kind.SCALE, commit("332e877d"), "dq", "query_euler"),
        "The queries' gradient through the state lacks the scale.",
        *('scale * into * einsum("ihv,hkv->ihk"', 'into * einsum("ihv,hkv->ihk"'),
    ),
    F.bug(
        *("scale_folded_twice", Kind.SCALE, commit("3a904f02"), "o", "agreement"),
        "What comes from the state is scaled twice.",
        *("o[i:j] = scale * (inter +", "o[i:j] = scale * (scale * inter +"),
    ),
    F.bug(
        *(
            "state_gradient_not_decayed",
            Kind.GRADIENT,
            thread(10, "NX-AI/mlstm_kernels"),
            "dk dv dinitial_state",
            "gradients",
        ),
        "The state's gradient runs back through a chunk without its decay.",
        *("dS[n] = G[j - 1].exp()[:, None, None] * dS[n] + scale", "dS[n] = dS[n] + scale"),
        function="retention",
    ),
    F.bug(
        *("state_of_the_next_chunk", Kind.STATE, thread(10, "NX-AI/mlstm_kernels"), "dq", "gradients"),
        "The backward pass reads the state after a chunk where it needs the one before.",
        *('* einsum("ihv,hkv->ihk", do[i:j], h[c])', '* einsum("ihv,hkv->ihk", do[i:j], h[min(c + 1, len(h) - 1)])'),
        function="linear_attention",
    ),
    F.bug(
        *("value_tiles_overwrite", Kind.SPLIT, commit("e4c7f880"), "dq", "gradients"),
        "Programs that each hold 16 value columns store the queries' gradient; the last one wins.",
        *(
            'dA = scale * einsum("ihv,jhv->hij", do[i:j], v[i:j]) * D',
            'last = (v.shape[-1] - 1) // 16 * 16\n        dA = scale * einsum("ihv,jhv->hij", do[i:j], v[i:j]) * D\n        own = scale * einsum("ihv,jhv->hij", do[i:j, :, last:], v[i:j, :, last:]) * D',
        ),
        *('dq[i:j] = einsum("hij,jhk->ihk", dA, k[i:j])', 'dq[i:j] = einsum("hij,jhk->ihk", own, k[i:j])'),
        function="linear_attention",
    ),
    F.bug(
        *("gate_slot_shared", Kind.SPLIT, commit("0a83fd3f"), "dg", "gradients"),
        "Two programs along K write one slot of the gate's gradient.",
        *(
            "dG[i:j] = (q[i:j] * dq[i:j]).sum(-1) - (k[i:j] * dk[i:j]).sum(-1)",
            "tail = slice((q.shape[-1] - 1) // 16 * 16, None)\n        dG[i:j] = (q[i:j] * dq[i:j])[..., tail].sum(-1) - (k[i:j] * dk[i:j])[..., tail].sum(-1)",
        ),
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
        *("tail_rows_unwritten", Kind.UNWRITTEN, thread(892), "dv", "gradients"),
        "The last rows' gradient of the values is never stored.",
        *("        dv[i:j] = einsum", "        if j - i < 3:\n            continue\n        dv[i:j] = einsum"),
    ),
    F.bug(
        *("first_gate_has_a_gradient", Kind.GRADIENT, thread(889), "dg", "first_gate"),
        "The queries' part of the gate's gradient is an eighth too large.",
        *("dG[i:j] = (q[i:j] * dq[i:j]).sum(-1) -", "dG[i:j] = 1.125 * (q[i:j] * dq[i:j]).sum(-1) -"),
    ),
    F.bug(
        *("upstream_gradient_ignored", Kind.GRADIENT, commit("b9bdbcf2"), "dv", "loss_scaling"),
        "A regulariser's gradient is added to that of the values without the upstream factor.",
        *(
            "        return dq, dk, dv, dg, dh0, None, None",
            "        return dq, dk, dv + 1e-2 * v, dg, dh0, None, None",
        ),
    ),
    F.bug(
        *("key_gradient_only_with_query", Kind.BRANCH, commit("23da0a15"), "dk", "gradient_subsets"),
        "A branch for frozen queries computes half of the keys' gradient.",
        *(
            "        return dq, dk, dv, dg, dh0, None, None",
            "        if not ctx.needs_input_grad[0]:\n            dk = dk / 2\n        return dq, dk, dv, dg, dh0, None, None",
        ),
    ),
)
