"""A training step as one CUDA graph: launched in one go, where the host would be the bottleneck.

A step of a small network is hundreds of kernels of some microseconds each, which the host launches
more slowly than a GPU runs them. Captured once, they are replayed without it. What changes from
step to step is copied to where the graph reads it: all shapes stay the same, and nothing in the
step may wait for the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], Tensor]

WARM_UP = 3  # steps before capture, in which optimizers and libraries allocate what they keep


class CapturedStep:
    """Calls a step on the current GPU, from its fourth call on as a graph.

    All calls are real steps, in their order. Arguments must have the same shapes each time; so has
    what is returned, which is a copy.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Do one step."""
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._aside(*inputs)
        if self._graph is None:
            self._capture(*inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        assert self._graph is not None
        self._graph.replay()
        return self._output.clone()

    def _aside(self, *inputs: Tensor) -> Tensor:
        """Do a step on a stream of its own, as capture will."""
        main, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            output = self._step(*inputs)
        main.wait_stream(stream)
        return output

    def _capture(self, *inputs: Tensor) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._step(*self._inputs)
