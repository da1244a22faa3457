"""Relations that hold in exact arithmetic, by the ids that operators declare.

M: the outputs of two runs are related. G: the gradients of one run are related to its inputs and outputs. X: inputs on which
nothing rounds. An operator
lists an id only where the relation, as stated here, holds for it exactly; ``tests/test_identities.py`` checks each claim in
float64. Notation: c scale, S state, do and dS_T upstream gradients, X.Y the sum of products, rowsum over the value axis.
"""

IDENTITIES: dict[str, str] = {
    "M1": "o and S_T are linear in (initial state, v) jointly; where states hold more than sums of values, o in v without one.",
    "M2": "o is homogeneous of degree 1 in q; S_T does not depend on q.",
    "M3": "with no initial state, o and S_T are homogeneous of degree 1 in k.",
    "M4": "o up to token t does not depend on inputs after t.",
    "M5": "running tokens 1..t and then t+1..T from the state in between gives the same o and S_T as one run.",
    "M6": "the size of a chunk does not matter.",
    "M7": "permuting batch rows, or heads together with every per-head input, permutes o and S_T alike.",
    "M8": "permuting the tokens of every input that has them permutes o alike.",
    "M9": "S_T does not depend on the order of the tokens.",
    "M10": "inserting a token that writes nothing and does not decay leaves every other o and S_T unchanged.",
    "M11": "a token of gate g1 + g2 equals an empty token of gate g1 followed by that token with gate g2.",
    "M12": "a gate of minus infinity erases history: for o from that token on (inclusive read), or from the next (exclusive).",
    "M13": "a change of key coordinates q -> M^-T q, k -> M k, S_0 -> M S_0 leaves o unchanged: M invertible without a "
    "channel gate, diagonal with one, orthogonal for a delta rule, signed permutation for a delta rule with a channel gate.",
    "M14": "k -> c k, v -> c v, beta -> beta / c^2 per token leaves o and S_T unchanged.",
    "M15": "v -> v R and S_0 -> S_0 R gives o R and S_T R.",
    "M16": "where all values are equal, o is that value, up to what an eps in the normaliser takes.",
    "M18": "attention over all tokens is the forward run plus the reversed run minus each token's own term.",
    "M19": "a packed sequence equals separate runs of its parts.",
    "M21": "heads that share keys and queries equal a run in which these are repeated; gradients sum over the repeats.",
    "G1": "dq_t = c S_t do_t, dv_t = dS_t^T k_t, dk_t = dS_t v_t, dS_t being the adjoint state.",
    "G2": "dg_t = exp(g_t) * rowsum(S_(t-1) * dS_t); a scalar gate sums over the keys too.",
    "G3": "dg_t = sum over s >= t of (q*dq - k*dk)_s + rowsum(S_T * dS_T), a scalar gate summed over the keys; "
    "exclusive read: q*dq from s > t, both without their bonus part; terms a, b: also - b*db from s >= t and + a*da "
    "from s > t; scalar-gated delta rule: v.dv in the place of k.dk.",
    "G4": "G3 holds on any stretch of tokens, with the state and the adjoint state at its end.",
    "G5": "sum over t of (q*dq - k*dk)_t = rowsum(S_0 * dS_0) - rowsum(S_T * dS_T) for each key channel.",
    "G6": "with no initial state the gradient of the first gate is exactly zero.",
    "G7": "q_t.dq_t = o_t.do_t for each token; v.dv + S_0.dS_0 = o.do + S_T.dS_T for each head; where M3 holds, also "
    "k_t.dk_t = v_t.dv_t (summed over the heads that share k).",
    "G10": "with no initial state and no dS_T, dv is the forward map of the reversed sequence with q and k exchanged, "
    "v replaced by do, and gates shifted by one.",
    "G11": "k_t.dk_t + v_t.dv_t = 2 beta_t dbeta_t for each token.",
    "G12": "one vector added to all keys changes nothing: dk summed over the tokens is zero.",
    "G13": "gradients are linear in (do, dS_T).",
    "X1": "operands of -1, 0 and 1, gates of 0 or -256 and a scale of one give whole numbers: nothing rounds.",
}

COMMON = frozenset({"M1", "M2", "M4", "M5", "M6", "M7", "M10", "M13", "M15", "M19", "G7", "G13", "X1"})
"""What every unnormalised linear-state operator obeys, if its decay is an input or absent."""

WRITES_ONLY_KEYS = frozenset({"M3", "G1"})
"""What holds where k occurs in the write k v^T and nowhere else, and the read is inclusive."""

DELTA = frozenset({"M14", "G11"})
"""What holds where k is both written and read, with strength beta."""

NORMALISED = frozenset({"M1", "M4", "M6", "M7", "M16", "M19", "G13"})
"""What a sum of weighted values divided by the sum of the weights obeys, if the weights are a product of mapped q and k."""

SOFTMAX = frozenset({"M1", "M7", "M15", "M16", "M19", "G12", "G13"})
"""What weights that are a softmax over the keys obey, whatever their mask."""

ALL_TOKENS = frozenset({"M1", "M7", "M8", "M15", "M19", "G13"})
"""What a sum over all tokens of a sequence obeys, if it is linear in the values."""
