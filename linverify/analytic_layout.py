"""Which results are laid out as the rows of the recurrence, and how they become rows and back: for `linverify.analytic`."""

from torch import Tensor

from linverify.reference.question import Question, sizes_of, state_shape

_TOKENS = ("B", "T", "H")


def term_of(question: Question, result: str) -> str:
    """Which term's gradient a result is: that of an input that is a term as it is.

    Returns:
        The term's name; "o"; "last" or "first" of the states; or "" of a result that is no term, or laid out otherwise.
    """
    operator, folding = question.operator, question.folding
    if result in ("state", "dinitial_state"):
        shape = folding.sequences, folding.H, *question.rows.state.shape[1:]
        plain = operator.state_axes[-2:] == ("K", "V") and state_shape(operator, question.problem) == shape
        return ("last" if result == "state" else "first") if plain else ""
    if result == "o":
        alike = operator.readout is None and sizes_of(question.problem, operator)["T"] == folding.T
        return "o" if alike and operator.o_axes == (*_TOKENS, "V") else ""
    name = question.plain.get(result[1:], "")
    if not name or operator.input(result[1:]).axes[:-1] != _TOKENS:
        return ""
    return name if question.leaves[result[1:]].shape[:3] == (folding.B, folding.T, folding.H) else ""


def to_rows(question: Question, x: Tensor) -> Tensor:
    """A result as it is judged, [B * H, T, D], to [N, L, D]."""
    folding = question.folding
    return folding.tokens(x.reshape(folding.B, folding.H, folding.T, -1).transpose(1, 2))


def from_rows(question: Question, rows: Tensor) -> Tensor:
    """[N, L] to [B * H, T], as a result is judged."""
    folding = question.folding
    return folding.untokens(rows[..., None]).transpose(1, 2).reshape(folding.B * folding.H, folding.T)
