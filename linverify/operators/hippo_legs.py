"""HiPPO-LegS: coefficients of the history in Legendre polynomials, stretched over all time so far."""

from linverify.formulas import cat, stack, zeros_like
from linverify.operator import Array, Form, Input, Inputs, Operator, Sizes

RULES = {"bilinear": 0.5, "backward": 1.0, "forward": 0.0}
"""Share of the new coefficients in the slope, by name of the rule."""
CHUNK = 16


def _resolvent(share: float, times: Array, K: int) -> Array:
    """(I + share A / t)^-1 for A of LegS, [T, K, K].

    A has s_n s_k below its diagonal, s_n^2 = 2n + 1, and n + 1 on it. Forward substitution in closed form: with
    d_n = 1 + a (n + 1) and a = share / t, element (n, k) is -a s_n s_k / (d_n d_k) times the product of (1 - a j) / d_j over
    k < j < n.
    """
    a = share / times
    counts = times.new_tensor([float(n) for n in range(K)])
    root, pivots = (2 * counts + 1).sqrt(), 1 + a[:, None] * (counts + 1)
    rows = []
    between: Array = None  # [T, n]: the products for row n
    for n in range(K):
        own = 1 / pivots[:, n : n + 1]
        parts = [own]
        if between is not None:
            parts = [-a[:, None] * root[n] * own * root[:n] / pivots[:, :n] * between, own]
        if n + 1 < K:
            parts.append(zeros_like(pivots[:, n + 1 :]))
        rows.append(cat(parts, 1))
        one = own * 0 + 1
        between = one if between is None else cat([between * ((1 - a[:, None] * n) * own), one], 1)
    return stack(rows, 1)


def _steps(x: Inputs, sizes: Sizes, share: float) -> tuple[Array, Array]:
    """Transitions [T, K, K] and writes [T, K]."""
    T, K = sizes["T"], sizes["K"]
    f = x["f"]
    times = f.new_tensor([float(t + 1) for t in range(T)])
    counts = [float(n) for n in range(K)]
    root = f.new_tensor([2 * n + 1 for n in counts]).sqrt()
    eye = f.new_tensor([[float(n == k) for k in range(K)] for n in range(K)])
    below = f.new_tensor([[float(n > k) for k in range(K)] for n in range(K)])
    A = below * root[:, None] * root + eye * f.new_tensor([n + 1 for n in counts])
    explicit = eye - (1 - share) * A / times[:, None, None]
    if share == 0.0:
        return explicit, root / times[:, None]
    inverse = _resolvent(share, times, K)
    if share < 1.0:  # (I + aA)^-1 (I - bA) = ((1 + b/a) (I + aA)^-1 - b/a I)
        ratio = (1 - share) / share
        transition = (1 + ratio) * inverse - ratio * eye
    else:
        transition = inverse
    return transition, (inverse * root).sum(-1) / times[:, None]


def _forms(share: float) -> dict[str, Form]:
    def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """Token by token."""
        transitions, writes = _steps(x, sizes, share)
        outs: list[Array] = []
        for t in range(sizes["T"]):
            new = writes[t] * x["f"][:, t, :, None]
            if outs:
                new = new + (transitions[t] * outs[-1][..., None, :]).sum(-1)
            outs.append(new)
        return scale * stack(outs, 1)

    def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> Array:
        """The responses to the tokens of a chunk, and to the coefficients that enter it, as matrices."""
        transitions, writes = _steps(x, sizes, share)
        outs: list[Array] = []
        entering: Array = None
        for start in range(0, sizes["T"], CHUNK):
            f = x["f"][:, start : start + CHUNK].transpose(1, 2)
            C = f.shape[-1]
            kept: Array = None
            response: Array = None
            rows, carried = [], []
            for i in range(C):
                step, write = transitions[start + i], writes[start + i][None]
                kept = step if kept is None else (step[:, :, None] * kept).sum(1)
                moved = [] if response is None else [(step * response[:, None]).sum(-1)]
                response = cat([*moved, write], 0)
                rest = [] if i + 1 == C else [zeros_like(write).expand(C - 1 - i, write.shape[-1])]
                rows.append(cat([response, *rest], 0))
                carried.append(kept)
            found = f[:, None] @ stack(rows, 0)
            if entering is not None:
                found = found + entering[:, None] @ stack(carried, 0).transpose(-1, -2)
            entering = found[:, -1]
            outs.append(found)
        return scale * cat(outs, 1)

    return {"recurrent": recurrent, "chunkwise": chunkwise}


def operator(N: int = 8, rule: str = "bilinear") -> Operator:  # the paper's letter
    """State the operator with a number of coefficients and a rule of discretisation.

    Raises:
        ValueError: there is no such rule, or no coefficient.
    """
    if N < 1:
        raise ValueError(f"expected N of at least 1, got {N}")
    if rule not in RULES:
        raise ValueError(f"expected rule among {', '.join(RULES)}, got {rule!r}")
    return Operator(
        name="hippo_legs",
        aliases=("hippo", "legs"),
        summary=f"{N} Legendre coefficients of all history so far, for each channel, by steps that shrink as 1 / t.",
        equations="A[n, k] = sqrt((2n+1)(2k+1)) for n > k, n + 1 for n = k, 0 above;  B[n] = sqrt(2n+1)\n"
        "bilinear: (I + A / 2t) c_t = (I - A / 2t) c_{t-1} + B f_t / t  (backward: A / t on the left alone; forward: on the "
        "right)\n"
        "o_t = scale * c_t",
        source="Gu et al. 2020, arXiv:2008.07669, theorem 2 and eq. 4, discretised as in appendix B.3",
        inputs=(Input("f", ("B", "T", "V"), "value", aliases=("u", "x", "inputs", "v")),),
        forms=_forms(RULES[rule]),
        o_axes=("B", "T", "V", "K"),
        own_axes={"K": lambda _: N},
        state_axes=(),
        rebuild=operator,
        identities=frozenset({"M1", "M4", "M6", "M19", "G13"}),
        default_scale=1.0,
        hazards=(
            "The first step is t = 1: a step counted from zero divides by it, one counted from two forgets too slowly.",
            "A is not normal: its powers and its eigenvectors lose all digits for some twenty coefficients.",
            "The forward rule multiplies by 1 - (n + 1) / t, which grows early on; the bilinear and backward rules do not.",
            "A packed or resumed sequence starts at t = 1 again: a counter that runs on weighs new tokens too little.",
        ),
    )


OPERATOR = operator()
