"""CUDA graphs that outlive a run of generation, for the next one of the same shapes."""

import weakref
from typing import Protocol, TypeVar

from torch import nn

LARGEST = 1 << 29  # bytes of keys and values that stay on the GPU after a run


class Fixed(Protocol):
    """The state of a run, whose tensors its graphs read and write."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""


S = TypeVar("S", bound=Fixed)


class Retained:
    """What the graphs of a model's last run need; empty in copies of the model."""

    def __init__(self) -> None:
        self._runs: list[tuple[object, weakref.ref[Fixed], Fixed]] = []

    def __reduce__(self) -> tuple[type["Retained"], tuple[()]]:
        return Retained, ()

    def put(self, key: object, owner: Fixed, parts: Fixed) -> None:
        """Retain `parts` of the state `owner` until another run's, unless they are too large."""
        self._runs = [(key, weakref.ref(owner), parts)] if parts.nbytes <= LARGEST else []

    def pop(self, key: object, kind: type[S]) -> S | None:
        """Return what was put under `key` if its owner is gone; only one caller gets it."""
        try:
            found, owner, parts = self._runs.pop()
        except IndexError:
            return None
        if found != key or owner() is not None:
            return None
        assert isinstance(parts, kind)
        return parts


def addresses(model: nn.Module) -> tuple[int, ...]:
    """Return where the weights are: graphs read them there."""
    parameters = tuple(part.data_ptr() for part in model.parameters())
    return parameters + tuple(part.data_ptr() for part in model.buffers())
