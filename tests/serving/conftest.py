"""A server with the bundled space, in a thread."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from lcm_cli.search.index import Index
from lcm_cli.serving.gate import Gate
from lcm_cli.serving.requests import Limits
from lcm_cli.serving.server import Runner
from lcm_cli.serving.service import Service, load_service
from lcm_cli.space import Space, load_space


class Running:
    """A server that runs in a thread."""

    def __init__(self, load: Callable[[Gate], Service], key: str | None = None) -> None:
        self.gate = Gate("127.0.0.1", key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.runner = Runner(self.gate, self._listener, load)
        self.thread = threading.Thread(target=self.runner.run)
        self.thread.start()

    def close(self) -> None:
        self.runner.stop()
        self.thread.join()
        self._listener.close()


@contextmanager
def _running(load: Callable[[Gate], Service], key: str | None = None) -> Iterator[Running]:
    server = Running(load, key)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def running() -> Callable[..., Any]:
    """Start a server: running(load, key)."""
    return _running


@pytest.fixture(scope="session")
def space() -> Space:
    return load_space("tiny", device="cpu")


@pytest.fixture(scope="session")
def serve(space: Space) -> Callable[..., Any]:
    """Start a server that is ready: serve(key=..., model=..., and the fields of Limits)."""

    @contextmanager
    def start(
        key: str | None = None, model: str = "auto", indexes: Sequence[Index] = (), **limits: Any
    ) -> Iterator[Running]:
        def load(gate: Gate) -> Service:
            return load_service(space, model, Limits(**limits), gate.metrics, indexes)

        with _running(load, key) as server:
            while server.gate.service is None and server.thread.is_alive():
                server.thread.join(0.05)
            yield server

    return start


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Iterator[Running]:
    with serve() as started:
        yield started
