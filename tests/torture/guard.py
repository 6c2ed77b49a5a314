"""Attempts in forked workers, so that an input which ends or blocks a process is found.

The worker reports the memory that each attempt adds to the process at its peak (Linux).
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS = 5.0
MEMORY = 64 << 20


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt: "accepted", "refused", or a description of the fault."""

    number: int
    result: str
    message: str = ""  # of the error that refused it

    @property
    def is_fault(self) -> bool:
        return self.result not in ("accepted", "refused")


def guarded(
    numbers: Sequence[int], attempt: Callable[[int], tuple[str, str, int]]
) -> Iterator[Outcome]:
    """Yield the outcome of `attempt` on each of `numbers`.

    `attempt` returns a result, a message and the size of the input. A worker that dies or takes
    longer than SECONDS is replaced.
    """
    done = 0
    while done < len(numbers):
        receiver, sender = os.pipe()
        if not (worker := os.fork()):
            os.close(receiver)
            _work(numbers[done:], attempt, sender)
        os.close(sender)
        with os.fdopen(receiver) as lines:
            for line in lines:
                done += 1
                yield Outcome(**json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if done < len(numbers):
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            hang = f"still busy after {SECONDS:.0f} s"
            yield Outcome(numbers[done], hang if name == "SIGALRM" else f"ended by {name}")
            done += 1


def _work(
    numbers: Sequence[int], attempt: Callable[[int], tuple[str, str, int]], sender: int
) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even within a C library
    try:
        for number in numbers:
            before = _reset_peak()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            result, message, size = attempt(number)
            signal.setitimer(signal.ITIMER_REAL, 0)
            grown = _memory("VmHWM") - before
            if grown > 2 * size + MEMORY:
                result = f"needs {grown >> 20} MiB for {size:,} bytes"
            line = json.dumps(asdict(Outcome(number, result, message))) + "\n"
            os.write(sender, line.encode())
    except BaseException:
        os._exit(70)
    os._exit(0)


def _reset_peak() -> int:
    """Reset the peak of resident memory and return what is resident now; 0 except on Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 1 << 60
    return _memory("VmRSS")


def _memory(name: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10
