"""The verdict of one target, first thing in its report."""

from rich.console import Group, RenderableType
from rich.text import Text

from linverify.reports.rule import Dotted
from linverify.reports.text import STYLES, counted, share
from linverify.verdict import Status, TargetResult


def headline(result: TargetResult) -> RenderableType:
    """Return two lines: the verdict and what was judged; why."""
    kind = " · ".join(part for part in (result.operator, result.form, result.backend) if part)
    first = Text.assemble((result.verdict.upper(), STYLES[result.verdict]), "  ", (result.target, "bold"), "  ", kind)
    return Group(Dotted(first), Text("  " + why(result)))


def headline_text(result: TargetResult) -> str:
    """Return the verdict and why, on one line."""
    return f"{result.verdict.upper()}  {result.target}  {result.operator}: {why(result)}"


def why(result: TargetResult) -> str:
    """Return what was judged and how many laws were broken, or why nothing could be."""
    judged = [p for p in result.properties if p.cases]
    laws = counted(sum(p.required for p in judged), "required property", "required properties")
    shares = [p.worst_budget_fraction for p in judged if p.required and p.worst_budget_fraction is not None]
    worst = f"; worst share {share(max(shares))}" if shares else ""
    cases = counted(result.cases, "case")
    if result.verdict == "violation":
        broken = sum(p.required and p.status is Status.VIOLATION for p in result.properties)
        return f"{broken} of {laws} broken, {cases} judged{worst}"
    if result.verdict == "unchecked":
        return result.reason or f"no required property could be judged ({cases})"
    marginal = sum(p.status is Status.MARGINAL for p in result.properties)
    aside = f", {marginal} of them marginal" if marginal else ""
    return f"{laws} held{aside}, {cases} judged{worst}"
