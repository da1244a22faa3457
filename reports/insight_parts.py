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
    if insight.recipes:
        yield recipe_lines(insight.recipes)
    if insight.worst:
        yield worst_lines(insight.worst)


def telling_map(maps: Sequence[ErrorMap], properties: Sequence[PropertyResult]) -> ErrorMap:
    """Return the map of the first failure where there is one, else the one with the largest share."""
    for found in properties:
        for one in maps:
            if found.failure and (one.case_id, one.result) == (found.failure.case_id, found.failure.evidence.result):
                return one
    return max(maps, key=lambda m: worst_cell(m)[2])
