"""Bugs of RWKV-6 and RWKV-7, token by token with an adjoint written by hand."""

from tests.zoo.record import Family, Kind, commit, thread

SIX, SEVEN = Family("rwkv6", "rwkv6"), Family("rwkv7", "rwkv7")

BUGS = (
    SIX.bug(
        *("bonus_decayed", Kind.MATHS, commit("0c1c0b65"), "o", "agreement"),
        "The query reads the past after this token's decay.",
        *("(S + u[..., None] * write)).sum(1)\n", "(w[t].exp()[..., None] * S + u[..., None] * write)).sum(1)\n"),
    ),
    SIX.bug(
        *("bonus_of_head_0", Kind.LAYOUT, commit("a09a3a5d"), "o du", "agreement"),
        "The bonus is read with the stride of another layout: every head takes the first one's.",
        *("wide(u), h0, scale, ends)", "wide(u)[:1].expand_as(u), h0, scale, ends)"),
    ),
    SIX.bug(
        *("newest_token_in_the_state", Kind.MATHS, thread(1282, "kekzl/imp"), "o", "agreement"),
        "The newest token counts with its bonus and once more.",
        *("(S + u[..., None] * write)", "(S + (1 + u[..., None]) * write)"),
    ),
    SIX.bug(
        *("decay_gradient_is_zero", Kind.GRADIENT, thread(29), "dw", "gradients"),
        "The gradient of the decay forgets what comes from the final state.",
        *(
            "                dw[t] = w[t].exp() * (past[t] * dS).sum(-1)\n",
            "                dw[t] = w[t].exp() * (past[t] * (dS if t < ends[n + 1] - 1 else 0 * dS)).sum(-1)\n",
        ),
    ),
    SIX.bug(
        *("decay_gradient_without_decay", Kind.GRADIENT, commit("a0c938eb"), "dw", "gate_gradients"),
        "The gradient of the log decay lacks the factor exp(w).",
        *("dw[t] = w[t].exp() * (past[t] * dS).sum(-1)", "dw[t] = (past[t] * dS).sum(-1)"),
    ),
    SIX.bug(
        *("bonus_gradient_of_the_last_row", Kind.SPLIT, commit("a0c938eb"), "du", "gradients"),
        "All batch programs read, add and write one address: the last one wins.",
        *(
            "        for n in range(len(ends) - 1):\n            dS = dht[n]\n",
            "        for n in range(len(ends) - 1):\n            du.zero_()\n            dS = dht[n]\n",
        ),
    ),
    SIX.bug(
        *("bonus_gradient_in_bfloat16", Kind.PRECISION, commit("794f183c"), "du", "gradients"),
        "The bonus' gradient is accumulated in bfloat16.",
        *(
            "                du += q[t] * k[t] * bonus\n",
            "                du = (du + q[t] * k[t] * bonus).bfloat16().to(q.dtype)\n",
        ),
    ),
    SIX.bug(
        *(
            "state_gradient_too_late",
            Kind.GRADIENT,
            thread(15, "BlinkDL/RWKV-CUDA"),
            "dk dv dw dinitial_state",
            "gradients",
        ),
        "The state's gradient decays by the gate of the token before.",
        *("dS = w[t].exp()[..., None] * dS + q", "dS = w[max(t - 1, ends[n])].exp()[..., None] * dS + q"),
    ),
    SIX.bug(
        *("value_gradient_without_bonus", Kind.GRADIENT, commit("505809bf"), "dv", "linear_balance"),
        "The values' gradient through the bonus is missing.",
        *("dv[t] = (q[t] * u * k[t]).sum(-1, keepdim=True) * grad + (dS", "dv[t] = (dS"),
    ),
    SIX.bug(
        *("decay_floor", Kind.RANGE, thread(1, "tensorpro/tpu_rwkv"), "o state", "agreement"),
        "The log decay is held above -5, as some implementations do to stay in range.",
        *("Attend.apply(*rows(q, k, v, w), wide(u)", "Attend.apply(*rows(q, k, v, w.clamp(min=-5)), wide(u)"),
    ),
    SIX.bug(
        *("state_of_the_first_row", Kind.LAYOUT, thread(241, "BlinkDL/RWKV-LM"), "o state", "batch_independence"),
        "The offset of the initial state lacks b * H * N * N.",
        *("            S = h0[n]\n", "            S = h0[0]\n"),
    ),
    SEVEN.bug(
        *("removal_after_the_decay", Kind.MATHS, thread(351), "o state", "agreement"),
        "The low-rank term reads the decayed state.",
        *(
            "read = (a[t, :, :, None] * S).sum(1)\n                S =",
            "read = (a[t, :, :, None] * w[t].exp()[..., None] * S).sum(1)\n                S =",
        ),
    ),
    SEVEN.bug(
        *("removal_mask_by_product", Kind.RANGE, commit("6cc3736b"), "o state", "agreement"),
        "The decay is formed as 1 / exp(-w): it overflows before it becomes 0, and 0 * infinity is NaN.",
        *("S = w[t].exp()[..., None] * S + b", "S = (w[t].exp() * (-w[t]).exp() * w[t].exp())[..., None] * S + b"),
    ),
    SEVEN.bug(
        *("removal_and_write_swapped", Kind.LAYOUT, commit("18eab2d4"), "o state", "agreement"),
        "Positional parameters a and b are handed over in the wrong order.",
        *("rows(q, w, k, v, a, b)", "rows(q, w, k, v, b, a)"),
    ),
    SEVEN.bug(
        *("state_ignored_by_the_removal", Kind.STATE, thread(351), "o state", "agreement"),
        "The removal does not read the initial state.",
        *(
            "read = (a[t, :, :, None] * S).sum(1)\n                S =",
            "read = (a[t, :, :, None] * S).sum(1) * (t > ends[n])\n                S =",
        ),
    ),
    SEVEN.bug(
        *("removal_gradient_without_read", Kind.GRADIENT, thread(633, "tile-ai/TileOPs"), "dk dv dw", "gradients"),
        "The state's gradient runs back without its path through the removal.",
        *(" + a[t, :, :, None] * dread[:, None]\n            dh0", "\n            dh0"),
    ),
    SEVEN.bug(
        *("removal_gradient_rounded", Kind.PRECISION, commit("99db89bf"), "da", "gradients"),
        "The gradient of a is formed from a state rounded to bfloat16.",
        *("da[t] = (before * dread[:, None]).sum(-1)", "da[t] = (before.bfloat16() * dread[:, None]).sum(-1)"),
    ),
    SEVEN.bug(
        *("write_gradient_of_the_state_after", Kind.GRADIENT, commit("674f0852"), "db", "gradients"),
        "The backward pass recomputes what the removal read from the state after the token.",
        *("read = (a[t, :, :, None] * before).sum(1)", "read = (a[t, :, :, None] * after).sum(1)"),
    ),
    SEVEN.bug(
        *("context_dropped_by_the_wrapper", Kind.STATE, commit("6daaedfe"), "o", "packed"),
        "The wrapper drops an argument: packed sequences all start from zero.",
        *(
            "    h0 = first_states(initial_state, wide(v)",
            "    h0 = first_states(initial_state if cu_seqlens is None else None, wide(v)",
        ),
    ),
    SEVEN.bug(
        *("final_state_of_the_batch", Kind.PACKING, commit("6b7df989"), "state", "packed"),
        "The number of splits is taken for the number of sequences: states beyond the first two are those of the second.",
        *(
            "            past.append(S)\n            final[n] = S\n",
            "            past.append(S)\n            final[n] = S if n < 2 else final[1]\n",
        ),
    ),
)
