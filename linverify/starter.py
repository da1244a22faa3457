"""A first implementation of an operator, written from its statement: the recurrence in PyTorch, token by token.

The operator file says how arguments become the terms of the one recurrence; that code is carried over, argument by argument,
and the loop around it holds the terms that are there. An operator that is more than that (a read-out, forms of its own,
helpers) gets a starter that calls its definition. So every operator has one without a word about it in its file.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from pathlib import Path

from linverify import registry
from linverify.errors import UsageError
from linverify.operator import Operator

_TERMS = {"q": "query", "k": "key", "v": "value", "a": "reading", "b": "writing", "bonus": "bonus"}
_SIZES = {"H": "heads", "G": "groups"}
_SCALE = "scale: float | None = None"
_STATE = ("initial_state: Tensor | None = None", "output_final_state: bool = False")
_WIDTH = 120  # of a line of the file
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
        UsageError: the operator is more than the recurrence, and has no built-in form to call.
    """
    carried = _terms(operator)
    form, code = ("recurrent", _recurrence(operator, *carried)) if carried else _delegation(operator)
    stateful = bool(operator.state_axes)
    names = [f"{i.name}: Tensor" for i in operator.inputs]
    shapes = [f"{i.name} [{', '.join(i.axes)}]: {i.domain}." for i in operator.inputs]
    axes = ", ".join("B" if a == "N" else a for a in operator.state_axes)
    state = f", and the final state [{axes}] where it is asked for, else None" if stateful else ""
    return _FILE.format(
        name=operator.name,
        form=form,
        file=file,
        summary=textwrap.fill(operator.summary, 118),
        equations=textwrap.indent(operator.equations.strip(), "    "),
        source=textwrap.fill(f"Source: {operator.source}.", 118),
        how=textwrap.fill(_RIGHT_AND_SLOW.format(_HOW[carried is not None]) + _NOT_ASKED, 118),
        imports="\n".join(code.imports),
        parameters="\n".join(f"    {p}," for p in [*names, _SCALE, *(_STATE if stateful else ())]),
        returns="tuple[Tensor, Tensor | None]" if stateful else "Tensor",
        what=f"Return o [{', '.join(operator.o_axes)}] in the dtype of {operator.value_name}{state}.",
        shapes="\n".join(
            f"        {s}" for s in [*shapes, *([f"initial_state [{axes}], float32."] if stateful else [])]
        ),
        body=textwrap.indent("\n".join(code.lines), "    "),
    )


@dataclass(frozen=True, slots=True)
class _Code:
    imports: tuple[str, ...]
    lines: tuple[str, ...]


def _recurrence(operator: Operator, before: list[str], terms: dict[str, str]) -> _Code:
    """Return the recurrence, written out."""
    names = ", ".join(i.name for i in operator.inputs)
    lines = [
        f"out = {operator.value_name}.dtype",
        "dtype = torch.float64 if out == torch.float64 else torch.float32  # of the state, whatever the inputs are",
        f"{names} = (item.to(dtype) for item in ({names}))",
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
    return _Code(("import torch", "from torch import Tensor", "", "import linverify"), tuple(lines))


def _delegation(operator: Operator) -> tuple[str, _Code]:
    """Return the form and the code of a call of the definition: the built-in form that the operator states first."""
    form = operator.form_names[0]
    wanted = (operator.name, form, "torch")
    found = next((i for i in registry.implementations() if (i.operator, i.form, i.backend) == wanted), None)
    if found is None:
        raise UsageError(f"no starter can be written for {operator.name}: there is no built-in form of it")
    module, _, function = found.target_text.partition(":")
    names = [i.name for i in operator.inputs]
    optional = ["scale", *(("initial_state", "output_final_state") if operator.state_axes else ())]
    arguments = [*names, *(f"{n}={n}" for n in optional)]
    lines = [f"from {module} import {function} as built_in", ""]
    lines += _call("return ", arguments) if operator.state_axes else [*_call("o, _ = ", arguments), "return o"]
    return form, _Code(("from torch import Tensor", "", "import linverify"), tuple(lines))


def _call(before: str, arguments: list[str]) -> list[str]:
    """A call of `built_in`, in as many lines of a body as a formatter makes of it."""
    inside = ", ".join(arguments)
    if len(whole := f"{before}built_in({inside})") <= _WIDTH - 4:
        return [whole]
    body = [f"    {inside}"] if len(inside) <= _WIDTH - 8 else [f"    {a}," for a in arguments]
    return [f"{before}built_in(", *body, ")"]


def _terms(operator: Operator) -> tuple[list[str], dict[str, str]] | None:
    """Return the statement's preliminary lines and the code of each term; None where it is more than that."""
    if operator.canonical is None or operator.readout is not None or not operator.state_axes:
        return None
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(operator.canonical))).body[0]
    except (OSError, SyntaxError, TypeError):
        return None
    if not isinstance(function, ast.FunctionDef):
        return None
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
        return None
    before = [carried.visit(line) for line in lines]
    terms = {str(k.arg): carried.visit(k.value) for k in call.keywords}
    whole = ast.Module([*before, *(ast.Expr(t) for t in terms.values())], [])
    nodes = [n for n in ast.walk(whole) if isinstance(n, ast.Name)]
    known = {i.name for i in operator.inputs} | _KNOWN | {n.id for n in nodes if isinstance(n.ctx, ast.Store)}
    if any(n.id not in known for n in nodes):  # a helper that the file would not have
        return None
    return [ast.unparse(ast.fix_missing_locations(line)) for line in before], {
        n: ast.unparse(ast.fix_missing_locations(t)) for n, t in terms.items()
    }


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


_RIGHT_AND_SLOW = "It is right and slow: {}. Put your kernel in its place and ask again after "
_NOT_ASKED = "every change. What a kernel does not take is not asked: optional arguments may go."
_HOW = {
    True: "one token after the other, in PyTorch, with gradients by autograd",
    False: "it calls linverify's own definition of the operator",
}
_FILE = '''"""A first version of {name}.

{summary}

{equations}

{source}

{how}

    linverify check {file}
"""

{imports}


# form: naive, recurrent or chunkwise; backend: torch, triton, cuda or external; claims={{"deterministic": "true"}}
# would be a promise to be held to.
@linverify.kernel("{name}", form="{form}", backend="torch")
def {name}(
{parameters}
) -> {returns}:
    """{what}

    Shapes:
{shapes}
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
