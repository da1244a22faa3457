"""Where a source may be mutated: the expressions and statements that compute something.

Left out is what no kernel computes with: imports, decorators, annotations, defaults, docstrings, messages, what is raised or
asserted, and functions that the target does not reach.
"""

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

_SKIPPED = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr, ast.Global, ast.Nonlocal)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True, slots=True)
class Site:
    """One place.

    Attributes:
        node: what stands there.
        parents: what it stands in, from the outside in.
        names: local names of the functions around it, arguments included.
    """

    node: ast.AST
    parents: tuple[ast.AST, ...] = ()
    names: frozenset[str] = field(default_factory=frozenset)

    @property
    def parent(self) -> ast.AST:
        """The node just around it."""
        return self.parents[-1]

    @property
    def function(self) -> str:
        """Name of the innermost named function around it, "" at the top."""
        return next((p.name for p in reversed(self.parents) if isinstance(p, ast.FunctionDef)), "")


def sites(tree: ast.Module, functions: Collection[str] = ()) -> Iterator[Site]:
    """Yield the places in reading order; of a module that defines all `functions`, those that they reach."""
    reached = _reached(tree, functions)
    for node in tree.body:
        if reached is None or _defines(node) & reached:
            yield from _within(Site(node, (tree,)))


def _within(site: Site) -> Iterator[Site]:
    node = site.node
    if isinstance(node, _SKIPPED) or _is_text(node):
        return
    yield site
    names = site.names | _locals(node) if isinstance(node, _FUNCTIONS) else site.names
    parents = (*site.parents, node)
    for child in _children(node):
        yield from _within(Site(child, parents, names))


def _children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield from node.body
    elif isinstance(node, ast.Lambda):
        yield node.body
    elif isinstance(node, ast.AnnAssign):
        yield from [node.target, *([node.value] if node.value else [])]
    else:
        yield from ast.iter_child_nodes(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _locals(node: ast.AST) -> frozenset[str]:
    found = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return frozenset(found)


def _reached(tree: ast.Module, functions: Collection[str]) -> set[str] | None:
    """Names at the top of the module that the functions use, themselves included; None where they are not written there."""
    uses = {name: _used(node) for node in tree.body for name in _defines(node)}
    pending = {f.partition(".")[0] for f in functions}
    if not pending or not pending <= uses.keys():
        return None
    found: set[str] = set()
    while pending:
        name = pending.pop()
        found.add(name)
        pending |= (uses[name] & uses.keys()) - found
    return found


def _defines(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}


def _used(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
