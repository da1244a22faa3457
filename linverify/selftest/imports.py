"""A module's source as a file of its own: what it imports relative to its package is named in full."""

import ast

from linverify.selftest.edit import statement


def standing_alone(source: str, module: str) -> str:
    """Return the source with `from .x import y` written as `from package.x import y`; lines stay where they are.

    Args:
        source: of the module.
        module: its dotted name.

    Raises:
        SyntaxError: the source is no Python.
    """
    relative = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.level]
    for node in sorted(
        relative, key=lambda n: (n.lineno, n.col_offset), reverse=True
    ):  # from the end: places stay right
        package = module.rsplit(".", node.level)[0]
        full = ast.ImportFrom(".".join(filter(None, (package, node.module))), node.names, 0)
        source = statement(node, ast.unparse(full), "", "").applied(source)
    return source
