"""What the heat map of the page and the strip of the console have in common."""

import math
import re

from linverify.insight import ErrorMap

_HEADS = re.compile(r"[./]H(\d+)\b")
_LENGTH = re.compile(r"[./]T(\d+)\b")


def row_names(found: ErrorMap) -> list[str]:
    """Return a name for every row of the grid: batch row and head where the case tells how many heads there are."""
    match = _HEADS.search(found.case_id)
    heads = int(match[1]) if match else 0
    rows = len(found.grid)
    if heads and rows % heads == 0:
        return [f"b{i // heads} h{i % heads}" for i in range(rows)]
    return [str(i) for i in range(rows)]


def axis(found: ErrorMap) -> str:
    """Return what the positions are."""
    if found.chunk:
        return f"t mod {found.chunk}"
    columns = max(map(len, found.grid), default=0)
    match = _LENGTH.search(found.case_id)
    return "t" if match and int(match[1]) == columns else f"t in {columns} equal pieces"


def position(found: ErrorMap, column: int) -> str:
    """Return one position in words."""
    name = axis(found)
    return f"{name} = {column}" if " in " not in name else f"piece {column} of t"


def worst_cell(found: ErrorMap) -> tuple[int, int, float]:
    """Return row, position and share of the largest cell; what is no number counts as largest."""
    cells = [(r, c, v) for r, row in enumerate(found.grid) for c, v in enumerate(row)]
    return max(cells, key=lambda cell: math.inf if math.isnan(cell[2]) else cell[2], default=(0, 0, 0.0))
