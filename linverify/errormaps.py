"""Where the error of a result sits, and how its elements lie against what is allowed: data for pictures."""

import torch

from linverify.insight import ErrorCloud, ErrorMap
from linverify.location import locate
from linverify.score import Score
from linverify.statistics import Axes

POSITIONS = 64
WORST, SAMPLE = 100, 300


def error_map(score: Score, axes: Axes, heads: int, result: str, dtype: str, case_id: str) -> ErrorMap | None:
    """Largest share of the budget by (batch, head) and position; None for a result without a time axis.

    Positions are modulo the chunk that the location suspects; else t itself, in equal pieces where there are many.
    """
    if "T" not in axes.letters:
        return None
    limit = (score.allowed * score.sigma).clamp(min=torch.finfo(torch.float64).tiny)
    share = torch.nan_to_num(score.error.abs() / limit, nan=torch.inf).amax(-1)
    chunk = locate(score, axes, heads).suspected_chunk or 0 if score.outcome != "pass" else 0
    length = share.shape[1]
    if chunk:
        columns = [share[:, i::chunk].amax(1) for i in range(min(chunk, length))]
    else:
        columns = [piece.amax(1) for piece in share.tensor_split(min(POSITIONS, length), 1)]
    grid = torch.stack(columns, 1).cpu().tolist()
    return ErrorMap(result, dtype, case_id, chunk, tuple(tuple(row) for row in grid))


def error_cloud(score: Score, result: str, dtype: str, case_id: str) -> ErrorCloud:
    """A sample of elements, the ones nearest to the line among them: error against what was allowed."""
    limit = (score.allowed * score.sigma).flatten()
    error = score.error.abs().flatten()
    order = torch.nan_to_num(error / limit, nan=torch.inf).argsort(descending=True)
    rest = order[WORST:]
    step = max(1, len(rest) // SAMPLE)
    chosen = torch.cat([order[:WORST], rest[::step][:SAMPLE]])
    return ErrorCloud(result, dtype, case_id, tuple(limit[chosen].cpu().tolist()), tuple(error[chosen].cpu().tolist()))
