"""From a form to one function per operator, with the signature a kernel of that operator would have.

A form runs on canonical terms; what lies between an operator's arguments and those terms is torch code with autograd, whatever
the form is written in. Unless a form states its terms otherwise, they are float64 where the values are float64, float32
otherwise; o is rounded once, to the dtype of the values.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from linverify.implementation import kernel
from linverify.impls._layout import Layout
from linverify.impls._terms import Form, terms
from linverify.operator import Canonical, Input, Operator, Sizes
from linverify.registry import operators

Function = Callable[..., tuple[Tensor, Tensor | None]]
Run = Callable[[Canonical, float, Sequence[int], Tensor], tuple[Tensor, Tensor]]
"""Maps the terms, the scale, the lengths of the sequences in the flat list of B * T tokens and the initial states [N, H, K, V],
float32 or float64, to o [B, T, H, V] and the final states."""
TermsOf = Callable[[Operator, Mapping[str, Tensor], Sizes], Canonical]
"""Maps an operator, its inputs as they came and the sizes to the terms."""

_NAMES = {"torch": "PyTorch", "triton": "Triton", "cuda": "CUDA C++"}


def laid_out(width: Callable[[int], int], form: Form) -> Run:
    """A form that runs on rows.

    Args:
        width: the row width wanted, given the length of the longest sequence (at least 1).
        form: what runs on them.
    """

    def run(canonical: Canonical, scale: float, lengths: Sequence[int], initial: Tensor) -> tuple[Tensor, Tensor]:
        layout = Layout(lengths, width(max(lengths, default=0) or 1), canonical.v.device)
        rows, state = form(terms(canonical, scale, layout), layout, initial)
        return layout.scatter(rows, canonical.v), state

    return run


def widened(operator: Operator, inputs: Mapping[str, Tensor], sizes: Sizes) -> Canonical:
    """The terms in float64 where the values are float64, in float32 otherwise."""
    dtype = torch.float64 if inputs[operator.value_name].dtype == torch.float64 else torch.float32
    return operator.recurrence({n: x.to(dtype) for n, x in inputs.items()}, sizes)


def functions(
    module: str,
    *,
    form: str,
    run: Run,
    terms_of: TermsOf = widened,
    of: Callable[[Operator], bool] = lambda _: True,
    backend: str = "torch",
    claims: Mapping[str, str] | None = None,
    absent: str = "",
) -> dict[str, Function]:
    """One function per operator, by name, marked as implementations.

    Args:
        module: name of the module they will live in.
        form: naive, recurrent or chunkwise.
        run: the form of a recurrence.
        terms_of: how a recurrence's terms come about.
        of: which operators, of those that have this form, it serves.
        backend: torch, triton or cuda; only torch runs forms that an operator states itself.
        claims: promises that sharpen the judgement.
        absent: why the backend is not there; "" where it is.
    """
    return {
        name: _function(operator, module, form, run, terms_of, backend, claims or {}, absent)
        for name, operator in operators().items()
        if form in operator.form_names and of(operator)
    }


def _function(
    operator: Operator,
    module: str,
    form: str,
    run: Run,
    terms_of: TermsOf,
    backend: str,
    claims: Mapping[str, str],
    absent: str,
) -> Function:
    signature = _signature(operator)

    def function(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        asked = _rebuilt(operator, given)
        inputs = {i.name: _split(operator, i, given[i.name]) for i in operator.inputs}
        value = inputs[operator.value_name]
        sizes = _sizes(operator, inputs)
        scale = asked.scale_for(sizes) if given["scale"] is None else given["scale"]
        if asked.forms and backend == "torch":
            o, state = _stated(asked, form, inputs, sizes, scale, given)
        elif asked.forms:
            raise ValueError(f"{operator.name}: with these parameters it is no recurrence, which is all there is here")
        else:
            o, state = _recurrence(asked, run, terms_of, inputs, sizes, scale, given)
        return o.to(value.dtype).contiguous(), state

    origin = "as the operator states it" if operator.forms else "derived from the operator's statement"
    mark = kernel(operator.name, form=form, backend=backend, claims=claims, absent=absent)
    text = f"{operator.summary}\n\nThe {form} form in {_NAMES[backend]}, {origin}."
    return _marked(function, signature, text, mark, module, operator.name)


def _rebuilt(operator: Operator, given: Mapping[str, Any]) -> Operator:
    """The operator with the parameters of this call."""
    chosen = {n: given[n] for n in operator.parameters}
    return operator if operator.rebuild is None or chosen == operator.parameters else operator.rebuild(**chosen)


def _recurrence(
    operator: Operator,
    run: Run,
    terms_of: TermsOf,
    inputs: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    scale: float,
    given: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """O in the arithmetic's dtype, and the final states where they are asked for."""
    lengths = _lengths(given.get("cu_seqlens"), sizes)
    canonical = terms_of(operator, inputs, {**sizes, "N": len(lengths)})
    steps = canonical.v.shape[1] // max(1, sizes["T"])  # of a token, where it takes several
    shape = (len(lengths), canonical.v.shape[2], canonical.q.shape[3], canonical.v.shape[3])
    own_shape = tuple({**sizes, "N": len(lengths)}[a] for a in operator.state_axes) or shape
    given_state = given.get("initial_state")
    dtype = torch.promote_types(canonical.v.dtype, torch.float32)
    initial = _initial(given_state, own_shape, operator.state_axes, canonical.v.device, dtype)
    o, state = run(canonical, scale, [n * steps for n in lengths], initial.reshape(shape))
    if operator.readout is not None:
        o = operator.readout(o, {n: x.to(dtype) for n, x in inputs.items()}, sizes)
    return o, state.reshape(own_shape) if given.get("output_final_state") else None


def _stated(
    operator: Operator,
    form: str,
    inputs: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    scale: float,
    given: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """O in the arithmetic's dtype, and the final states where they are asked for, sequence by sequence."""
    dtype = torch.float64 if inputs[operator.value_name].dtype == torch.float64 else torch.float32
    inputs = {n: x.to(dtype) for n, x in inputs.items()}
    if form not in operator.forms:
        raise ValueError(f"{operator.name}: with these parameters there is no {form} form")
    packed, asked = given.get("cu_seqlens") is not None, bool(given.get("output_final_state"))
    lengths = _lengths(given["cu_seqlens"], sizes) if packed else [sizes["T"]]
    value, states = inputs[operator.value_name], None
    if operator.state_axes:
        shape = tuple({**sizes, "N": len(lengths) if packed else sizes["B"]}[a] for a in operator.state_axes)
        given_state = given.get("initial_state")
        if given_state is not None or 0 in lengths:
            states = _initial(given_state, shape, operator.state_axes, value.device, value.dtype)
            if given_state is None and operator.blank_state is not None:
                states = operator.blank_state(states)
    outs, finals, start = [], [], 0
    for i, n in enumerate(lengths):
        part = {x.name: _span(inputs[x.name], x.axes, start, n) for x in operator.inputs}
        own = None if states is None else states[i : i + 1] if packed else states
        if n:
            more = {} if given.get("initial_state") is None else {"initial_state": own}
            o, own = operator.stated(form, {**part, **more}, {**sizes, "T": n}, scale, final_state=asked)
            outs.append(o)
        finals.append(own)
        start += n
    o = torch.cat(outs, operator.o_axes.index("T")) if len(outs) > 1 else outs[0]
    return o, torch.cat(finals) if asked else None


def _split(operator: Operator, declared: Input, x: Tensor) -> Tensor:
    """An input whose steps lie on the axis of the tokens, with an axis of its own for them."""
    if "S" not in declared.axes:
        return x
    step = declared.axes.index("S")
    steps: Tensor = x.unflatten(step - 1, (-1, operator.own_axes["S"]({})))
    return steps


def _span(x: Tensor, axes: tuple[str, ...], start: int, length: int) -> Tensor:
    return x.narrow(axes.index("T"), start, length) if "T" in axes else x


def _marked(
    function: Function,
    signature: inspect.Signature,
    text: str,
    mark: Callable[[Function], Function],
    module: str,
    name: str,
) -> Function:
    function.__name__ = function.__qualname__ = name
    function.__module__ = module
    function.__doc__ = text
    function.__signature__ = signature  # type: ignore[attr-defined]  # read by inspect.signature
    return mark(function)


def _signature(operator: Operator) -> inspect.Signature:
    """The operator's inputs, the arguments that every function here has where its operator has them, its parameters."""
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = [inspect.Parameter(i.name, either, annotation=Tensor) for i in operator.inputs]
    found.append(inspect.Parameter("scale", either, default=None, annotation=float | None))
    if operator.state_axes:
        found.append(inspect.Parameter("initial_state", either, default=None, annotation=Tensor | None))
        found.append(inspect.Parameter("output_final_state", either, default=False, annotation=bool))
    if "M19" in operator.identities:
        found.append(inspect.Parameter("cu_seqlens", either, default=None, annotation=Tensor | None))
    found += [inspect.Parameter(n, either, default=x, annotation=type(x)) for n, x in operator.parameters.items()]
    return inspect.Signature(found, return_annotation=tuple[Tensor, Tensor | None])


def _sizes(operator: Operator, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Axis letters to lengths; a letter that no input shows (groups) takes the number of heads."""
    sizes: dict[str, int] = {}
    for declared in operator.inputs:
        shape = tuple(inputs[declared.name].shape)
        if len(shape) != len(declared.axes) or any(
            sizes.setdefault(a, n) != n for a, n in zip(declared.axes, shape, strict=True)
        ):
            axes = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in declared.axes)
            raise ValueError(f"{operator.name}: expected {declared.name} of shape [{axes}], got {list(shape)}")
    return operator.sizes_of({i.name: inputs[i.name].shape for i in operator.inputs})


def _lengths(cu_seqlens: Tensor | None, sizes: Mapping[str, int]) -> Sequence[int]:
    """Lengths of the sequences in the flat list of tokens: the batch rows, or the packed ones."""
    if cu_seqlens is None:
        return [sizes["T"]] * sizes["B"]
    ends = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in pairwise(ends)]
    if sizes["B"] != 1 or not ends or ends[0] != 0 or ends[-1] != sizes["T"] or any(n < 0 for n in lengths):
        raise ValueError(
            f"expected cu_seqlens to rise from 0 to T={sizes['T']} with B=1, got {ends} with B={sizes['B']}; "
            "pack the sequences along T"
        )
    return lengths


def _initial(
    state: Tensor | None, shape: tuple[int, ...], axes: Sequence[str], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The initial states, laid out as the operator says, in the arithmetic's dtype; zeros where none is given."""
    if state is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    if tuple(state.shape) != shape:
        raise ValueError(
            f"expected initial_state of shape [{', '.join(axes)}] = {list(shape)}, got {list(state.shape)}"
        )
    return state.to(dtype)
