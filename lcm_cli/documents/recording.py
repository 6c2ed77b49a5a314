"""Recordings as mono samples at 16 kHz, from any format that libsndfile reads.

Samples are read and resampled block by block: ten hours of audio need no more memory than a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from lcm_cli.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Samples: TypeAlias = "NDArray[np.float32]"  # a string, since numpy is imported lazily
RATE = 16_000  # samples per second
_BLOCK = 10  # seconds that are read at a time
_CONVERT = "convert it: ffmpeg -i FILE NEW.wav"


@dataclass(frozen=True)
class Recording:
    """An audio file that was opened and checked; `seconds` is its duration by its header."""

    name: str  # for messages
    file: Path | BinaryIO
    seconds: float

    def blocks(self) -> Iterator[Samples]:
        """Yield the samples, float32 (S,) at 16 kHz, channels averaged, in consecutive blocks.

        Raises IntegrityError for a damaged file, one that ends early, and samples that are not
        finite.
        """
        import numpy as np

        with opened(self.file, self.name) as sound:
            resample = _resampler(sound.samplerate)
            frames = 0
            for block in _frames(sound):
                mono = block.mean(axis=1)
                if not np.isfinite(mono).all():
                    first = frames + int(np.argmin(np.isfinite(mono)))
                    raise IntegrityError(
                        f"{self.name} has samples that are not finite, from"
                        f" {first / sound.samplerate:.2f} s on",
                        "decode or record it again",
                    )
                frames += len(mono)
                yield resample(mono, last=False)
            # The length of an MP3 file without a Xing header is an estimate.
            if frames < sound.frames and sound.format != "MP3":
                raise cut_off(self.name, frames / sound.samplerate, self.seconds)
            yield resample(np.zeros(0, np.float32), last=True)


@contextmanager
def opened(file: Path | BinaryIO, name: str) -> Iterator[Any]:
    """Open a file with libsndfile; `name` is for messages.

    Raises IntegrityError for a file that cannot be decoded, UsageError if soundfile is missing.
    """
    try:
        import soundfile
    except ModuleNotFoundError as error:
        if error.name != "soundfile":
            raise
        raise _missing("soundfile") from error
    if not isinstance(file, Path):
        file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            yield sound
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".") or "it is damaged or cut off"
        raise IntegrityError(f"{name} cannot be decoded: {reason}", _CONVERT) from error


def _frames(sound: Any) -> Iterator[NDArray[np.float32]]:
    """Yield the frames of an open file in blocks (S, channels).

    `SoundFile.blocks` trusts the announced length: past the actual end it repeats old samples.
    """
    while len(block := sound.read(_BLOCK * sound.samplerate, dtype="float32", always_2d=True)):
        yield block


def _resampler(rate: int) -> Any:
    """Return a function that takes blocks of samples, and returns those at 16 kHz so far."""
    if rate == RATE:
        return lambda samples, last: samples
    try:
        import soxr
    except ModuleNotFoundError as error:
        if error.name != "soxr":
            raise
        raise _missing("soxr") from error
    return soxr.ResampleStream(rate, RATE, 1, dtype="float32").resample_chunk


def _missing(package: str) -> UsageError:
    return UsageError(
        f"reading audio needs the package {package}", "install it: pip install 'lcm-cli[speech]'"
    )


def cut_off(name: str, seconds: float, announced: float) -> IntegrityError:
    """Return the error of a recording that ends before its `announced` length, in seconds."""
    return IntegrityError(
        f"{name} is cut off: it has {seconds:.1f} of {announced:.1f} s", "copy or record it again"
    )
