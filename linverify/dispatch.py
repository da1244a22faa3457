"""The base of modes that see every operation of torch."""

from torch.utils._python_dispatch import TorchDispatchMode


class Mode(TorchDispatchMode):
    """A dispatch mode that no compiler meets.

    torch keeps its own compiler away from other modes: it imports it, for seconds, and wraps each operation.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
