"""Running the server: its socket, loading in the background, and a graceful stop."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.serving.app import build_app
from lcm_cli.serving.gate import LOOPBACK, Gate
from lcm_cli.serving.service import Service

# After the signal to stop, connections that the system has already accepted are answered (503).
LINGER = 0.5  # seconds
CONNECTIONS = 2048
KEEP_ALIVE = 65  # seconds; longer than clients and proxies keep an idle connection


def serve(host: str, port: int, key: str | None, load: Callable[[Gate], Service]) -> None:
    """Answer requests until a signal ends the process; at first, `load` runs in the background.

    Raises UsageError if the address is not available, and whatever `load` raises.
    """
    with _listening(host, port) as listener:
        gate = Gate(host, key)
        if host not in LOOPBACK and key is None:
            console.warn(f"anyone who can reach {host} can use this server: consider --api-key")
        console.info(f"listening on {_url(listener)}; Ctrl-C stops the server")
        runner = Runner(gate, listener, load)
        runner.run()


class Runner:
    """A server on a socket that is already listening. `run` returns once it has stopped."""

    def __init__(
        self, gate: Gate, listener: socket.socket, load: Callable[[Gate], Service]
    ) -> None:
        self.gate, self._listener, self._load = gate, listener, load
        self._error: Exception | None = None
        # Uvicorn's messages would quote requests; the gate has its own log.
        log = logging.getLogger("uvicorn")
        log.addHandler(logging.NullHandler())
        log.propagate = False
        config = uvicorn.Config(
            build_app(gate), lifespan="off", ws="none", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=5, timeout_keep_alive=KEEP_ALIVE,
        )  # fmt: skip
        self.server = _Server(config, gate)

    def run(self) -> None:
        """Answer requests until `stop` is called or a signal arrives."""
        loading = threading.Thread(target=self._loaded, name="lcm-load", daemon=True)
        loading.start()
        asyncio.run(self.server.serve([self._listener]))
        if self.gate.service is not None:
            self.gate.service.close()
        if self._error is not None:
            raise self._error
        console.info("stopped")

    def stop(self) -> None:
        """Finish the accepted requests, refuse new ones, and let `run` return."""
        self.server.drain()

    def _loaded(self) -> None:
        start = time.monotonic()
        try:
            self.gate.service = self._load(self.gate)
            console.info(f"ready after {time.monotonic() - start:.1f} s")
        except Exception as error:
            self._error = error
            self.server.should_exit = True


class _Server(uvicorn.Server):
    """Uvicorn with a stop in two steps: requests are refused first, connections end afterwards."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self._gate = gate
        self._drained_at = 0.0

    def drain(self) -> None:
        if not self._gate.draining:
            self._drained_at = time.monotonic() + LINGER
            self._gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        idle = self._gate.active == 0 and time.monotonic() > self._drained_at
        if self._gate.draining and idle:
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.draining:  # the second signal
            self.should_exit = self.force_exit = True
        else:
            self.drain()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Uvicorn's own version raises the signals again at the end; the exit code would not be 0.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        old = {each: signal.signal(each, self.handle_exit) for each in signals}
        try:
            yield
        finally:
            for each, handler in old.items():
                signal.signal(each, handler)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Open a socket that listens. Raises UsageError if the address is not available."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on {host} port {port}: {reason}", "choose another: --port N"
        ) from error
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
