"""Mistakes in arithmetic: signs, terms, factors, comparisons, branches and constants.

Each mutator maps a place to edits; it yields nothing where it has nothing to say.
"""

import ast
from collections.abc import Iterator

from linverify.selftest.edit import Edit, replacement
from linverify.selftest.sites import Site

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], str, str]] = {
    ast.Lt: (ast.LtE, "comparison", "< to <="),
    ast.LtE: (ast.Lt, "comparison", "<= to <"),
    ast.Gt: (ast.GtE, "comparison", "> to >="),
    ast.GtE: (ast.Gt, "comparison", ">= to >"),
    ast.Eq: (ast.NotEq, "branch", "== to !="),
    ast.NotEq: (ast.Eq, "branch", "!= to =="),
    ast.Is: (ast.IsNot, "branch", "is to is not"),
    ast.IsNot: (ast.Is, "branch", "is not to is"),
}
# Whether the new operator goes between the operands, and which operands may stand alone.
_BINARY: dict[type[ast.operator], tuple[tuple[type[ast.operator], str, str] | None, str, str, bool, bool]] = {
    ast.Add: ((ast.Sub, "sign", "+ to -"), "term", "a term dropped", True, True),
    ast.Sub: ((ast.Add, "sign", "- to +"), "term", "a term dropped", True, False),
    ast.Mult: ((ast.Div, "scale", "* to /"), "scale", "a factor dropped", True, True),
    ast.Div: ((ast.Mult, "scale", "/ to *"), "scale", "a divisor dropped", True, False),
    ast.FloorDiv: (None, "index", "a division dropped", True, False),
    ast.Mod: (None, "index", "a remainder dropped", True, False),
    ast.BitAnd: ((ast.BitOr, "mask", "& to |"), "mask", "half of a mask dropped", True, True),
    ast.BitOr: ((ast.BitAnd, "mask", "| to &"), "mask", "half of a mask dropped", True, True),
}


def comparison(site: Site) -> Iterator[Edit]:
    """An end counted in or out; a condition turned round."""
    node = site.node
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        other, family, what = _COMPARISONS[type(node.ops[0])]
        yield replacement(node, ast.Compare(node.left, [other()], node.comparators), family, what)


def binary(site: Site) -> Iterator[Edit]:
    """A sign, a term, a factor, half of a mask."""
    node = site.node
    if not isinstance(node, ast.BinOp) or type(node.op) not in _BINARY or _concatenates(node):
        return
    exchange, family, what, left, right = _BINARY[type(node.op)]
    if exchange is not None:
        operator, other_family, other_what = exchange
        yield replacement(node, ast.BinOp(node.left, operator(), node.right), other_family, other_what)
    if left:
        yield replacement(node, node.left, family, what)
    if right:
        yield replacement(node, node.right, family, what)


def power(site: Site) -> Iterator[Edit]:
    """K**-0.5 as K**0.5."""
    node = site.node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        exponent = node.right
        negated = exponent.operand if isinstance(exponent, ast.UnaryOp) else ast.UnaryOp(ast.USub(), exponent)
        yield replacement(node, ast.BinOp(node.left, ast.Pow(), negated), "scale", "an exponent's sign")
        yield replacement(node, node.left, "scale", "an exponent dropped")


def unary(site: Site) -> Iterator[Edit]:
    """A minus or a not that is missing."""
    node = site.node
    if not isinstance(node, ast.UnaryOp) or isinstance(node.operand, ast.Constant):
        return
    if isinstance(node.op, ast.USub):
        yield replacement(node, node.operand, "sign", "a minus dropped")
    elif isinstance(node.op, (ast.Invert, ast.Not)):
        family = "mask" if isinstance(node.op, ast.Invert) else "branch"
        yield replacement(node, node.operand, family, "a not dropped")


def branch(site: Site) -> Iterator[Edit]:
    """One side of a choice taken whatever the condition says."""
    node = site.node
    if isinstance(node, ast.IfExp):
        yield replacement(node, node.body, "branch", "always the first choice")
        yield replacement(node, node.orelse, "branch", "always the second choice")
    elif isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, ast.Constant):
        if isinstance(node, ast.If):
            yield replacement(node.test, ast.Constant(value=True), "branch", "a condition always true")
        yield replacement(node.test, ast.Constant(value=False), "branch", "a condition never true")
    elif isinstance(node, ast.BoolOp):
        for position in range(len(node.values)):
            rest = [v for i, v in enumerate(node.values) if i != position]
            new = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            yield replacement(node, new, "branch", "a condition dropped")


def constant(site: Site) -> Iterator[Edit]:
    """A whole number off by one, a factor doubled, a flag turned round."""
    value, node = _number(site)
    if value is None or node is None:
        return
    if isinstance(value, bool):
        keyword = site.parent.arg if isinstance(site.parent, ast.keyword) else ""
        family = "direction" if keyword == "reverse" else "branch"
        yield replacement(node, ast.Constant(value=not value), family, f"{keyword or 'a flag'} turned round")
    elif isinstance(value, int):
        family = _family_of_integer(site)
        for step in (1, -1):
            yield replacement(node, _literal(value + step), family, f"{value} to {value + step}")
    elif value == 0:
        yield replacement(node, _literal(1.0), "scale", "0.0 to 1.0")
    else:
        yield replacement(node, _literal(2 * value), "scale", f"{value:g} to {2 * value:g}")


def _number(site: Site) -> tuple[bool | int | float | None, ast.expr | None]:
    """A literal number with its sign, at the outermost node that spells it."""
    node = site.node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        inner = node.operand.value
        return (-inner, node) if isinstance(inner, (int, float)) and not isinstance(inner, bool) else (None, None)
    signed = isinstance(site.parent, ast.UnaryOp) and isinstance(site.parent.op, ast.USub)
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)) and not signed:
        return node.value, node
    return None, None


def _family_of_integer(site: Site) -> str:
    parent = site.parent
    if isinstance(parent, ast.keyword):
        return "axis" if parent.arg in ("dim", "axis", "dims") else "index"
    return "axis" if isinstance(parent, ast.Call) and _takes_axes(parent) else "index"


def _takes_axes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in _WITH_AXES


_WITH_AXES = frozenset(
    (
        "sum",
        "mean",
        "prod",
        "cumsum",
        "cumprod",
        "amax",
        "amin",
        "max",
        "min",
        "argmax",
        "flip",
        "softmax",
        "logsumexp",
        "transpose",
        "permute",
        "movedim",
        "unsqueeze",
        "squeeze",
        "flatten",
        "unflatten",
        "narrow",
        "select",
        "index_select",
        "index_add",
        "cat",
        "stack",
        "split",
        "chunk",
        "repeat_interleave",
        "diag_embed",
        "program_id",
        "expand_dims",
        "norm",
        "associative_scan",
    )
)


def _literal(value: float) -> ast.expr:
    return ast.UnaryOp(ast.USub(), ast.Constant(value=-value)) if value < 0 else ast.Constant(value=value)


def _concatenates(node: ast.BinOp) -> bool:
    """Whether + joins texts, tuples or lists."""
    return any(
        isinstance(x, (ast.Tuple, ast.List, ast.JoinedStr))
        or (isinstance(x, ast.Constant) and isinstance(x.value, str))
        for x in (node.left, node.right)
    )


MUTATORS = (comparison, binary, power, unary, branch, constant)
