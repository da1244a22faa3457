"""A listener that says nothing, where something else shows the progress."""

from collections.abc import Sequence

from linverify.verdict import Configuration, PropertyResult, TargetResult


class Silence:
    """See `linverify.plan.Listener`."""

    def target_started(self, target: str, operator: str, properties: Sequence[str]) -> None:
        """Say nothing."""

    def property_started(self, name: str) -> None:
        """Say nothing."""

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:
        """Say nothing."""

    def property_finished(self, result: PropertyResult) -> None:
        """Say nothing."""

    def target_finished(self, result: TargetResult) -> None:
        """Say nothing."""

    def configuration_settled(self, found: Configuration) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
