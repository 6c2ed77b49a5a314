"""Throughput and latency of `lcm serve`: one client at a time, many at once, and a stop under load.

    python benchmarks/serve.py --seconds 60 --clients 50

The clients run in this process and share the machine with the server. docs/serve.md has results.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

WORDS = (
    *("cat", "dog", "boat", "house", "garden", "river", "girl", "boy"),
    *("old", "small", "red", "cold", "warm", "sleeps", "sings"),
)
TIMEOUT = 120.0


@dataclass
class Load:
    """What the clients of a run measured: seconds of each answer, and the counts of outcomes."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    duration: float = 0.0

    def row(self, name: str, clients: int) -> str:
        times = sorted(self.seconds)
        cells = (
            *(name, str(clients), f"{len(times) / self.duration:.1f}"),
            *(f"{1000 * times[int(share * (len(times) - 1))]:.0f}" for share in (0.5, 0.99)),
            str(sum(n for outcome, n in self.outcomes.items() if outcome != "200")),
        )
        return f"| {' | '.join(cells)} |"


def sentences() -> Iterator[str]:
    """Yield sentences that differ, so that no answer can be reused."""
    for n in itertools.count():
        chosen = [WORDS[(n * 7 + i * i) % len(WORDS)] for i in range(5)]
        yield f"The {' '.join(chosen)} number {n}."


def embedding(text: str) -> tuple[str, dict[str, object]]:
    return "/v1/embeddings", {"input": text, "model": "tiny", "encoding_format": "base64"}


def translation(text: str) -> tuple[str, dict[str, object]]:
    return "/translate", {"q": text, "source": "en", "target": "de"}


class Client:
    """One connection that is kept open, and one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, object]) -> str:
        """Return the status, "refused" without a connection, or "lost" without an answer."""
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                return "refused"
        reader, writer = self._streams
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        try:
            writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return "lost"
        if b"connection: close" in answer.lower():
            self.close()
        return answer.split(b" ", 2)[1].decode()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def run(
    port: int,
    clients: int,
    seconds: float,
    request: Callable[[str], tuple[str, dict[str, object]]],
    texts: Iterator[str],
    stop: Callable[[], None] | None = None,
) -> Load:
    """Load the server for `seconds`; with `stop`, call it then and go on until it refuses."""
    load, begin, stopped = Load(), time.monotonic(), False
    end = begin + seconds

    async def one() -> None:
        client = Client(port)
        while stop is not None or time.monotonic() < end:
            start = time.perf_counter()
            outcome = await asyncio.wait_for(client.post(*request(next(texts))), TIMEOUT)
            load.outcomes[outcome] += 1
            if outcome == "200":
                load.seconds.append(time.perf_counter() - start)
            elif stopped:
                break
        client.close()

    async def stopping() -> None:
        nonlocal stopped
        await asyncio.sleep(seconds)
        stopped = True
        if stop is not None:
            stop()

    await asyncio.gather(stopping(), *(one() for _ in range(clients)))
    load.duration = time.monotonic() - begin
    return load


@contextmanager
def server(space: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `lcm serve`; yield the process and its port."""
    call = [sys.executable, "-m", "lcm_cli", "serve", "--port", "0", "--space", space]
    log = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    assert log.stderr is not None
    port = 0
    for line in log.stderr:
        if found := re.search(r"listening on \S+:(\d+)/", line):
            port = int(found[1])
        if line.startswith("ready"):
            break
    # The log of the requests would fill the pipe.
    drain = subprocess.Popen(["cat"], stdin=log.stderr, stdout=subprocess.DEVNULL)
    try:
        yield log, port
    finally:
        log.terminate()
        log.wait()
        drain.wait()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--space", default="tiny")
    given = parser.parse_args()
    texts = sentences()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before", file=sys.stderr)
    print("| request | clients | answers/s | p50 ms | p99 ms | errors |")
    print("|---|---:|---:|---:|---:|---:|")
    with server(given.space) as (_, port):
        for name, request in (("embedding", embedding), ("translation", translation)):
            asyncio.run(run(port, given.clients, 2, request, texts))  # warm up
            for clients in (1, given.clients):
                load = asyncio.run(run(port, clients, given.seconds, request, texts))
                print(load.row(name, clients), flush=True)
    with server(given.space) as (process, port):
        load = asyncio.run(run(port, given.clients, 3, embedding, texts, process.terminate))
        counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(load.outcomes.items()))
        print(f"\nSIGTERM after 3 s: {counts}; exit code {process.wait()}")
    print(f"load {os.getloadavg()[0]:.1f} after", file=sys.stderr)


if __name__ == "__main__":
    main()
