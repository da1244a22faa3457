"""Which statements a target's cases reach: one that could as well raise, and nothing would, is mutated to no effect.

Built-in forms and libraries' functions serve many operators, and each uses a part of them. Asking a hundred cases about every
mutant of the rest would cost more than all others together; a statement is asked about once.
"""

import ast

from linverify.selftest.edit import Edit, statement

_UNKNOWN = "linverify_never_defined_this"


def statement_of(tree: ast.Module, edit: Edit) -> ast.stmt | None:
    """Return the innermost statement, definitions apart, that an edit lies in."""
    found: ast.stmt | None = None
    for node in ast.walk(tree):  # outer nodes come before inner ones
        if isinstance(node, ast.stmt) and not isinstance(node, (ast.FunctionDef, ast.ClassDef)) and _holds(node, edit):
            found = node
    return found


def raising(source: str, node: ast.stmt) -> str:
    """Return the source with one statement in whose place an unknown name stands."""
    return statement(node, _UNKNOWN, "", "").applied(source)


def _holds(node: ast.stmt, edit: Edit) -> bool:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    return start <= (edit.line, edit.column) and (edit.end_line, edit.end_column) <= end
