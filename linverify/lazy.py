"""A mapping whose values are made when asked for: a relation looks at one or two of a kernel's eight results."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, each made once, on first access."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names = tuple(names)
        self._make = make
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
