"""Mistakes in structure: a step left out or done in place, a loop one short or the wrong way, names and gradients exchanged."""

import ast
from collections.abc import Iterator
from itertools import pairwise

from linverify.selftest.edit import Edit, replacement, statement
from linverify.selftest.sites import Site

# Names that stand for things of one kind; a kernel that has both may use one for the other.
_ALIKE = (
    ("B", "H", "T", "N"),
    ("K", "V"),
    ("BK", "BV", "BT"),
    ("b", "h", "l"),
    ("d_k", "d_v"),
    ("q", "k"),
    ("k", "v"),
    ("dq", "dk"),
    ("dk", "dv"),
    ("g", "beta"),
    ("a", "b"),
    ("i", "j"),
    ("o", "v"),
    ("initial_state", "state"),
)


def omitted(site: Site) -> Iterator[Edit]:
    """A statement left out."""
    node = site.node
    if isinstance(node, ast.AugAssign):
        yield statement(node, "pass", "step", "an update left out")
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        barrier = "barrier" in ast.unparse(node.value.func)
        yield statement(node, "pass", "barrier" if barrier else "step", "a call left out")
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Subscript):
            yield statement(node, "pass", "step", "a store left out")
        elif isinstance(target, ast.Name) and any(
            isinstance(n, ast.Name) and n.id == target.id for n in ast.walk(node.value)
        ):
            yield statement(node, "pass", "step", "an update left out")


def accumulated(site: Site) -> Iterator[Edit]:
    """A sum that is overwritten, subtracted from, or kept in an argument's own memory."""
    node = site.node
    if isinstance(node, ast.AugAssign):
        target, value = ast.unparse(node.target), ast.unparse(node.value)
        if isinstance(node.op, (ast.Add, ast.Sub)):
            other = "-=" if isinstance(node.op, ast.Add) else "+="
            yield statement(node, f"{target} {other} {value}", "sign", "an update's sign")
        yield statement(node, f"{target} = {value}", "step", "overwritten instead of updated")
    elif (
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.BinOp)
        and isinstance(node.value.left, ast.Name)
        and node.value.left.id == node.targets[0].id
        and isinstance(node.value.op, (ast.Add, ast.Sub, ast.Mult, ast.Div))
    ):
        sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.value.op)]
        text = f"{node.targets[0].id} {sign}= {ast.unparse(node.value.right)}"
        yield statement(node, text, "in place", "updated in place")


def loops(site: Site) -> Iterator[Edit]:
    """A loop that is one short at either end, or runs the other way."""
    node = site.node
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
        return
    if node.func.id in ("range", "static_range") and 1 <= len(node.args) <= 2:
        start, stop = (ast.Constant(value=0), node.args[0]) if len(node.args) == 1 else node.args
        one = ast.Constant(value=1)
        later, sooner = ast.BinOp(start, ast.Add(), one), ast.BinOp(stop, ast.Sub(), one)
        yield replacement(node, ast.Call(node.func, [later, stop], []), "index", "a loop without its first turn")
        yield replacement(node, ast.Call(node.func, [start, sooner], []), "index", "a loop without its last turn")
        if not isinstance(site.parent, ast.Call) and isinstance(site.parent, (ast.For, ast.comprehension)):
            back = ast.Call(ast.Name("reversed", ast.Load()), [node], [])
            if "tl" not in _libraries(site):
                yield replacement(node, back, "direction", "a loop the other way")
    elif node.func.id == "reversed" and len(node.args) == 1:
        yield replacement(node, node.args[0], "direction", "a loop the other way")


def indices(site: Site) -> Iterator[Edit]:
    """A subscript or the end of a slice off by one."""
    node = site.node
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load) or not _is_index(site):
        return
    for sign, step in ((ast.Add(), "+ 1"), (ast.Sub(), "- 1")):
        new = ast.BinOp(node, sign, ast.Constant(value=1))
        yield replacement(node, new, "index", f"{node.id} to {node.id} {step}")


def names(site: Site) -> Iterator[Edit]:
    """A name in place of one of its kind."""
    node = site.node
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        for group in _ALIKE:
            if node.id in group:
                for other in group:
                    if other != node.id and other in site.names:
                        yield replacement(node, ast.Name(other, ast.Load()), "name", f"{node.id} to {other}")


def arguments(site: Site) -> Iterator[Edit]:
    """Two neighbouring arguments, or entries of a grid, exchanged."""
    node = site.node
    if isinstance(node, ast.Call):
        given = node.args
    elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and isinstance(site.parent, ast.Subscript):
        given = node.elts if site.parent.slice is node else []
    else:
        return
    for i, (x, y) in enumerate(pairwise(given)):
        if isinstance(x, ast.Name) and isinstance(y, ast.Name) and x.id != y.id:
            new = [*given[:i], y, x, *given[i + 2 :]]
            swapped: ast.expr = (
                ast.Call(node.func, new, node.keywords) if isinstance(node, ast.Call) else ast.Tuple(new)
            )
            yield replacement(node, swapped, "name", f"{x.id} and {y.id} exchanged")


def gradients(site: Site) -> Iterator[Edit]:
    """What backward returns in another order, or not at all."""
    node = site.node
    if not isinstance(node, ast.Return) or site.function != "backward" or not isinstance(node.value, ast.Tuple):
        return
    entries = node.value.elts
    for i, entry in enumerate(entries):
        if isinstance(entry, ast.Constant):
            continue
        if not isinstance(entry, ast.Starred):
            zero = ast.BinOp(entry, ast.Mult(), ast.Constant(value=0))
            yield replacement(entry, zero, "gradient", "a gradient of zero")
            yield replacement(entry, ast.Constant(value=None), "gradient", "a gradient of None")
        if i + 1 < len(entries) and not isinstance(entries[i + 1], (ast.Constant, ast.Starred)):
            new = [*entries[:i], entries[i + 1], entry, *entries[i + 2 :]]
            yield statement(node, f"return {ast.unparse(ast.Tuple(new))}", "gradient", "two gradients exchanged")


def _is_index(site: Site) -> bool:
    """Whether a name is a subscript, an entry of one, or the end of a slice."""
    around = [p for p in site.parents[-3:] if not isinstance(p, ast.Tuple)]
    inner = around[-1]
    if isinstance(inner, ast.Slice):
        return True
    return (
        isinstance(inner, ast.Subscript)
        and inner.value is not site.node
        and isinstance(inner.ctx, (ast.Load, ast.Store))
    )


def _libraries(site: Site) -> set[str]:
    function = next((p for p in reversed(site.parents) if isinstance(p, ast.FunctionDef)), None)
    return {n.id for n in ast.walk(function) if isinstance(n, ast.Name)} if function is not None else set()


MUTATORS = (omitted, accumulated, loops, indices, names, arguments, gradients)
