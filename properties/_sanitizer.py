"""What the laws that NVIDIA's compute-sanitizer judges share: cases with a ragged tail, forward and backward."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Space, Trial

SPACE = Space(min_T=17, max_T=SHORT, packed=None, cotangents=("both",), regimes=CALM, gates=CALM_GATES)


def first_finding(trial: Trial, tool: str, kind: str) -> None:
    """Raise the first finding of a tool as a violation of this kind."""
    for finding in trial.sanitized(tool):
        trial.require(False, kind, finding)
