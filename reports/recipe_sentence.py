"""A precision recipe in words."""

from linverify.insight import RecipeMatch, Residual
from linverify.reports.text import percent, share


def recipe_sentence(match: RecipeMatch) -> str:
    """Return the recipe in words, with those that cannot be told from it."""
    if match.sentence:
        return f"{match.dtype}: {match.sentence}"
    if not match.name:
        return f"{match.dtype}: no recipe explains the error ({percent(match.residual)} of its energy is left)."
    ties = f"; cannot be told from {', '.join(match.ties)}" if match.ties else ""
    return f"{match.dtype}: {match.name} ({percent(match.residual)} of the error's energy is left{ties})."


def residual_sentence(left: Residual) -> str:
    """Return what a matched recipe leaves of a result, in words."""
    where = f", at {left.where}" if left.where else ""
    what = f"what {left.recipe} leaves of {left.result} is {share(left.share)} of what flipped bits explain"
    beyond = ": a fault below the rounding level" if left.share > 1 else ""
    return f"{left.dtype}: {what} ({left.statistic}{where}){beyond}. {left.case_id}"
