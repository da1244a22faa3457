"""For pre-commit: check those of the files at hand that hold a decorated kernel, and let the others pass.

    python -m linverify.pre_commit --profile quick FILE...

Options go on to ``linverify check``. A file is looked at, not run, to see whether it holds a kernel.
"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

_DECORATOR = "kernel"


def holds_a_kernel(text: str) -> bool:
    """Return whether a function of this source carries ``@linverify.kernel(...)`` or ``@kernel(...)`` imported from there."""
    if "linverify" not in text:
        return False
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return True  # `check` says what is wrong with it
    nodes = list(ast.walk(tree))
    names = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "linverify"
        for alias in node.names
        if alias.name == _DECORATOR
    }
    modules = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "linverify"
    }
    functions = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return any(_marks(d, names, modules) for f in functions for d in f.decorator_list)


def _marks(decorator: ast.expr, names: set[str], modules: set[str]) -> bool:
    found = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(found, ast.Attribute) and isinstance(found.value, ast.Name):
        return found.attr == _DECORATOR and found.value.id in modules
    return isinstance(found, ast.Name) and found.id in names


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the kernels among the files and return the exit code of ``linverify check``; 0 where there is none."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    files = [w for w in words if w.endswith(".py") and Path(w).is_file()]
    kernels = [f for f in files if holds_a_kernel(Path(f).read_text(encoding="utf-8", errors="replace"))]
    if not kernels:
        return 0
    from linverify.cli import main as command

    return command(["check", *(w for w in words if w not in files), *kernels])


if __name__ == "__main__":
    sys.exit(main())
