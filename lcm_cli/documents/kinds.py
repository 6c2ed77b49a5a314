"""Detection of the format of a file or stream of documents, by its content, then by its name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcm_cli.errors import IntegrityError

Kind = Literal["text", "jsonl", "parquet", "arrow", "safetensors"]

HEAD = 4096  # bytes of a file that are examined
STREAM_HEAD = 16  # bytes of a stream: its writer may pause long after the first few

NAMES: dict[Kind, str] = {
    "text": "text",
    "jsonl": "JSON Lines",
    "parquet": "Parquet",
    "arrow": "Arrow IPC",
    "safetensors": "safetensors",
}
_SUFFIXES: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".safetensors": "safetensors",
}
_UNPACK = "unpack it first: {} FILE"
_FOREIGN = (  # (first bytes, name of the format, hint)
    (b"%PDF", "a PDF", "extract its text first: pdftotext FILE"),
    (b"PK\x03\x04", "a zip archive or an office document", "save its text in a .txt file"),
    (b"\xd0\xcf\x11\xe0", "an office document", "save its text in a .txt file"),
    (b"{\\rtf", "an RTF document", "save its text in a .txt file"),
    (b"\x1f\x8b", "packed with gzip", _UNPACK.format("gunzip")),
    (b"\xfd7zXZ\x00", "packed with xz", _UNPACK.format("unxz")),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK.format("unzstd")),
    (b"BZh", "packed with bzip2", _UNPACK.format("bunzip2")),
    (b"\x93NUMPY", "a NumPy array", "convert it to a format listed in docs/formats.md"),
    (b"\x89HDF", "an HDF5 file", "convert it to a format listed in docs/formats.md"),
    (b"SQLite format 3\x00", "an SQLite database", ""),
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"GIF8", "a GIF image", ""),
    (b"RIFF", "a media file", ""),
    (b"ID3", "an MP3 file", ""),
    (b"\x7fELF", "a program", ""),
)
# Control characters that text does not contain. NUL is one of them, although UTF-16 is full of it.
_CONTROL = bytes([*range(9), *range(14, 27), *range(28, 32), 127])


@dataclass(frozen=True)
class Source:
    """One file or stream of documents."""

    name: str  # for messages
    id: str  # of its document if that has no id, else the first part of such ids
    path: Path | None = None  # None: standard input
    kind: Kind | None = None  # None: a stream, whose format is detected when it is opened


def sniff(head: bytes, name: str, suffix: str = "") -> Kind:
    """Return the format of a file or stream that begins with `head`.

    `suffix` is the suffix of its name, "" for a stream. Raises IntegrityError if `head` is empty,
    is in an unsupported format, or is not in the binary format that `suffix` implies.
    """
    kind = _kind_by_magic(head)
    if kind is not None:
        return kind
    implied = _SUFFIXES.get(suffix.lower())
    if not head:
        raise IntegrityError(f"{name} is empty", "check the command that wrote it")
    if implied not in (None, "text", "jsonl"):
        raise IntegrityError(
            f"{name} is not {NAMES[implied]} data, in spite of its name",
            "it is damaged or in another format: write it again, or rename it",
        )
    _refuse_foreign(head, name)
    if implied is not None:
        return implied
    return "jsonl" if re.match(rb'(\xef\xbb\xbf)?\s*\{\s*"', head) else "text"


def _kind_by_magic(head: bytes) -> Kind | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"\xff\xff\xff\xff", b"ARROW1")):
        return "arrow"
    # The length of the header in 8 bytes, then a JSON object. Eight characters of text, read as a
    # length, would be far larger.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    return None


def _refuse_foreign(head: bytes, name: str) -> None:
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            raise IntegrityError(f"{name} is {what}, not a document", hint)
    controls = len(head) - len(head.translate(None, _CONTROL))
    if controls > 0.05 * len(head) and not _may_be_utf16(head):
        raise IntegrityError(f"{name} is binary data, not a document")


def _may_be_utf16(head: bytes) -> bool:
    """Return whether to leave `head` to the text decoder, whose error suggests a conversion."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return True
    zeros = sorted(head[side::2].count(0) / max(1, len(head) // 2) for side in (0, 1))
    return zeros[1] > 0.4 and zeros[0] < 0.1
