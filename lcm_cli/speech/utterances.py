"""Utterances: the pieces of a recording between its pauses, found by voice activity.

Silero's detector gives the probability of speech for each window of 32 ms; an utterance ends at a
pause, and one that would be too long is cut where speech is least likely.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lcm_cli.documents.recording import RATE, Samples
from lcm_cli.errors import UsageError

LONGEST = 30.0  # seconds of an utterance, at most
WINDOW = 512  # samples that the detector judges at a time
# Probabilities from which speech begins, and down to which it lasts: as in Silero's own code, a
# lower one, so that speech near the threshold is not broken up.
_BEGINS, _LASTS = 0.5, 0.35
PAUSE = 0.22  # seconds without speech that end an utterance: see docs/speech.md
_MARGIN = 0.1  # seconds kept before and after the speech
_SHORTEST = 0.1  # seconds of speech, without margins, below which a noise is not an utterance

Detector = Callable[[Samples], float]


@dataclass(frozen=True)
class Utterance:
    """A piece of a recording: its samples, mono at 16 kHz, and its times in seconds."""

    start: float
    end: float
    samples: Samples


def utterances(blocks: Iterable[Samples], longest: float = LONGEST) -> Iterator[Utterance]:
    """Yield the utterances in consecutive blocks of samples, each of at most `longest` seconds.

    Only the current utterance is held in memory. Raises UsageError if the package silero-vad is
    not installed.
    """
    cutter = Cutter(longest)
    detect = load_detector()
    for window in _windows(blocks):
        padded = np.pad(window, (0, WINDOW - len(window)))
        yield from cutter.add(window, detect(padded))
    yield from cutter.finish()


class Cutter:
    """Collects windows of samples, and cuts utterances from them."""

    def __init__(self, longest: float, pause: float = PAUSE) -> None:
        self._most = max(2, int(longest * RATE / WINDOW))  # windows
        self._pause = round(pause * RATE / WINDOW)
        self._margin = round(_MARGIN * RATE / WINDOW)
        self._shortest = _SHORTEST * RATE / WINDOW
        self._windows: list[Samples] = []  # kept: a margin of silence, or the current utterance
        self._speech: list[float] = []  # the probability of each
        self._first = 0  # number of the first kept window
        self._last: int | None = None  # the last one with speech; None in silence

    def add(self, window: Samples, probability: float) -> Iterator[Utterance]:
        """Add a window; yield an utterance if one ends."""
        self._windows.append(window)
        self._speech.append(probability)
        count = len(self._windows)
        if self._last is None:  # silence, of which a margin is kept
            if probability >= _BEGINS:
                self._last = count - 1
            elif count > self._margin:
                self._drop(1)
        elif probability >= _LASTS:
            self._last = count - 1
        # A pause ends the utterance; the margin behind its speech is still part of it.
        elif count - 1 - self._last >= self._pause:
            yield from self._cut(min(count, self._last + 1 + self._margin))
        if self._last is not None and len(self._windows) >= self._most:
            # In the second half, so that neither piece is short, after the least likely speech.
            half = len(self._windows) // 2
            end = half + 1 + int(np.argmin(self._speech[half:-1]))
            yield from self._cut(end, within_speech=True)

    def finish(self) -> Iterator[Utterance]:
        """Yield the last utterance, if the recording ends in one."""
        if self._last is not None:
            yield from self._cut(min(len(self._windows), self._last + 1 + self._margin))

    def _cut(self, end: int, *, within_speech: bool = False) -> Iterator[Utterance]:
        """Yield the first `end` windows as an utterance, and drop them.

        `within_speech` cuts an utterance in two: the windows left continue it.
        """
        spoken = sum(probability >= _LASTS for probability in self._speech[:end])
        if spoken >= self._shortest:
            samples = np.concatenate(self._windows[:end])
            start = self._first * WINDOW / RATE
            yield Utterance(start, start + len(samples) / RATE, samples)
        self._drop(end)
        # The windows left count as speech, or else are a margin before the next speech.
        if within_speech:
            self._last = max(0, len(self._windows) - 1)
        else:
            self._last = None
            self._drop(max(0, len(self._windows) - self._margin))

    def _drop(self, count: int) -> None:
        del self._windows[:count], self._speech[:count]
        self._first += count


def _windows(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """Yield windows of `WINDOW` samples; the last one may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        samples = np.concatenate([rest, block])
        whole = len(samples) // WINDOW * WINDOW
        yield from samples[:whole].reshape(-1, WINDOW)
        rest = samples[whole:]
    if len(rest):
        yield rest


def load_detector() -> Detector:
    """Return Silero's detector, which remembers the windows before."""
    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad
    except ModuleNotFoundError as error:
        if error.name != "silero_vad":
            raise
        raise UsageError(
            "finding utterances needs the package silero-vad",
            "install it: pip install 'lcm-cli[speech]'",
        ) from error
    finally:
        torch.set_num_threads(threads)  # the package sets it to 1
    model = load_silero_vad()

    def detect(window: NDArray[np.float32]) -> float:
        with torch.inference_mode():
            return float(model(torch.from_numpy(np.ascontiguousarray(window)), RATE))

    return detect
