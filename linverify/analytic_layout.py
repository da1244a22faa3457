"""Which results are laid out as the rows of the recurrence, and how they become rows and back: for `linverify.analytic`."""

import torch
from torch import Tensor

from linverify.reference.question import Question, sizes_of, state_shape

# Inputs that may be a term of the recurrence as they are, by the names of both.
_TERMS = {"q": "q", "r": "q", "k": "k", "v": "v", "a": "a", "b": "b"}
_TOKENS = ("B", "T", "H")


def term_of(question: Question, result: str) -> str:
    """Which term's gradient a result is: that of an input that is a term as it is.

    Returns:
        The term's name; "o"; "last" or "first" of the states; or "" of a result that is no term, or laid out otherwise.
    """
    operator, folding, terms = question.operator, question.folding, question.rows.terms()
    if result in ("state", "dinitial_state"):
        shape = folding.sequences, folding.H, *question.rows.state.shape[1:]
        plain = operator.state_axes[-2:] == ("K", "V") and state_shape(operator, question.problem) == shape
        return ("last" if result == "state" else "first") if plain else ""
    if result == "o":
        alike = operator.readout is None and sizes_of(question.problem, operator)["T"] == folding.T
        return "o" if alike and operator.o_axes == (*_TOKENS, "V") else ""
    name, term = _TERMS.get(result[1:], ""), terms.get(_TERMS.get(result[1:], ""))
    if term is None or operator.input(result[1:]).axes[:-1] != _TOKENS:
        return ""
    leaf = question.leaves[result[1:]].detach()
    if leaf.shape != (folding.B, folding.T, folding.H, term.shape[-1]):
        return ""
    return name if torch.equal(folding.tokens(leaf), term.detach()) else ""


def to_rows(question: Question, x: Tensor) -> Tensor:
    """A result as it is judged, [B * H, T, D], to [N, L, D]."""
    folding = question.folding
    return folding.tokens(x.reshape(folding.B, folding.H, folding.T, -1).transpose(1, 2))


def from_rows(question: Question, rows: Tensor) -> Tensor:
    """[N, L] to [B * H, T], as a result is judged."""
    folding = question.folding
    return folding.untokens(rows[..., None]).transpose(1, 2).reshape(folding.B * folding.H, folding.T)
