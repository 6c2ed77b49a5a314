"""Attempts in forked workers, so that an input which ends or blocks a process is found.

The worker reports the memory that each attempt adds to the process at its peak (Linux).
"""

import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS = 5.0  # of the processor
BLOCKED = 60.0  # seconds, for an attempt that waits
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


_HANGS = {
    "SIGPROF": f"still busy after {SECONDS:.0f} s",
    "SIGALRM": f"still waiting after {BLOCKED:.0f} s",
}


def guarded(
    numbers: Sequence[int], attempt: Callable[[int], tuple[str, str, int]]
) -> Iterator[Outcome]:
    """Yield the outcome of `attempt` on each of `numbers`.

    `attempt` returns a result, a message and the size of the input. A worker that dies, or that
    works longer than SECONDS or waits longer than BLOCKED, is replaced.
    """
    done = 0
    while done < len(numbers):
        receiver, sender = os.pipe()
        with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            worker = os.fork()
        if not worker:
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
            yield Outcome(numbers[done], _HANGS.get(name, f"ended by {name}"))
            done += 1


def _work(
    numbers: Sequence[int], attempt: Callable[[int], tuple[str, str, int]], sender: int
) -> None:
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)  # ends the process, even within a C library
    try:
        for number in numbers:
            before = _reset_peak()
            _set_timers(SECONDS, BLOCKED)
            result, message, size = attempt(number)
            _set_timers(0, 0)
            grown = _memory("VmHWM") - before
            if grown > 2 * size + MEMORY:
                result = f"needs {grown >> 20} MiB for {size:,} bytes"
            line = json.dumps(asdict(Outcome(number, result, message))) + "\n"
            os.write(sender, line.encode())
    except BaseException:
        os._exit(70)
    os._exit(0)


def _set_timers(busy: float, blocked: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, busy)
    signal.setitimer(signal.ITIMER_REAL, blocked)


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
