"""One failure in one sentence, for formats that have a line for it."""

import math

from linverify.reports.text import counted, share, words
from linverify.verdict import PropertyResult


def sentence(found: PropertyResult) -> str:
    """Return what is wrong, and how far beyond the budget where there is one; the note where nothing failed."""
    failure = found.failure
    if failure is None:
        return found.note or words(found.status)
    e = failure.evidence
    what = failure.diagnosis or e.message or words(e.kind) + (f" in {e.result}" if e.result else "")
    facts = []
    if e.of and e.how_many:
        facts.append(f"{e.how_many} of {counted(e.of, 'element')}{f' of {e.result}' if e.result else ''}")
    if math.isfinite(e.share):
        facts.append(f"share of the budget {share(e.share)}")
    return f"{what} ({', '.join(facts)})" if facts else what
