"""An edit: one piece of a source text replaced, every other line left where it was.

WHY text and not a tree: an unparsed tree loses comments and moves lines, and a report on a mutant should point at the line that
was changed, in a file that otherwise reads as its author wrote it.
"""

import ast
import difflib
import hashlib
from dataclasses import dataclass

_ATOMS = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List)


@dataclass(frozen=True, slots=True)
class Edit:
    """One mutation of one source.

    Attributes:
        family: what kind of mistake it is: mask, index, sign ...
        what: the change in a few words.
        line, column, end_line, end_column: the piece replaced; lines from 1, columns in bytes from 0, as of `ast`.
        text: what stands there instead.
    """

    family: str
    what: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str

    def applied(self, source: str) -> str:
        """Return the mutated source: as many lines as before."""
        lines = source.encode().splitlines(keepends=True)
        first, last = self.line - 1, self.end_line - 1
        head, tail = lines[first][: self.column], lines[last][self.end_column :]
        lines[first : last + 1] = [head + self.text.encode() + tail]
        return b"".join(lines).decode()

    def name(self, source: str) -> str:
        """Return what tells it from every other mutant of this source: the line, and a digest of the result."""
        return f"{self.line}-{hashlib.sha256(self.applied(source).encode()).hexdigest()[:10]}"


def replacement(node: ast.expr, new: ast.expr | str, family: str, what: str) -> Edit:
    """Return the edit that puts another expression in the place of one."""
    text = new if isinstance(new, str) else ast.unparse(new)
    rows = _rows(node)
    bare = isinstance(new, _ATOMS) or (isinstance(new, ast.Constant) and not text.startswith("-"))
    if rows or not bare:
        text = f"({text}{chr(10) * rows})"  # within parentheses a line may end anywhere
    return _edit(node, text, family, what)


def statement(node: ast.stmt, new: str, family: str, what: str) -> Edit:
    """Return the edit that puts another statement, of one line, in the place of one."""
    return _edit(node, new + "\n" * _rows(node), family, what)


def lines_changed(before: str, after: str) -> str:
    """Return the difference as a reader sees it: lines taken away and lines added, with their marks."""
    found = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "\n".join(x for x in found if not x.startswith(("---", "+++", "@@")))


def _rows(node: ast.expr | ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno


def _edit(node: ast.expr | ast.stmt, text: str, family: str, what: str) -> Edit:
    end_line, end_column = node.end_lineno, node.end_col_offset
    assert end_line is not None  # every node that a parser made has an end
    assert end_column is not None
    return Edit(family, what, node.lineno, node.col_offset, end_line, end_column, text)
