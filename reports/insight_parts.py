"""What a check learned besides the verdict, as much of it as a console has room for."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from linverify.insight import ErrorMap, Insight
from linverify.reports.attribution_bars import attribution_bars
from linverify.reports.growth_lines import growth_lines
from linverify.reports.heat import worst_cell
from linverify.reports.heat_strip import heat_strip
from linverify.reports.recipe_lines import recipe_lines, worst_lines
from linverify.verdict import PropertyResult


def insight_parts(insight: Insight, properties: Sequence[PropertyResult] = ()) -> Iterator[RenderableType]:
    """Yield a renderable for every kind of insight there is."""
    if insight.attribution:
        yield attribution_bars(insight.attribution)
    if insight.maps:
        yield heat_strip(telling_map(insight.maps, properties))
    if insight.growth:
        yield growth_lines(insight.growth)
    if insight.recipes or any(r.share > 1 for r in insight.residuals):
        yield recipe_lines(insight.recipes, insight.residuals)
    if insight.worst:
        yield worst_lines(insight.worst)


def shows(one: ErrorMap, found: PropertyResult) -> bool:
    """Return whether a map is of the result and the case, shrunk or not, in which a property failed."""
    failure = found.failure
    if failure is None or one.result != failure.evidence.result:
        return False
    return one.case_id in (failure.case_id, failure.original_case_id)


def telling_map(maps: Sequence[ErrorMap], properties: Sequence[PropertyResult]) -> ErrorMap:
    """Return the map of the first failure where there is one, else the one with the largest share."""
    for found in properties:
        for one in maps:
            if shows(one, found):
                return one
    return max(maps, key=lambda m: worst_cell(m)[2])
