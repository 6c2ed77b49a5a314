"""A training step as one CUDA graph, launched at once, where the host would be the bottleneck.

A step of a small network is hundreds of kernels of a few microseconds each, which the host launches
more slowly than a GPU runs them. Captured once, they are replayed with a single launch. The inputs
of each step are copied into the buffers that the graph reads, so all shapes must stay the same, and
nothing in the step may wait for the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], Tensor]

WARM_UP = 3  # steps before capture, in which optimizers and libraries allocate their buffers


class CapturedStep:
    """Runs a step on the current GPU, as a CUDA graph from the fourth call on.

    Every call is a real step. Arguments must have the same shapes in each; the output is a copy.
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
            self._capture(*inputs)  # records the kernels without running them
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        assert self._graph is not None
        self._graph.replay()
        return self._output.clone()  # the next replay overwrites the graph's own output

    def _aside(self, *inputs: Tensor) -> Tensor:
        """Do a step on a side stream, as capture will: it is not allowed on the default stream."""
        main, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            output = self._step(*inputs)
        main.wait_stream(stream)
        return output

    def _capture(self, *inputs: Tensor) -> None:
        # The graph holds addresses, not tensors: these copies must live as long as it does.
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._step(*self._inputs)
