"""Claims: what a target promises beyond its operator's mathematics, and is then held to.

A claim that nobody knows is refused: a mistyped one would leave the target unjudged by what its author promised.
"""

from collections.abc import Mapping

from linverify import registry
from linverify.errors import UsageError, unknown

# What the engine itself reads; a recipe is read by linverify/declared.py. Laws add the claims that make them required.
_VALUES: dict[str, tuple[str, ...]] = {
    "fp32": ("ieee",),
    "gva": ("true", "false"),
    "recipe": (),
    "state_dtype": ("input",),
}


def values() -> dict[str, tuple[str, ...]]:
    """Every claim with the values it may have, () for any."""
    found = {key: set(known) for key, known in _VALUES.items()}
    for law in registry.properties().values():
        key, _, value = law.claim.partition("=")
        if key:
            found.setdefault(key, set()).update({"true", "false"} if value == "true" else {value})
    return {key: tuple(sorted(known)) for key, known in sorted(found.items())}


def claimed(*given: Mapping[str, object]) -> dict[str, str]:
    """Return claims as text, later ones before earlier ones; Python's True is "true".

    Raises:
        UsageError: a claim, or its value, is unknown; the message says which there are.
    """
    known = values()
    found = {
        key: str(value).lower() if isinstance(value, bool) else str(value) for g in given for key, value in g.items()
    }
    for key, value in found.items():
        if key not in known:
            raise unknown("claim", key, known)
        if known[key] and value not in known[key]:
            raise UsageError(f"claim {key}={value}: expected {' or '.join(f'{key}={v}' for v in known[key])}")
    return found
