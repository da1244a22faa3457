"""Faults planted in flash-linear-attention's chunk_gla: one text of its source replaced, in a copy imported in its place.

Each is a mistake of a kind that has been made: an argument that is ignored, a value kept in too few bits, a boundary, an index.
The texts are those of fla-core 0.6.0.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

CHUNK, STATE = "ops/gla/chunk.py", "ops/common/chunk_h.py"


@dataclass(frozen=True, slots=True)
class Fault:
    """One replacement.

    Attributes:
        name: of the fault.
        what: is wrong, in words.
        file: of the package fla.
        right: text that is replaced where it stands first.
        wrong: what takes its place.
    """

    name: str
    what: str
    file: str
    right: str
    wrong: str


FAULTS = (
    Fault(
        "scale ignored",
        "a scale that is given is not used",
        CHUNK,
        "    if scale is None:\n        scale = q.shape[-1] ** -0.5\n    if initial_state",
        "    scale = q.shape[-1] ** -0.5\n    if initial_state",
    ),
    Fault(
        "scores in bf16",
        "scores between sub-chunks are rounded to bf16, whatever the inputs' dtype",
        CHUNK,
        "tl.store(p_A, b_A.to(A.dtype.element_ty), mask=m_A)",
        "tl.store(p_A, b_A.to(tl.bfloat16).to(A.dtype.element_ty), mask=m_A)",
    ),
    Fault(
        "first state in bf16",
        "the initial state is rounded to bf16",
        STATE,
        "            b_h = tl.load(p_h0, mask=(o_k[:, None] < K) & (o_v[None, :] < V), other=0.0).to(tl.float32)",
        "            b_h = tl.load(p_h0, mask=(o_k[:, None] < K) & (o_v[None, :] < V), other=0.0)"
        ".to(tl.bfloat16).to(tl.float32)",
    ),
    Fault(
        "log2(e) in four digits",
        "gates are converted to base 2 by 1.443",
        CHUNK,
        "            scale=RCP_LN2,\n            cu_seqlens=cu_seqlens,\n        )\n\n    h, ht = chunk_fwd_h(",
        "            scale=1.443,\n            cu_seqlens=cu_seqlens,\n        )\n\n    h, ht = chunk_fwd_h(",
    ),
    Fault(
        "state cotangent in bf16",
        "the gradient of the final state is rounded to bf16",
        STATE,
        "            b_dh += tl.load(p_dht, mask=(o_k[:, None] < K) & (o_v[None, :] < V), other=0.0).to(tl.float32)",
        "            b_dh += tl.load(p_dht, mask=(o_k[:, None] < K) & (o_v[None, :] < V), other=0.0)"
        ".to(tl.bfloat16).to(tl.float32)",
    ),
    Fault(
        "last token of a chunk",
        "the last chunk takes its decay from beyond the sequence, unless it is full",
        STATE,
        "last_idx = min((i_t_int64 + 1) * BT, T) - 1",
        "last_idx = (i_t_int64 + 1) * BT - 1",
    ),
    Fault(
        "one token's dq",
        "dq of the first token is 0, in the first head of the first sequence",
        CHUNK,
        "    b_dq += tl.load(p_dq, mask=m_tk, other=0.0)\n    b_dk += tl.load(p_dk",
        "    b_dq += tl.load(p_dq, mask=m_tk, other=0.0)\n    b_dq = tl.where((o_t == 0)[:, None] & (i_bh == 0), 0.0, b_dq)\n"
        "    b_dk += tl.load(p_dk",
    ),
    Fault(
        "wrong sequence's state",
        "every sequence begins with the first one's initial state",
        STATE,
        "            p_h0 = h0 + i_nh * K*V + o_k[:, None] * V + o_v[None, :]",
        "            p_h0 = h0 + i_h * K*V + o_k[:, None] * V + o_v[None, :]",
    ),
    Fault(
        "decay from the chunk's beginning",
        "scores between sub-chunks are scaled from the chunk's first token: they overflow where gates are strong",
        CHUNK,
        "        p_gn = g + (bos + i_t * BT + i_i * BC) * H*K + i_h * K + o_k",
        "        p_gn = g + (bos + i_t * BT) * H*K + i_h * K + o_k",
    ),
    Fault(
        "gate gradient at a boundary",
        "dg counts what the state brings into a chunk without its decay",
        CHUNK,
        "    b_dgk *= exp2(b_gn)\n",
        "",
    ),
    Fault(
        "diagonal of dv",
        "dv leaves out what a token reads of itself",
        CHUNK,
        "    b_A = tl.where(tl.arange(0, BT)[:, None] <= tl.arange(0, BT)[None, :], b_A, 0.)",
        "    b_A = tl.where(tl.arange(0, BT)[:, None] < tl.arange(0, BT)[None, :], b_A, 0.)",
    ),
)


def installed() -> Path:
    """Folder of the installed package.

    Raises:
        ModuleNotFoundError: fla is not installed.
    """
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("fla is not installed: pip install fla-core")
    return Path(next(iter(spec.submodule_search_locations)))


def plant(fault: Fault, folder: Path) -> None:
    """Make folder/fla: links to the installed package, but for the one file, which is changed.

    Raises:
        ValueError: the text is not there: another version of fla.
    """
    right, wrong = installed(), folder / "fla"
    source = (right / fault.file).read_text()
    if fault.right not in source:
        raise ValueError(f"fault {fault.name!r}: its text is not in {right / fault.file}; expected fla-core 0.6.0")
    wrong.mkdir(parents=True, exist_ok=True)
    for part in Path(fault.file).parts:
        for entry in right.iterdir():
            if entry.name not in (part, "__pycache__"):
                (wrong / entry.name).symlink_to(entry)
        right, wrong = right / part, wrong / part
        if right.is_dir():
            wrong.mkdir()
    wrong.write_text(source.replace(fault.right, fault.wrong, 1))
