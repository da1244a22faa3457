"""Mistakes in tensor code, torch's and Triton's: masks, axes, layouts, number formats, the direction of a scan."""

import ast
from collections.abc import Iterator

from linverify.selftest.edit import Edit, replacement
from linverify.selftest.sites import Site

# A function in place of another: (family, the other's name).
_RENAMED = {
    "exp": ("exponential", "exp2"),
    "exp2": ("exponential", "exp"),
    "expm1": ("exponential", "exp"),
    "log": ("exponential", "log2"),
    "log2": ("exponential", "log"),
    "log1p": ("exponential", "log"),
    "logsigmoid": ("exponential", "sigmoid"),
    "softplus": ("exponential", "relu"),
    "rsqrt": ("scale", "sqrt"),
    "sum": ("scale", "mean"),
    "amax": ("extremum", "amin"),
    "amin": ("extremum", "amax"),
    "maximum": ("extremum", "minimum"),
    "minimum": ("extremum", "maximum"),
    "tril": ("mask", "triu"),
    "triu": ("mask", "tril"),
    "zeros": ("fresh memory", "empty"),
    "new_zeros": ("fresh memory", "new_empty"),
    "zeros_like": ("fresh memory", "empty_like"),
    "ones": ("scale", "zeros"),
    "unsqueeze": ("axis", "squeeze"),
}
# Methods whose result may be mistaken for what they are called on.
_DROPPED = {
    "contiguous": "layout",
    "clone": "copy",
    "detach": "gradient",
    "tril": "mask",
    "triu": "mask",
    "masked_fill": "mask",
    "masked_fill_": "mask",
    "nan_to_num": "mask",
    "clamp": "mask",
    "transpose": "transposed",
    "permute": "transposed",
    "flip": "direction",
    "cumsum": "scan",
    "cumprod": "scan",
    "exp": "exponential",
    "log": "exponential",
    "sigmoid": "exponential",
    "neg": "sign",
    "abs": "sign",
    "sqrt": "scale",
    "float": "precision",
    "to": "precision",
    "type_as": "precision",
    "unsqueeze": "axis",
}
# The same as functions: of torch or of triton.language.
_DROPPED_FUNCTIONS = {**_DROPPED, "trans": "transposed", "debug_barrier": "barrier", "softmax": "exponential"}
_NARROWER = {"float64": "float32", "double": "float32", "int64": "int32", "long": "int32"}
_NARROWER_BY_LIBRARY = {"torch": {"float32": "bfloat16", "float": "bfloat16"}, "tl": {"float32": "float16"}}
_MASKS = {"mask": "a mask dropped", "other": "what a masked load gives dropped"}


def renamed(site: Site) -> Iterator[Edit]:
    """A function in place of its neighbour."""
    call = site.node
    if not isinstance(call, ast.Call) or _name(call) not in _RENAMED:
        return
    family, other = _RENAMED[_name(call)]
    function = call.func
    new = ast.Attribute(function.value, other, ast.Load()) if isinstance(function, ast.Attribute) else None
    yield replacement(function, new or ast.Name(other, ast.Load()), family, f"{_name(call)} to {other}")


def dropped(site: Site) -> Iterator[Edit]:
    """A step left out: what it is applied to stands for its result."""
    node = site.node
    if isinstance(node, ast.Attribute) and node.attr in ("mT", "T", "mH") and isinstance(node.ctx, ast.Load):
        yield replacement(node, node.value, "transposed", f".{node.attr} dropped")
    if not isinstance(node, ast.Call) or isinstance(site.parent, ast.Expr):
        return
    name = _name(node)
    if _of_library(node):
        if name in _DROPPED_FUNCTIONS and node.args and _first(node) is not None:
            yield replacement(node, node.args[0], _DROPPED_FUNCTIONS[name], f"{name} dropped")
    elif isinstance(node.func, ast.Attribute) and name in _DROPPED:
        yield replacement(node, node.func.value, _DROPPED[name], f".{name}() dropped")


def choice(site: Site) -> Iterator[Edit]:
    """Where(condition, a, b) as a or as b."""
    node = site.node
    if isinstance(node, ast.Call) and _name(node) == "where" and len(node.args) == 3:
        yield replacement(node, node.args[1], "mask", "where(c, a, b) to a")
        yield replacement(node, node.args[2], "mask", "where(c, a, b) to b")


def masks(site: Site) -> Iterator[Edit]:
    """A load or a store without its mask."""
    node = site.node
    if isinstance(node, ast.Call):
        for position, keyword in enumerate(node.keywords):
            if keyword.arg in _MASKS:
                rest = [
                    k
                    for i, k in enumerate(node.keywords)
                    if i != position and (keyword.arg == "other" or k.arg != "other")
                ]
                yield replacement(node, ast.Call(node.func, node.args, rest), "mask", _MASKS[keyword.arg])


def scans(site: Site) -> Iterator[Edit]:
    """A running sum in the other direction."""
    node = site.node
    if not isinstance(node, ast.Call) or _name(node) not in ("cumsum", "cumprod"):
        return
    if not _of_library(node) and isinstance(node.func, ast.Attribute) and node.args:
        axis, name = ast.unparse(node.args[0]), node.func.attr
        text = f"{_in_parentheses(node.func.value)}.flip({axis}).{name}({axis}).flip({axis})"
        yield replacement(node, text, "direction", "a running sum from the other end")
    elif _library(node) == "tl" and all(k.arg != "reverse" for k in node.keywords):
        more = [*node.keywords, ast.keyword("reverse", ast.Constant(value=True))]
        yield replacement(node, ast.Call(node.func, node.args, more), "direction", "a running sum from the other end")


def formats(site: Site) -> Iterator[Edit]:
    """A narrower number format."""
    node = site.node
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        table = _NARROWER_BY_LIBRARY.get(node.value.id)
        other = None if table is None else {**_NARROWER, **table}.get(node.attr)
        if other is not None:
            new = ast.Attribute(node.value, other, ast.Load())
            yield replacement(node, new, "precision", f"{node.attr} to {other}")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args and not node.keywords:
        narrower = {"double": "float", "float": "bfloat16"}.get(node.func.attr)
        if narrower is not None:
            new_call = ast.Call(ast.Attribute(node.func.value, narrower, ast.Load()), [], [])
            yield replacement(node, new_call, "precision", f"{node.func.attr} to {narrower}")


def patterns(site: Site) -> Iterator[Edit]:
    """An einops pattern that splits or joins two axes in the wrong order."""
    node = site.node
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and "->" in node.value):
        return
    head, found, rest = node.value.partition("(")
    inside, closed, tail = rest.partition(")")
    words = inside.split()
    if found and closed and len(words) == 2:
        new = f"{head}({words[1]} {words[0]}){tail}"
        yield replacement(node, ast.Constant(value=new), "axis", f"({inside}) to ({words[1]} {words[0]})")


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _library(call: ast.Call) -> str:
    """The library's name where the call is one of its functions, "" for a method."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return owner.id if isinstance(owner, ast.Name) and owner.id in ("torch", "tl", "F", "triton", "math") else ""


def _of_library(call: ast.Call) -> bool:
    return bool(_library(call)) or isinstance(call.func, ast.Name)


def _first(call: ast.Call) -> ast.expr | None:
    return call.args[0] if call.args and not isinstance(call.args[0], ast.Starred) else None


def _in_parentheses(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if isinstance(node, (ast.Name, ast.Call, ast.Attribute, ast.Subscript)) else f"({text})"


MUTATORS = (renamed, dropped, choice, masks, scans, formats, patterns)
