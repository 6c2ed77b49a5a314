"""Recordings: audio files in any format that libsndfile reads, as mono samples at 16 kHz.

Samples are read and resampled block by block: ten hours of audio need no more memory than a minute.
"""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from lcm_cli.documents.document import Document
from lcm_cli.documents.kinds import Source
from lcm_cli.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Samples: TypeAlias = "NDArray[np.float32]"  # a string, since numpy is imported lazily
RATE = 16_000  # samples per second
_HUGE = 0x7F000000  # bytes
_XING = re.compile(rb"(?:Xing|Info)(.{4})(.{4})(.{4})", re.DOTALL)
_XING_EXACT = 0.99  # encoders count the header's own frame and trailing tags differently
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

        with _opened(self.file, self.name) as sound:
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
                raise _cut_off(self.name, frames / sound.samplerate, self.seconds)
            yield resample(np.zeros(0, np.float32), last=True)


def read_recording(file: BinaryIO, source: Source) -> Document:
    """Return the document of an audio file, whose samples are not read yet.

    Raises IntegrityError for a file that cannot be decoded or is empty, UsageError if the packages
    for audio are missing.
    """
    place = _seekable(file, source)
    with _opened(place, source.name) as sound:
        seconds = sound.frames / sound.samplerate
        kept = _kept(place, sound.format)
    if not seconds:
        raise IntegrityError(f"{source.name} has no samples in it", "record it again")
    if kept < 1:
        whole = seconds if sound.format == "MP3" else seconds / kept
        raise _cut_off(source.name, whole * kept, whole)
    recording = Recording(source.name, place, seconds)
    if not isinstance(place, Path):
        weakref.finalize(recording, place.close)
    return Document(source.id, origin=source.name, recording=recording)


def _frames(sound: Any) -> Iterator[NDArray[np.float32]]:
    """Yield the frames of an open file in blocks (S, channels).

    `SoundFile.blocks` trusts the announced length: past the actual end it repeats old samples.
    """
    while len(block := sound.read(_BLOCK * sound.samplerate, dtype="float32", always_2d=True)):
        yield block


def _seekable(file: BinaryIO, source: Source) -> Path | BinaryIO:
    """Return the file itself, or a copy of a stream, in which the decoder cannot seek."""
    if source.path is not None and source.path.is_file():
        return source.path
    copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (lives with the recording)
    copyfileobj(file, copy)
    return copy


def _kept(place: Path | BinaryIO, format: str) -> float:
    """Return the share of the bytes a WAV or MP3 header announces that is there, at most 1.

    libsndfile does not report the loss. Returns 1 if nothing is announced.
    """
    announced_size = {"WAV": _riff_size, "MP3": _mpeg_size}.get(format)
    if announced_size is None:
        return 1.0
    with place.open("rb") if isinstance(place, Path) else nullcontext(place) as file:
        announced = announced_size(file)
        size = file.seek(0, os.SEEK_END)
    least = announced * (_XING_EXACT if format == "MP3" else 1)
    return size / announced if size < least else 1.0


def _riff_size(file: BinaryIO) -> int:
    """Return the size of a WAV file by its header, 0 if unknown."""
    file.seek(4)
    announced = int.from_bytes(file.read(4), "little") + 8
    # A program that writes to a pipe does not know the size, and announces a huge one or none.
    return announced if announced < _HUGE else 0


def _mpeg_size(file: BinaryIO) -> int:
    """Return the size of an MP3 file by the Xing or Info header of its first frame, 0 if unknown.

    The header is a tag, 4 bytes of flags, then, if flagged, the number of frames and of bytes.
    """
    file.seek(0)
    tag = file.read(10)
    start = 0
    if tag.startswith(b"ID3"):  # its size: four bytes of 7 bits, without the 10 bytes of its head
        start = 10 + sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    found = _XING.search(file.read(64))
    if found is None:
        return 0
    flags, frames, count = (int.from_bytes(group) for group in found.groups())
    return start + (count if flags & 1 else frames) if flags & 2 else 0


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Any]:
    """Open a file with libsndfile. Raises as `read_recording` does."""
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


def _cut_off(name: str, seconds: float, announced: float) -> IntegrityError:
    return IntegrityError(
        f"{name} is cut off: it has {seconds:.1f} of {announced:.1f} s", "copy or record it again"
    )
