"""Captured functions: static buffers, and the plain path where capture fails."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from taping import tape_graphs
from torch import Tensor

from lcm_cli import cuda_graph
from lcm_cli.cuda_graph import Captured
from lcm_cli.training.trainers.cuda_graph import CapturedStep


class Counter:
    """A function that adds to a total, and counts how often Python runs it."""

    def __init__(self, device: str = "cpu") -> None:
        self.total, self.runs = torch.zeros(3, device=device), 0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.runs += 1
        self.total += x
        return self.total * y


def _check(captured: Captured, counter: Counter, device: str = "cpu") -> None:
    kept: list[tuple[Tensor, Tensor]] = []
    total = torch.zeros(3, device=device)
    for number in range(6):
        x, y = torch.full((3,), number + 1.0, device=device), torch.randn(3, device=device)
        total = total + x
        kept.append((captured(x, y), total * y))
    for ours, plain in kept:  # later calls overwrite no earlier result
        assert torch.equal(ours, plain)
    assert torch.equal(counter.total, total)


@pytest.mark.gpu
@pytest.mark.parametrize("warm_up", [0, 1, 3])
def test_every_call_has_its_effect_on_a_gpu(warm_up: int) -> None:
    counter = Counter("cuda")
    with torch.inference_mode():
        _check(Captured(counter, warm_up), counter, "cuda")
    assert counter.runs == warm_up + 1
    counter = Counter("cuda")  # a generator known to a graph of inference serves others as well
    _check(Captured(counter, warm_up), counter, "cuda")


@pytest.mark.gpu
def test_what_cannot_be_captured_is_called_plainly_on_a_gpu() -> None:
    counter = Counter("cuda")

    def refuses(x: Tensor, y: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            x.add(y)  # torch warns of empty graphs
            raise RuntimeError("not in a graph")
        return counter(x, y)

    with pytest.warns(UserWarning, match="without a CUDA graph: not in a graph"):
        _check(Captured(refuses), counter, "cuda")
    assert counter.runs == 6


def test_later_calls_replay_the_recorded_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes, counter = tape_graphs(monkeypatch), Counter()
    captured = Captured(counter, warm_up=2)
    x, y = torch.ones(3), torch.full((3,), 2.0)
    for number in range(5):
        captured(x + number, y)
    # Recording runs the operators once more, which a graph does not.
    assert (len(tapes), counter.runs, float(counter.total[0])) == (1, 3, 1 + 2 + 3 + 3 + 4 + 5)


def test_where_capture_fails_the_function_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    tape_graphs(monkeypatch)

    def fail(work: object, device: torch.device) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "record", fail)
    counter = Counter()
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        _check(Captured(counter), counter)
    assert counter.runs == 6
    step = CapturedStep(lambda x, y, z: x)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(RuntimeError, match="not permitted"):
        for _ in range(4):
            step(*torch.ones(3, 1))


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


def test_threads_that_share_a_stream_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the work of one would become part of the graph that the other captures."""
    shared, entered, leave = Stream(), threading.Event(), threading.Event()
    monkeypatch.setattr(cuda_graph, "_stream", lambda device: shared)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())

    def slow() -> None:
        entered.set()
        leave.wait(60)

    device = torch.device("cuda:0")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cuda_graph.aside, slow, device)
        assert entered.wait(60)
        second = pool.submit(cuda_graph.aside, lambda: first.done() or leave.is_set(), device)
        threading.Timer(0.2, leave.set).start()
        assert second.result()  # it began only after the first was allowed to end


def test_a_pool_ends_with_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph would keep the memory from all others, even if the GPU is full."""
    graphs: list[weakref.ref[Counter]] = []

    def record(*given: object) -> Counter:
        graph = Counter()
        graphs.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(cuda_graph, "record", record)
    device = torch.device("cuda:0")

    def use() -> bool:
        return cuda_graph.shared_pool(device) is cuda_graph.shared_pool(device)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(use).result()
        assert graphs[0]() is not None
    gc.collect()
    assert len(graphs) == 1 and graphs[0]() is None
