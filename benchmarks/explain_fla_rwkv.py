"""What an H100 computed with fla-core 0.6.0's RWKV kernels, predicted on a CPU from two lines of their source.

    python benchmarks/explain_fla_rwkv.py

`chunk_rwkv6_fwd_cumsum_kernel` (fla/ops/rwkv6/chunk.py, used by chunk_rwkv6 and chunk_rwkv7) sums the log gates by a
matrix product, `tl.dot(m_i, b_s)`, whose default precision on Hopper is TF32: every float32 gate loses 13 bits before it is
summed. `chunk_dplr_fwd_A_kernel_intra_sub_intra` (fla/ops/generalized_delta_rule/dplr/chunk_A_fwd.py, used by chunk_rwkv7)
multiplies `b_q * b_k_j` in the inputs' 16 bits before it sums over K in float32.

Each row: the exact value, the value with that one line imitated, and what the H100 gave (torch 2.11, Triton 3.6).
"""

import torch

from linverify import reference, registry
from linverify.case import parse_case
from linverify.draw import problem
from linverify.dtype import TF32, round_to

GATES = (
    (
        "rwkv6/B1.T2.H2.K128.V64/bf16/gate=mild/state=large/final_state=1/lengths=2/scale=one",
        "state",
        (0, 0, 127, 6),
        33.89768600463867,
    ),
    ("rwkv6/B1.T15.H2.K128.V64/bf16/gate=mild/cotangent=o/scale=one", "dw", (0, 1, 1, 32), -15.80898666381836),
    (
        "rwkv7/B1.T1.H2.K64.V32/fp32/gate=mild/state=large/final_state=1/scale=one",
        "state",
        (0, 1, 23, 29),
        45.87478256225586,
    ),
)
PRODUCTS = ("rwkv7/B1.T2.H2.K128.V64/bf16/scale=one", (1, 33), 1.0078125)


def main() -> None:
    """Print the table."""
    print(f"{'case':86} {'what':6} {'exact':>14} {'imitated':>14} {'H100':>14}")
    for case_id, result, index, seen in GATES:
        case = parse_case(case_id)
        operator = registry.operator(case.operator)
        asked = problem(case, operator)
        cut = asked.with_tensors(w=round_to(asked.tensors["w"], TF32))
        exact, imitated = (float(reference.stepwise(p, operator)[result][index]) for p in (asked, cut))
        print(f"{case_id:86} {result:6} {exact:14.6f} {imitated:14.6f} {seen:14.6f}")
    case_id, (head, feature), seen = PRODUCTS
    case = parse_case(case_id)
    tensors = problem(case, registry.operator(case.operator)).tensors
    q, k, v = (tensors[n][0, 0, head] for n in ("q", "k", "v"))  # the first token, whose output is (q . k) v
    exact = float((q.double() * k.double()).sum() * v[feature].double())
    score = (q * k).float().sum().bfloat16()
    imitated = float(score * v[feature])
    print(f"{case_id:86} {'o':6} {exact:14.6f} {imitated:14.6f} {seen:14.6f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
