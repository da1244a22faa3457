"""Real text for a training run, from what every Python brings along: the language's reference, as `help` shows it."""

import importlib

import torch
from torch import Tensor

from linverify.errors import CannotCheckError

# A window of the text, its successor and enough to draw from: less is no text to train on.
_FEWEST = 50_000


def text() -> Tensor:
    """The bytes of Python's own reference topics, in alphabetical order, as int64.

    Raises:
        CannotCheckError: this Python came without them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    found = "\n".join(topics[name] for name in sorted(topics)).encode()
    if len(found) < _FEWEST:
        raise CannotCheckError("this Python has no pydoc_data.topics to train on; install its standard library in full")
    return torch.frombuffer(bytearray(found), dtype=torch.uint8).long()


def windows(source: Tensor, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows [batch, length] and the bytes that follow each of theirs."""
    starts = torch.randint(0, len(source) - length - 1, (batch,), generator=generator)
    at = starts[:, None] + torch.arange(length)
    return source[at], source[at + 1]
