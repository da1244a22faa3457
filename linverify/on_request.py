"""What a law needs: of the function, or of the user, who must ask for laws that take long."""

from linverify.plan import Plan
from linverify.property import Property

_HOW = {
    "sanitizer": "asked with --sanitizer only",
    "configurations": "asked with --autotune all only",
    "caches": "asked by name (--property or --require) only: every question compiles anew",
    "long": "asked with --profile thorough, or by name (--property)",
}
_ARGUMENTS = {"final_state": "output_final_state", "packed": "cu_seqlens", "groups": "grouped heads"}


def missing(law: Property, plan: Plan, capabilities: frozenset[str], *, triton: bool, replayed: bool) -> str:
    """Return what there would have to be for a law to be asked; "" where nothing is missing.

    Args:
        law: in question.
        plan: what the user asked for.
        capabilities: what the function takes and returns.
        triton: whether it launches Triton kernels.
        replayed: whether the law is asked about one case that was named.
    """
    wanted = {
        "sanitizer": plan.sanitizer,
        "configurations": plan.autotune == "all" and triton,
        "caches": law.name in (*plan.properties, *plan.require) or replayed,
        "long": plan.long or plan.profile == "thorough" or replayed,
    }
    lacking = sorted(law.needs - capabilities - {name for name, holds in wanted.items() if holds})
    if unasked := [m for m in lacking if m in wanted]:
        return _HOW[unasked[0]]
    return f"the function takes no {', no '.join(_ARGUMENTS.get(m, m) for m in lacking)}" if lacking else ""
