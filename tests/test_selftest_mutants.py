"""Mutators: which mistakes they make of which code, and that a mutant differs from its source in one place only."""

import ast
import textwrap

import pytest
import torch

from linverify.selftest.edit import Edit, lines_changed
from linverify.selftest.imports import standing_alone
from linverify.selftest.mutants import mutants, sample
from linverify.selftest.reach import raising, statement_of
from linverify.selftest.widened import widened


def mutated(source: str, functions: tuple[str, ...] = ()) -> set[str]:
    return {e.applied(source) for e in mutants(source, functions)}


@pytest.mark.parametrize(
    ("code", "mistake", "family"),
    [
        ("x = a < b", "x = (a <= b)", "comparison"),
        ("x = a >= b", "x = (a > b)", "comparison"),
        ("x = a is None", "x = (a is not None)", "branch"),
        ("x = a + b", "x = (a - b)", "sign"),
        ("x = a + b", "x = a", "term"),
        ("x = a - b", "x = (a + b)", "sign"),
        ("x = -a", "x = a", "sign"),
        ("x = a * b", "x = b", "scale"),
        ("x = a / b", "x = a", "scale"),
        ("x = K**-0.5", "x = (K ** 0.5)", "scale"),
        ("x = K**-0.5", "x = K", "scale"),
        ("x = 0.5", "x = 1.0", "scale"),
        ("x = a[3]", "x = a[4]", "index"),
        ("x = a[-1]", "x = a[(-2)]", "index"),
        ("x = a[i]", "x = a[(i - 1)]", "index"),
        ("x = a[:, :n]", "x = a[:, :(n - 1)]", "index"),
        ("x = a.sum(-1)", "x = a.sum((-2))", "axis"),
        ("x = a.sum(dim=0)", "x = a.sum(dim=1)", "axis"),
        ("x = a & b", "x = b", "mask"),
        ("x = ~a", "x = a", "mask"),
        ("x = tl.load(p, mask=m, other=0.0)", "x = tl.load(p)", "mask"),
        ("x = tl.load(p, mask=m, other=0.0)", "x = tl.load(p, mask=m)", "mask"),
        ("tl.store(p, x, mask=m)", "tl.store(p, x)", "mask"),
        ("x = tl.where(c, a, b)", "x = b", "mask"),
        ("x = a.masked_fill(m, 0)", "x = a", "mask"),
        ("x = a.tril()", "x = a.triu()", "mask"),
        ("x = a.tril()", "x = a", "mask"),
        ("x = a.exp()", "x = a.exp2()", "exponential"),
        ("x = tl.exp(a)", "x = tl.exp2(a)", "exponential"),
        ("x = tl.trans(a)", "x = a", "transposed"),
        ("x = a @ b.mT", "x = a @ b", "transposed"),
        ("x = a.cumsum(1)", "x = (a.flip(1).cumsum(1).flip(1))", "direction"),
        ("x = tl.cumsum(a, 0)", "x = tl.cumsum(a, 0, reverse=True)", "direction"),
        ("x = tl.cumsum(a, 0, reverse=True)", "x = tl.cumsum(a, 0, reverse=False)", "direction"),
        ("for t in range(n):\n    f(t)", "for t in reversed(range(n)):\n    f(t)", "direction"),
        ("for t in range(n):\n    f(t)", "for t in range(0 + 1, n):\n    f(t)", "index"),
        ("for t in range(n):\n    f(t)", "for t in range(0, n - 1):\n    f(t)", "index"),
        ("x = a.float()", "x = a", "precision"),
        ("x = a.to(torch.float32)", "x = a.to(torch.bfloat16)", "precision"),
        ("x = tl.zeros([1], tl.float32)", "x = tl.zeros([1], tl.float16)", "precision"),
        ("x = a.contiguous()", "x = a", "layout"),
        ("x = a.clone()", "x = a", "copy"),
        ("x = torch.zeros(3)", "x = torch.empty(3)", "fresh memory"),
        ("x = p if c else q", "x = q", "branch"),
        ("if c:\n    f()", "if False:\n    f()", "branch"),
        ("x = p and q", "x = q", "branch"),
        ("x += a", "x -= a", "sign"),
        ("x += a", "pass", "step"),
        ("x += a", "x = a", "step"),
        ("x = x * a", "x *= a", "in place"),
        ("o[:, t] = x", "pass", "step"),
        ("tl.debug_barrier()", "pass", "barrier"),
        ("f(q, k)", "f(k, q)", "name"),
        ("x = rearrange(a, 'b (n c) d -> b n c d', c=c)", "x = rearrange(a, 'b (c n) d -> b n c d', c=c)", "axis"),
    ],
)
def test_a_mistake_is_made(code: str, mistake: str, family: str) -> None:
    edits = {e.applied(code): e for e in mutants(code)}
    assert mistake in edits, sorted(edits)
    assert edits[mistake].family == family


def test_names_of_one_kind_are_exchanged_where_a_function_has_both() -> None:
    code = "def f(q, k, K, V):\n    return q * V"
    assert "def f(q, k, K, V):\n    return k * V" in mutated(code)
    assert "def f(q, k, K, V):\n    return q * K" in mutated(code)
    assert not any("H" in text for text in mutated(code))


def test_what_backward_returns_is_exchanged_and_lost() -> None:
    code = "def backward(ctx, do):\n    return dq, dk, None"
    found = mutated(code)
    assert "def backward(ctx, do):\n    return (dk, dq, None)" in found
    assert "def backward(ctx, do):\n    return (dq * 0), dk, None" in found
    assert "def backward(ctx, do):\n    return dq, None, None" in found
    assert not any("dk, dq" in text for text in mutated(code.replace("backward", "forward")))


SOURCE = textwrap.dedent('''\
    """A docstring, 1 + 1."""
    import torch

    SIZE = 4


    def unused(a):
        return a + 1


    def helper(a: "1 + 1" = 2):
        """Another, 2 < 3."""
        if a.dim() < 2:
            raise ValueError(f"{a + 1}")
        assert a > 0, "a > 0"
        return (
            a  # the first
            + SIZE
        ) * 3


    def kernel(a):
        return helper(a)  # as it is
''')


def test_every_line_but_the_mutated_one_stays() -> None:
    for edit in mutants(SOURCE):
        after = edit.applied(SOURCE).splitlines()
        assert len(after) == len(SOURCE.splitlines())
        last = edit.end_line
        for number, (x, y) in enumerate(zip(SOURCE.splitlines(), after, strict=True), 1):
            assert x == y or edit.line <= number <= last, (edit, number)


def test_only_what_computes_is_mutated() -> None:
    texts = mutated(SOURCE)
    for kept in ('"""A docstring, 1 + 1."""', '"""Another, 2 < 3."""', ': "1 + 1" = 2', 'f"{a + 1}"', 'a > 0, "a > 0"'):
        assert all(kept in text for text in texts), kept


def test_only_what_the_target_reaches_is_mutated() -> None:
    assert any("a - 1" in text for text in mutated(SOURCE))
    reached = mutated(SOURCE, ("kernel",))
    assert all("def unused(a):\n    return a + 1" in text for text in reached)
    assert any("SIZE = 5" in text for text in reached)
    assert mutated(SOURCE, ("made_elsewhere",)) == mutated(SOURCE)


def test_mutants_are_distinct_and_named_alike_in_every_run() -> None:
    edits = mutants(SOURCE)
    assert len({e.applied(SOURCE) for e in edits}) == len(edits)
    assert len({e.name(SOURCE) for e in edits}) == len(edits)
    assert [e.name(SOURCE) for e in edits] == [e.name(SOURCE) for e in mutants(SOURCE)]


def test_a_sample_keeps_the_order_and_follows_the_seed() -> None:
    edits = mutants(SOURCE)
    chosen = sample(edits, 5, 1)
    assert len(chosen) == 5
    assert list(chosen) == [e for e in edits if e in chosen]
    assert chosen == sample(edits, 5, 1) != sample(edits, 5, 2)
    assert sample(edits, 10**6, 0) == edits


def test_a_difference_is_shown_by_its_lines() -> None:
    edit = Edit("sign", "", 1, 4, 1, 9, "a - b")
    assert lines_changed("x = a + b\ny = 1\n", edit.applied("x = a + b\ny = 1\n")) == "-x = a + b\n+x = a - b"


def test_bytes_before_a_place_are_counted_not_letters() -> None:
    assert 'x = "é", (a - b)' in mutated('x = "é", a + b')


def test_the_statement_around_an_edit_can_be_made_to_raise() -> None:
    tree = ast.parse(SOURCE)
    edit = next(e for e in mutants(SOURCE) if "a - SIZE" in e.applied(SOURCE).replace("\n", ""))
    node = statement_of(tree, edit)
    assert isinstance(node, ast.Return)
    text = raising(SOURCE, node)
    assert text.count("\n") == SOURCE.count("\n")
    space: dict[str, object] = {}
    exec(compile(text, "mutant", "exec"), space)
    with pytest.raises(NameError, match="never_defined"):
        space["helper"](torch.tensor(2.0).reshape(1, 1))  # type: ignore[operator]


def test_a_module_s_source_stands_alone() -> None:
    source = (
        "import torch\nfrom . import a\nfrom .b import (\n    c,\n    d as e,\n)\n"
        "from ..f.g import h; x = 1\nfrom i import j\n"
    )
    alone = standing_alone(source, "one.two.three")
    assert alone.splitlines() == [
        "import torch",
        "from one.two import a",
        "from one.two.b import c, d as e",
        *["", "", ""],
        "from one.f.g import h; x = 1",
        "from i import j",
    ]


def test_a_source_is_widened_where_it_says_float32() -> None:
    text = "a.float(); torch.float; torch.float32; tl.float32; float('-inf'); my_float32; a.to(torch.float16)"
    wide = "a.double(); torch.float64; torch.float64; tl.float64; float('-inf'); my_float32; a.to(torch.float16)"
    assert widened(text) == wide
