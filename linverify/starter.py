"""A first implementation of an operator, written from its statement: the recurrence in PyTorch, one token after the other.

The operator file says how arguments become the terms of the one recurrence; that code is carried over, argument by argument,
and the loop around it holds the terms that are there. So every operator has a starter without a word about it in its file.
"""

import ast
import inspect
import textwrap
from pathlib import Path

from linverify.errors import UsageError
from linverify.operator import Operator

_TERMS = {"q": "query", "k": "key", "v": "value", "a": "reading", "b": "writing", "bonus": "bonus"}
_SIZES = {"H": "heads", "G": "groups"}
_ARGUMENTS = (
    "scale: float | None = None",
    "initial_state: Tensor | None = None",
    "output_final_state: bool = False",
)
_KNOWN = {"range", "torch", "heads", "groups", "device", "dtype"}


class _Carried(ast.NodeTransformer):
    """The statement's code in plain torch: x["q"] is q, sizes["H"] is heads, helpers are spelled out."""

    def __init__(self, operator: Operator, arguments: str, sizes: str) -> None:
        self.operator, self.arguments, self.sizes = operator, arguments, sizes

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:  # ast names its hooks by class
        """x["q"] and sizes["H"]."""
        if isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant):
            word = str(node.slice.value)
            if node.value.id == self.arguments:
                return ast.Name(word, ast.Load())
            if node.value.id == self.sizes and word in _SIZES:
                return ast.Name(_SIZES[word], ast.Load())
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """heads_from_groups(x, sizes) and per_head(values, like)."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "heads_from_groups":
            inner = ast.unparse(self.visit(node.args[0]))
            return _expression(f"{inner}.repeat_interleave(heads // groups, dim=2)")
        if name == "per_head":
            values = ast.unparse(self.visit(node.args[0]))
            return _expression(f"torch.tensor({values}, dtype=dtype, device=device)[None, None, :, None]")
        return self.generic_visit(node)


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def starter(operator: Operator, file: str) -> str:
    """Return the text of a kernel file that is to be called `file`.

    Raises:
        UsageError: the operator's statement holds something that cannot be carried over.
    """
    before, terms = _terms(operator)
    names = [i.name for i in operator.inputs]
    value = operator.value_name
    body = [
        f"out = {value}.dtype",
        "dtype = torch.float64 if out == torch.float64 else torch.float32  # of the state, whatever the inputs are",
        f"{', '.join(names)} = (item.to(dtype) for item in ({', '.join(names)}))",
        *_sizes(operator, [*before, *terms.values()]),
        "",
        "# The terms of the recurrence, all [B, T, H, .].",
        *before,
        *(f"{_TERMS.get(term, term)} = {code}" for term, code in terms.items() if term not in ("low_rank_on", "read")),
        *(["decay = log_decay.exp().expand(*key.shape[:3], -1)"] if "log_decay" in terms else []),
        f"scale = {_scale(operator)} if scale is None else scale",
        "empty = key.new_zeros(*key.shape[::2], key.shape[-1], value.shape[-1])",
        "state = empty if initial_state is None else initial_state.to(dtype)",
        "",
        "reads = []",
        "for t in range(value.shape[1]):",
        *(f"    {line}" for line in _step(terms)),
        "o = torch.stack(reads, dim=1)",
        *(["o = o + scale * (query * bonus * key).sum(-1, keepdim=True) * value"] if "bonus" in terms else []),
        "return o.to(out), state if output_final_state else None",
    ]
    return _FILE.format(
        name=operator.name,
        file=file,
        summary=operator.summary,
        equations=textwrap.indent(operator.equations.strip(), "    "),
        source=textwrap.fill(f"Source: {operator.source}.", 118),
        parameters="\n".join(f"    {p}," for p in [*(f"{n}: Tensor" for n in names), *_ARGUMENTS]),
        value=value,
        inputs="\n".join(f"        {i.name} [{', '.join(i.axes)}]: {i.domain}." for i in operator.inputs),
        body=textwrap.indent("\n".join(body), "    "),
    )


def _terms(operator: Operator) -> tuple[list[str], dict[str, str]]:
    """Return the statement's preliminary lines, and the code of each term."""
    if operator.canonical is None or operator.readout is not None or not operator.state_axes:
        raise _none(operator, "it is more than a recurrence that is read")
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(operator.canonical))).body[0]
    except (OSError, SyntaxError, TypeError):
        raise _none(operator, "its source cannot be read") from None
    if not isinstance(function, ast.FunctionDef):
        raise _none(operator, "it is stated by an expression")
    arguments, sizes = (a.arg for a in function.args.args)
    carried = _Carried(operator, arguments, sizes)
    *lines, last = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    call = last.value if isinstance(last, ast.Return) else None
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.func.id != "Canonical"
        or call.args
    ):
        raise _none(operator, "it does not end in the terms of the recurrence")
    before = [carried.visit(line) for line in lines]
    terms = {str(k.arg): carried.visit(k.value) for k in call.keywords}
    whole = ast.Module([*before, *(ast.Expr(t) for t in terms.values())], [])
    nodes = [n for n in ast.walk(whole) if isinstance(n, ast.Name)]
    known = {i.name for i in operator.inputs} | _KNOWN | {n.id for n in nodes if isinstance(n.ctx, ast.Store)}
    foreign = [n.id for n in nodes if n.id not in known]
    if foreign:
        raise _none(operator, f"it calls for {foreign[0]!r}")
    return [ast.unparse(ast.fix_missing_locations(line)) for line in before], {
        n: ast.unparse(ast.fix_missing_locations(t)) for n, t in terms.items()
    }


def _none(operator: Operator, why: str) -> UsageError:
    return UsageError(
        f"no starter can be written for {operator.name}: {why}; 'linverify list implementations' names forms to begin with"
    )


def _sizes(operator: Operator, code: list[str]) -> list[str]:
    """Return the lines for the sizes that the carried code asks for, and for the device of new tensors."""
    said = " ".join(code)
    found = []
    for axis, word in _SIZES.items():
        source = next(((i.name, i.axes.index(axis)) for i in operator.inputs if axis in i.axes), None)
        if word in said and source is not None:
            found.append(f"{word} = {source[0]}.shape[{source[1]}]")
    return [*found, f"device = {operator.value_name}.device"] if "device" in said else found


def _scale(operator: Operator) -> str:
    return "query.shape[-1] ** -0.5" if operator.default_scale is None else repr(operator.default_scale)


def _step(terms: dict[str, str]) -> list[str]:
    """Return the lines of one token: what is read and written, in the operator's order."""
    column, row = "[:, t, :, :, None]", "[:, t, :, None, :]"
    exclusive, undecayed = terms.get("read") == "'exclusive'", terms.get("low_rank_on") == "'undecayed'"
    lines = []
    if exclusive:
        lines.append(f"reads.append(scale * (query{column} * state).sum(-2))  # reads before the write")
    removal = f"removed = (reading{column} * state).sum(-2, keepdim=True)" if "a" in terms else ""
    if removal and undecayed:
        lines.append(f"{removal}  # reads the state before its decay")
    if "log_decay" in terms:
        lines.append(f"state = decay{column} * state")
    if removal and not undecayed:
        lines.append(removal)
    if "beta" in terms:
        lines.append(f"held = (key{column} * state).sum(-2, keepdim=True)  # what the state holds under this key")
        lines.append(f"state = state + key{column} * beta{column} * (value{row} - held)")
    else:
        lines.append(f"state = state + key{column} * value{row}")
    if removal:
        lines[-1] += f" + writing{column} * removed"
    if not exclusive:
        lines.append(f"reads.append(scale * (query{column} * state).sum(-2))")
    return lines


_FILE = '''"""{name}: {summary}

{equations}

{source}

This is a first version that is right and slow: one token after the other, in PyTorch, with gradients by autograd. Put
your kernel in its place and ask again after every change. What a kernel does not take is not asked: optional arguments
may go.

    linverify check {file}
"""

import torch
from torch import Tensor

import linverify


# form: naive, recurrent or chunkwise; backend: torch, triton, cuda or external; claims={{"deterministic": "true"}}
# would be a promise to be held to.
@linverify.kernel("{name}", form="recurrent", backend="torch")
def {name}(
{parameters}
) -> tuple[Tensor, Tensor | None]:
    """Return o in the shape and dtype of {value}, and the final state [B, H, K, V] where it is asked for, else None.

    Shapes:
{inputs}
        initial_state [B, H, K, V], float32.
    """
{body}
'''


def write(operator: Operator, path: Path) -> None:
    """Write a starter to a file that is not there yet.

    Raises:
        UsageError: the file is there, its name does not end in .py, its folder is missing or cannot be written, or no starter
            can be written.
    """
    if path.suffix != ".py":
        raise UsageError(f"{path}: expected the name of a Python file, for example my_kernel.py")
    text = starter(operator, str(path))
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already and is left as it is; name another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
