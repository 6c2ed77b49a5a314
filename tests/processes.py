"""Python processes for the tests that start at once: forks of one that has imported torch."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
LCM = "import runpy; runpy.run_module('lcm_cli', run_name='__main__')"


class Process:
    """A forked process, with the methods of subprocess.Popen that the tests use."""

    def __init__(self, server: "ForkServer", pid: int, pipes: list[IO[bytes] | None]) -> None:
        self._server, self.pid = server, pid
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[bytes, bytes]:
        """Return what is left of stdout and stderr once the process has ended."""
        errors: list[bytes] = []
        stderr = self.stderr or io.BytesIO()
        reader = threading.Thread(target=lambda: errors.append(stderr.read()))
        reader.start()
        output = self.stdout.read() if self.stdout else b""
        reader.join()
        self.wait()
        return output, errors[0]

    def close(self) -> None:
        """End the process."""
        self.kill()
        self.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class ForkServer:
    """A process that has imported torch and our modules, and forks processes on request."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        # Streams that could seek here would do so in the forked processes, whatever theirs are.
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes,
            )  # fmt: skip

    def start(
        self,
        *arguments: object,
        code: str = LCM,
        env: Mapping[str, str] = os.environ,
        limit: int = 0,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.DEVNULL,
        stderr: Any = subprocess.DEVNULL,
    ) -> Process:
        """Run `code`, by default `lcm`, with `arguments`; files are at most `limit` bytes long."""
        ours, theirs = zip(*map(_stream, range(3), (stdin, stdout, stderr)), strict=True)
        order = {"code": code, "arguments": [*map(str, arguments)], "env": {**env}, "limit": limit}
        pid = self.ask(order, theirs)
        for stream, file in zip((stdin, stdout, stderr), theirs, strict=True):
            if stream in (subprocess.DEVNULL, subprocess.PIPE):
                os.close(file)
        return Process(self, pid, list(ours))

    def ask(self, order: Mapping[str, Any], files: Sequence[int] = ()) -> Any:
        socket.send_fds(self._socket, [json.dumps(order).encode()], files)
        answer = self._socket.recv(64)
        assert answer, self._process.communicate()[1].decode()
        return json.loads(answer)

    def close(self) -> None:
        self._socket.close()
        self._process.communicate(timeout=60)


def _stream(number: int, wanted: Any) -> tuple[IO[bytes] | None, int]:
    """Return our end and their end of a standard stream."""
    if wanted == subprocess.PIPE:
        ends = os.pipe()
        ours, theirs = ends if number else ends[::-1]
        return os.fdopen(ours, "rb" if number else "wb"), theirs
    if wanted == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    return None, wanted if isinstance(wanted, int) else wanted.fileno()


def _import_all() -> None:
    """Import what the forked processes need, and what torch itself imports later."""
    import torch
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.distributed.fsdp

    from lcm_cli.app import main
    from lcm_cli.space import load_space
    from lcm_cli.training import fitting, loop, prepare  # noqa: F401
    from lcm_cli.training.data import batches  # noqa: F401

    torch.set_num_threads(1)
    load_space("tiny", device="cpu").encode(["Imports all modules."], "eng_Latn")
    with contextlib.suppress(ImportError):
        import torch.utils.tensorboard
    assert main and "huggingface_hub" not in sys.modules  # which reads its variables only once


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork processes until the tests are over; return its order in a forked process."""
    while True:
        message, files, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            return None
        order = json.loads(message)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                channel.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
            for file in files:
                os.close(file)
            if not answer:
                return order
        channel.send(json.dumps(answer).encode())


def _main() -> None:
    import gc

    _import_all()
    gc.freeze()
    order = _serve(socket.socket(fileno=int(sys.argv[1])))
    if order is None:
        return
    import resource

    if order["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["lcm", *order["arguments"]]
    exec(order["code"], {"__name__": "__main__"})


if __name__ == "__main__":
    _main()
