"""Audio files: a document whose text is still to be heard."""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from contextlib import nullcontext
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO, cast

from lcm_cli.documents.document import Document
from lcm_cli.documents.kinds import Source
from lcm_cli.documents.recording import Recording, cut_off, opened
from lcm_cli.errors import IntegrityError

_HUGE = 0x7F000000  # bytes
_XING = re.compile(rb"(?:Xing|Info)(.{4})(.{4})(.{4})", re.DOTALL)
_XING_EXACT = 0.99  # encoders count the header's own frame and trailing tags differently


def read_recording(file: BinaryIO, source: Source) -> Document:
    """Return the document of an audio file, whose samples are not read yet.

    Raises IntegrityError for a file that cannot be decoded or is empty, UsageError if the packages
    for audio are missing.
    """
    place = _seekable(file, source)
    with opened(place, source.name) as sound:
        seconds = sound.frames / sound.samplerate
        kept = _kept(place, sound.format)
    if not seconds:
        raise IntegrityError(f"{source.name} has no samples in it", "record it again")
    if kept < 1:
        whole = seconds if sound.format == "MP3" else seconds / kept
        raise cut_off(source.name, whole * kept, whole)
    recording = Recording(source.name, place, seconds)
    if not isinstance(place, Path):
        weakref.finalize(recording, place.close)
    return Document(source.id, origin=source.name, recording=recording)


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
