"""Grouped-value attention: any operator, with queries and keys shared by groups of heads.

Libraries offer it for some operators under various names; it is drawn only where the target claims it ("gva").
"""

from collections.abc import Mapping
from dataclasses import replace

from linverify.arguments import heads_from_groups
from linverify.operator import Array, Canonical, Input, Operator, Sizes


def as_claimed(operator: Operator, claims: Mapping[str, str]) -> Operator:
    """Return the operator with shared keys where a target claims gva=true, else the operator itself."""
    return share_keys(operator) if str(claims.get("gva", "")).lower() == "true" else operator


def share_keys(operator: Operator) -> Operator:
    """Return the operator with q and k of shape [B, T, G, K]; head h reads group h // (H / G). Idempotent."""
    if operator.grouped or operator.canonical is None:
        return operator
    shared = {i.name for i in operator.of_kind("query", "key")}

    def grouped(i: Input) -> Input:
        return replace(i, axes=tuple("G" if a == "H" else a for a in i.axes)) if i.name in shared else i

    def canonical(x: Mapping[str, Array], sizes: Sizes) -> Canonical:
        repeated = {n: heads_from_groups(t, sizes) if n in shared else t for n, t in x.items()}
        return operator.recurrence(repeated, sizes)

    return replace(
        operator,
        inputs=tuple(grouped(i) for i in operator.inputs),
        canonical=canonical,
        identities=operator.identities | {"M21"},
        reductions=(),
        grouped=True,
    )
