"""Functions that run as CUDA graphs, launched at once, where the host would be the bottleneck.

A pass through a network with few rows is hundreds of kernels of a few microseconds each, which the
host launches more slowly than a GPU runs them. Captured once, they are replayed with a single
launch, on the same addresses. So all shapes must stay the same, every tensor that the function
finds outside its arguments must stay where it is, and nothing in it may wait for the device.
"""

import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Replay = Callable[[], None]
Pool = Any  # torch has no public name for what it returns


class Captured:
    """Calls a function on a GPU, as a CUDA graph after `warm_up` calls.

    Every call has the effect of a real one. Arguments must have the same shapes in each; the output
    is a copy. The function runs in warm-up so that libraries allocate their buffers before capture.
    If it cannot be captured, it is called as it is, after a warning.
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
        _warn(error)


class Repeated(Generic[Result]):
    """Does the same work again and again on a GPU, as a CUDA graph from the second time on.

    The first time prepares libraries for capture. The work has no arguments: it reads tensors that
    stay where they are, and the next call overwrites its result. If it cannot be captured, it is
    done as it is, after a warning. Calls raise torch.cuda.OutOfMemoryError if there is no memory
    for the graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first, self._plain = True, False
        self._captured: tuple[Replay, Result] | None = None

    @property
    def captured(self) -> bool:
        """Whether the work is a CUDA graph by now."""
        return self._captured is not None

    def __call__(self, work: Callable[[], Result]) -> Result:
        """Do the work, which must be the same in every call. It is not kept."""
        if not self._first and not self._plain and self._captured is None:
            self._capture(work)  # records the kernels without running them
        self._first = False
        if self._captured is None:
            return aside(work, self._device)
        replay, result = self._captured
        replay()
        return result

    def _capture(self, work: Callable[[], Result]) -> None:
        try:
            self._captured = record(work, self._device, shared_pool(self._device))
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._plain = True
            _warn(error)


def _warn(error: RuntimeError) -> None:
    warnings.warn(f"slower, without a CUDA graph: {error}", stacklevel=2)


def available(device: torch.device) -> bool:
    """Return whether functions on `device` can be captured."""
    return device.type == "cuda"


def aside(work: Callable[[], Result], device: torch.device) -> Result:
    """Do `work` on the stream of captures, which cannot be on the default stream."""
    main, stream = torch.cuda.current_stream(device), _stream(device)
    with _alone_on(stream):
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            output = work()
        main.wait_stream(stream)
    return output


def record(
    work: Callable[[], Result], device: torch.device, pool: Pool | None = None
) -> tuple[Replay, Result]:
    """Capture `work` without doing it; return what does it, and the output that this overwrites.

    What `work` allocates lies in `pool`, by default in one of its own.
    """
    # Not by torch.cuda.graph, which empties the cache of memory each time: that takes longer than
    # the capture of a pass.
    graph, stream = torch.cuda.CUDAGraph(), _stream(device)
    with _alone_on(stream), torch.cuda.stream(stream):
        # The state of the generator, shared by all graphs, must not become an inference tensor,
        # which a later capture in training could not write.
        with torch.inference_mode(False):
            # Other threads may go on to allocate memory.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            output = work()
        except BaseException:
            with suppress(Exception):
                graph.capture_end()
            raise
        graph.capture_end()
    return graph.replay, output


def shared_pool(device: torch.device) -> Pool:
    """Return the memory that this thread's short-lived graphs share.

    Graphs that share it must be replayed one after the other. Memory that a graph frees in the
    course of its work, or with its end, goes to the next capture; that of a pool of its own would
    stay out of use until the GPU is full.
    """
    if device not in _own.pools:
        pool: Pool = torch.cuda.graph_pool_handle()
        # A pool is given up with its last graph, so one graph stays.
        anchor = record(lambda: torch.zeros(1, device=device), device, pool)
        _own.pools[device] = pool, anchor
    return _own.pools[device][0]


class _Own(threading.local):
    """What belongs to one thread, and ends with it: the memory of a pool is no one else's."""

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.pools: dict[torch.device, tuple[Pool, object]] = {}


_own = _Own()


def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for warm-up and capture, since libraries keep a buffer for each stream; of each thread,
    # since what is launched while a stream is captured becomes part of the graph.
    if device not in _own.streams:
        _own.streams[device] = torch.cuda.Stream(device)
    return _own.streams[device]


_locks: dict[torch.cuda.Stream, threading.RLock] = {}


def _alone_on(stream: torch.cuda.Stream) -> threading.RLock:
    # torch has 32 streams to give; a server may have more threads, which then share them.
    return _locks.setdefault(stream, threading.RLock())
