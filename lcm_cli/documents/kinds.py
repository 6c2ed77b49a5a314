"""Detection of the format of a file or stream of documents by its content, then its name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcm_cli.errors import IntegrityError

Kind = Literal[
    "text",
    "markdown",
    "html",
    "srt",
    "vtt",
    "docx",
    "epub",
    "pdf",
    "csv",
    "tsv",
    "json",
    "po",
    "jsonl",
    "parquet",
    "arrow",
    "safetensors",
    "audio",
]

HEAD = 4096  # bytes of a file that are examined
STREAM_HEAD = 16  # bytes of a stream: its writer may pause long after the first few

NAMES: dict[Kind, str] = {
    "text": "text",
    "markdown": "Markdown",
    "html": "HTML",
    "srt": "SubRip",
    "vtt": "WebVTT",
    "docx": "a Word document",
    "epub": "an EPUB book",
    "pdf": "PDF",
    "csv": "CSV",
    "tsv": "TSV",
    "json": "JSON",
    "po": "a gettext catalog",
    "jsonl": "JSON Lines",
    "parquet": "Parquet",
    "arrow": "Arrow IPC",
    "safetensors": "safetensors",
    "audio": "an audio file",
}
BINARY: tuple[Kind, ...] = ("docx", "epub", "pdf", "parquet", "arrow", "safetensors", "audio")
_SUFFIXES: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".srt": "srt",
    ".vtt": "vtt",
    ".docx": "docx",
    ".epub": "epub",
    ".pdf": "pdf",
    ".csv": "csv",
    ".tsv": "tsv",
    ".po": "po",
    ".pot": "po",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".safetensors": "safetensors",
    **dict.fromkeys((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"), "audio"),
}
# Unsupported formats whose markup would be read as words, by suffix, with a hint.
_AS_TEXT = "or add --format text to read it as it is"
_UNREAD: dict[str, str] = {
    **dict.fromkeys((".ass", ".ssa", ".ttml"), f"convert it: ffmpeg -i FILE NEW.srt, {_AS_TEXT}"),
    **dict.fromkeys((".tex", ".rst", ".org"), f"convert it: pandoc FILE -o NEW.md, {_AS_TEXT}"),
    **dict.fromkeys((".xml", ".svg", ".xlf", ".xliff"), "add --format html for its text"),
    ".ipynb": "convert it: jupyter nbconvert --to markdown FILE",
}
_UNPACK = "unpack it first: {} FILE"
_SOUND = "extract its sound: ffmpeg -i FILE NEW.wav"
_FOREIGN = (  # (first bytes, name of the format, hint)
    (b"PK\x03\x04", "a zip archive or an office document", "save it as .docx, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old office document", "save it as .docx"),
    (b"{\\rtf", "an RTF document", "save it as .docx"),
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
    (b"RIFF", "a media file", _SOUND),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video", _SOUND),
    (b"\xff\xf1", "AAC audio", _SOUND),
    (b"\xff\xf9", "AAC audio", _SOUND),
    (b"0&\xb2u", "a Windows Media file", _SOUND),
    (b"\x7fELF", "a program", ""),
)
# Audio that libsndfile reads: WAV, AIFF, FLAC, Ogg and MP3, the last with tags or without.
_AUDIO = re.compile(
    rb"(?:RIFF|RF64)....WAVE|FORM....AIF|fLaC|OggS|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", re.DOTALL
)
_EPUB = b"application/epub+zip"
_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html[\s>])", re.IGNORECASE)
_SUBRIP = re.compile(rb"\s*\d+[ \t]*\r?\n\d{1,2}:\d\d:\d\d[,.]\d")
# Control characters that text does not contain. NUL is one of them, although UTF-16 is full of it.
_CONTROL = bytes([*range(9), *range(14, 27), *range(28, 32), 127])


@dataclass(frozen=True)
class Source:
    """One file or stream of documents."""

    name: str  # for messages
    id: str  # of a document without an id of its own; the first part of the ids of several
    path: Path | None = None  # None: standard input, or a web page
    kind: Kind | None = None  # None: a stream, whose format is detected when it is opened
    url: str = ""  # of a web page
    span: tuple[int, int] | None = None  # of JSON Lines: only lines that begin in these bytes

    @property
    def suffix(self) -> str:
        """The suffix of its name in lower case."""
        return "" if self.path is None else self.path.suffix.lower()


def kind_of(suffix: str) -> Kind | None:
    """Return the format that a suffix names, None for any other."""
    return _SUFFIXES.get(suffix.lower())


def sniff(head: bytes, name: str, suffix: str = "") -> Kind:
    """Return the format of a file or stream that begins with `head`.

    `suffix` is the suffix of its name, "" for a stream. Raises IntegrityError if `head` is empty,
    is in an unsupported format, or is not in the binary format that `suffix` implies.
    """
    kind = _kind_by_magic(head)
    if kind is not None:
        return kind
    suffix = suffix.lower()
    implied = kind_of(suffix)
    if not head:
        raise IntegrityError(f"{name} is empty", "check the command that wrote it")
    if implied in BINARY:
        raise IntegrityError(
            f"{name} is not {_data(implied)}, despite its name",
            "it is damaged or in another format: write it again, or rename it",
        )
    _refuse_foreign(head, name)
    if suffix in _UNREAD:
        raise IntegrityError(f"{name} is not plain text", _UNREAD[suffix])
    if implied not in (None, "text"):
        return implied
    return _kind_by_text(head.removeprefix(b"\xef\xbb\xbf"), implied or "text")


def _data(kind: Kind) -> str:
    return NAMES[kind] if NAMES[kind].startswith("a") else f"{NAMES[kind]} data"


def _kind_by_text(head: bytes, implied: Kind) -> Kind:
    """Return the format of a text by its first bytes, or the one that its name implies."""
    if head.startswith(b"WEBVTT"):
        return "vtt"
    if _SUBRIP.match(head):
        return "srt"
    if _PAGE.match(head):
        return "html"
    return "jsonl" if re.match(rb'\s*\{\s*"', head) else implied


def _kind_by_magic(head: bytes) -> Kind | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"\xff\xff\xff\xff", b"ARROW1")):
        return "arrow"
    if head.startswith(b"%PDF-"):
        return "pdf"
    if _AUDIO.match(head):
        return "audio"
    if head.startswith(b"PK\x03\x04"):
        if _EPUB in head[:100]:
            return "epub"
        return "docx" if b"[Content_Types].xml" in head or b"word/" in head else None
    # The length of the header in 8 bytes, then a JSON object. Eight characters of text, read as a
    # length, would be far larger.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    return None


def _refuse_foreign(head: bytes, name: str) -> None:
    if head[4:8] == b"ftyp":
        raise IntegrityError(f"{name} is an MP4 file (video or AAC audio), not a document", _SOUND)
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
