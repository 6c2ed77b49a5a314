"""A stand-in for CUDA graphs on the CPU: the list of operators, run again on the same tensors."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lcm_cli import cuda_graph

# Operators that wait for the device, or copy from the host: a graph can contain neither.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "lift_fresh")


class Tape(TorchDispatchMode):
    """Records operators; `replay` runs them on the recorded tensors, as a graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).split(".")[1]
        assert name not in FORBIDDEN, f"{name} cannot be captured"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, _tensors(out)))
        return out

    def replay(self) -> None:
        """Run all operators; each writes its result where it was when recorded."""
        for func, args, kwargs, places in self.calls:
            for place, result in zip(places, _tensors(func(*args, **kwargs)), strict=True):
                if _storage(place) != _storage(result):  # neither a view nor changed in place
                    place.copy_(result)

    def kernels(self) -> Counter[str]:
        """Count the operators that compute something, by name; views launch nothing."""
        counts: Counter[str] = Counter()
        for func, args, kwargs, places in self.calls:
            given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
            name = str(func).split(".")[1]
            if name.endswith("_") or any(_storage(place) not in given for place in places):
                counts[name] += 1
        return counts

    def spoil(self) -> None:
        """Make all results invalid: recording a graph computes none."""
        for _, args, kwargs, places in self.calls:
            given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
            for place in places:
                if place.is_floating_point() and _storage(place) not in given:
                    place.fill_(torch.nan)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tape_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Capture on the CPU, on tapes; return the list of those recorded."""
    tapes: list[Tape] = []

    def record(work: Callable[[], Tensor], device: torch.device) -> tuple[Any, Tensor]:
        with Tape() as tape:
            output = work()
        tape.spoil()
        tapes.append(tape)
        return tape.replay, output

    monkeypatch.setattr(cuda_graph, "available", lambda device: True)
    monkeypatch.setattr(cuda_graph, "aside", lambda work, device: work())
    monkeypatch.setattr(cuda_graph, "record", record)
    return tapes
