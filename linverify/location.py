"""Where an error sits: heads, time positions (modulo a suspected chunk), features, first bad step, and the four facts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from linverify.score import Score
from linverify.statistics import Axes
from linverify.verdict import Evidence, Location

_NAMES = {"B": "batch", "N": "sequence", "H": "head", "G": "group", "T": "t", "K": "k", "V": "v"}
_CHUNKS = (16, 32, 64, 128, 256)


def spans(indices: Sequence[int], limit: int = 4) -> str:
    """Write indices as ranges: "0-3, 17, 40-63"."""
    runs: list[tuple[int, int]] = []
    for i in indices:
        runs = [*runs[:-1], (runs[-1][0], i)] if runs and runs[-1][1] == i - 1 else [*runs, (i, i)]
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:limit])
    return text + (", ..." if len(runs) > limit else "")


def bad_elements(score: Score) -> Tensor:
    """Elements that stand out, natural to [heads, rows, columns]: beyond the line, or else the strongest of the noise."""
    z = torch.nan_to_num(score.error / score.sigma, nan=torch.inf).abs()
    bad = z > score.allowed
    if bool(bad.any()):
        return bad
    return z > torch.clamp(z.amax() / 2, min=1.0)


def evidence(score: Score, result: str, axes: Axes, got: Tensor, start: int = 0) -> Evidence:
    """The four facts of a rejected score; `got` is the target's own tensor in natural shape, from token `start` on."""
    z = torch.nan_to_num(score.error / score.sigma, nan=torch.inf).abs()
    h, r, c = (int(i) for i in torch.unravel_index(z.argmax(), z.shape))
    index = tuple(i + start * (a == "T") for a, i in zip(axes.letters, _index(axes, got.shape, h, r, c), strict=True))
    expected, found = float(score.ref[h, r, c]), float(axes.view(got)[h, r, c])
    allowed = score.allowed * float(score.sigma[h, r, c])
    finite = bool(torch.isfinite(score.error).all())
    over = ~(score.error.abs() <= score.allowed * score.sigma)
    return Evidence(
        kind="wrong_value" if finite else "not_finite",
        result=result,
        how_many=int(over.sum()) if finite else int((~torch.isfinite(score.error)).sum()),
        of=score.error.numel(),
        how_far=abs(found - expected),
        where=", ".join(f"{_NAMES.get(a, a.lower())}={i}" for a, i in zip(axes.letters, index, strict=True)),
        expected=expected,
        got=found,
        allowed=allowed,
        share=score.share,
        statistic=score.statistic,
    )


def _index(axes: Axes, shape: Sequence[int], h: int, r: int, c: int) -> tuple[int, ...]:
    """Natural index of an element of the (heads, rows, columns) view."""
    positions = torch.arange(int(torch.tensor(shape).prod())).reshape(tuple(shape))
    flat = int(axes.view(positions)[h, r, c])
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), tuple(shape)))


def locate(score: Score, axes: Axes, heads: int, start: int = 0, tokens: int = 0) -> Location:
    """Say where the bad elements are.

    Args:
        score: a rejected score.
        axes: of the result.
        heads: number of heads, to split the head axis of the view into batch and head.
        start: token that the score begins with, where it is of a segment.
        tokens: of the whole sequence, where the score is of a segment.
    """
    bad = bad_elements(score)
    which = [int(i) for i in bad.any((1, 2)).nonzero()[:, 0]]
    timed = "T" in axes.letters
    begin = start if timed else 0
    rows = [begin + int(i) for i in bad.any((0, 2)).nonzero()[:, 0]]
    columns = [int(i) for i in bad.any((0, 1)).nonzero()[:, 0]]
    chunk = _chunk(rows, bad.shape[1]) if timed else None
    where = ""
    if timed and rows:
        where = f"t {spans(rows)} of {tokens or bad.shape[1]}"
        if chunk is not None:
            where += f" (t mod {chunk}: {spans(sorted({t % chunk for t in rows}))})"
    lanes = ""
    if len(which) < bad.shape[0]:
        both = axes.letters[0] in "BN" and "H" in axes.letters and axes.letters[0] != "H"
        lanes = (
            ", ".join(f"({_NAMES[axes.letters[0]]} {i // heads}, head {i % heads})" for i in which[:4])
            if both
            else f"head {spans(which)}"
        )
        lanes += f" of {bad.shape[0]}"
    features = f"{spans(columns)} of {bad.shape[2]}" if len(columns) < bad.shape[2] else ""
    return Location(
        first_bad_t=rows[0] if timed and rows else None,
        heads=lanes,
        times=where,
        features=features,
        suspected_chunk=chunk,
    )


def _chunk(rows: Sequence[int], length: int) -> int | None:
    """The largest usual chunk size whose boundary the first bad step is, or whose last, partial chunk holds all of them."""
    if not rows or len(rows) == length:
        return None
    for chunk in reversed(_CHUNKS):
        if rows[0] and rows[0] % chunk == 0:
            return chunk
    for chunk in reversed(_CHUNKS):
        if (
            length > chunk
            and {t % chunk for t in rows} != set(range(min(chunk, length)))
            and len({t // chunk for t in rows}) > 1
        ):
            return chunk
    return None
