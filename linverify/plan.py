"""What a session is asked to do, and who listens while it does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from linverify.verdict import Configuration, PropertyResult, TargetResult


@dataclass(frozen=True, slots=True)
class Plan:
    """One target and how to check it.

    Attributes:
        target: as the user wrote it.
        operator: name, or None where the target declares it.
        operator_parameters: of ``--op NAME:key=value``.
        settings: extra keyword arguments of every call.
        claims: promises that sharpen the judgement.
        device: "cpu" or "cuda:0".
        dtypes: short format names.
        properties: names; () for all.
        require: reported properties that are required here.
        profile: name.
        time: seconds after which nothing new is asked, or None.
        seed: same seed, same cases.
        autotune: pin, all (pinned, and a property forces every other one) or native.
        long: whether one sequence of up to a million tokens is asked about, whatever the profile.
        sanitizer: whether NVIDIA's compute-sanitizer is asked, too.
        reproducers: folder of the reproducer scripts; None writes none.
        workers: processes that share the laws out among them.
        share: part of the GPU's memory that the target may take, where several workers share the GPU.
        known: results of an interrupted run by target, which are taken over.
        swept: autotuning configurations that it settled, by target.
        fail_fast: only the verdict is asked: the session of a function ends at the first violation of a required property,
            which is not shrunk, and nothing is looked into.
    """

    target: str
    operator: str | None = None
    operator_parameters: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    properties: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    profile: str = "standard"
    time: float | None = None
    seed: int = 0
    autotune: str = "pin"
    long: bool = False
    sanitizer: bool = False
    reproducers: Path | None = None
    workers: int = 1
    share: float = 1.0
    known: Mapping[str, tuple[PropertyResult, ...]] = field(default_factory=dict)
    swept: Mapping[str, tuple[Configuration, ...]] = field(default_factory=dict)
    fail_fast: bool = False

    @property
    def pinning(self) -> str:
        """How the target itself is run: pin or native."""
        return "pin" if self.autotune == "all" else self.autotune


class Listener(Protocol):
    """Hears what a session does."""

    def target_started(self, target: str, operator: str, properties: Sequence[str]) -> None:
        """A target is about to be checked against these properties."""

    def property_started(self, name: str) -> None:
        """A property is next."""

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:
        """A case was judged; share of the budget, None where no budget applies."""

    def property_finished(self, result: PropertyResult) -> None:
        """A property is through."""

    def target_finished(self, result: TargetResult) -> None:
        """A target is through."""

    def configuration_settled(self, found: Configuration) -> None:
        """An autotuning configuration was forced and judged."""

    def note(self, text: str) -> None:
        """Something worth a line."""
