"""A precision recipe in words."""

from linverify.insight import RecipeMatch
from linverify.reports.text import percent


def recipe_sentence(match: RecipeMatch) -> str:
    """Return the recipe in words, with those that cannot be told from it."""
    if match.sentence:
        return f"{match.dtype}: {match.sentence}"
    if not match.name:
        return f"{match.dtype}: no recipe explains the error ({percent(match.residual)} of its energy is left)."
    ties = f"; cannot be told from {', '.join(match.ties)}" if match.ties else ""
    return f"{match.dtype}: {match.name} ({percent(match.residual)} of the error's energy is left{ties})."
