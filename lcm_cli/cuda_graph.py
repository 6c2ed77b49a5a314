"""Functions that run as CUDA graphs, launched at once, where the host would be the bottleneck.

A pass through a network with few rows is hundreds of kernels of a few microseconds each, which the
host launches more slowly than a GPU runs them. Captured once, they are replayed with a single
launch, on the same addresses. So all shapes must stay the same, every tensor that the function
finds outside its arguments must stay where it is, and nothing in it may wait for the device.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

Work = Callable[[], Tensor]
Replay = Callable[[], None]
_LOCK = threading.Lock()  # of the stream below: what other threads launch there would be captured


class Captured:
    """Calls a function on a GPU, as a CUDA graph after `warm_up` calls.

    Every call has the effect of a real one. Arguments must have the same shapes in each; the output
    is a copy. The function runs in warm-up so that libraries allocate their buffers before capture.
    If it cannot be captured, it is called as it is.
    """

    def __init__(self, function: Callable[..., Tensor], warm_up: int = 1) -> None:
        self._function = function
        self._warm_up = warm_up
        self._plain = False
        self._replay: Replay | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Call the function."""
        if self._warm_up > 0:
            self._warm_up -= 1
            return aside(lambda: self._function(*inputs), inputs[0].device)
        if self._replay is None and not self._plain:
            try:
                self._capture(*inputs)  # records the kernels without running them
            except RuntimeError as error:
                self._give_up(error)
        if self._replay is None:
            return self._function(*inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        self._replay()
        return self._output.clone()  # the next replay overwrites the graph's own output

    def _capture(self, *inputs: Tensor) -> None:
        # The graph holds addresses, not tensors: these copies must live as long as it does.
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._replay, self._output = record(lambda: self._function(*self._inputs), inputs[0].device)

    def _give_up(self, error: RuntimeError) -> None:
        self._plain, self._inputs = True, ()


def available(device: torch.device) -> bool:
    """Return whether functions on `device` can be captured."""
    return device.type == "cuda"


def aside(work: Work, device: torch.device) -> Tensor:
    """Do `work` on the stream of captures, which cannot be on the default stream."""
    main, stream = torch.cuda.current_stream(device), _stream(device)
    stream.wait_stream(main)
    with _LOCK, torch.cuda.stream(stream):
        output = work()
    main.wait_stream(stream)
    return output


def record(work: Work, device: torch.device) -> tuple[Replay, Tensor]:
    """Capture `work` without doing it; return what does it, and the output that this overwrites."""
    # Not by torch.cuda.graph, which empties the cache of memory each time: that takes longer than
    # the capture of a pass.
    graph = torch.cuda.CUDAGraph()
    with _LOCK, torch.cuda.stream(_stream(device)):
        # The state of the generator, shared by all graphs, must not become an inference tensor,
        # which a later capture in training could not write.
        with torch.inference_mode(False):
            # Other threads may go on to allocate memory.
            graph.capture_begin(capture_error_mode="thread_local")
        try:
            output = work()
        except BaseException:
            with suppress(Exception):
                graph.capture_end()
            raise
        graph.capture_end()
    return graph.replay, output


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for warm-up and capture, since libraries keep a buffer for each stream.
    return torch.cuda.Stream(device)
