"""Documents that are zip archives of XML: EPUB books, and Word documents (see word.py).

The parts with text are replaced; every other member is copied.
"""

from __future__ import annotations

import io
import lzma
import posixpath
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import Protocol
from urllib.parse import unquote

from lxml import etree

from lcm_cli.documents.encoding import decode_text
from lcm_cli.documents.formats import html
from lcm_cli.documents.formats.skeleton import Pair, Passage
from lcm_cli.errors import IntegrityError

LARGEST_PART = 100 << 20  # bytes; a member that unpacks to more is treated as an attack
_LARGEST_RATIO = 200  # of unpacked to packed size
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError),
    *(RuntimeError, NotImplementedError),
)
_CONTAINER = "META-INF/container.xml"


class Part(Protocol):
    """A member with passages."""

    @property
    def passages(self) -> Sequence[Passage]: ...
    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes: ...


class Archive:
    """The skeleton of an archive; `parts` holds its members with text by name, in reading order."""

    is_text = False

    def __init__(self, data: bytes, parts: Mapping[str, Part], suffix: str) -> None:
        self.suffix = suffix
        self._data = data
        self._parts = parts
        found = (passage for part in parts.values() for passage in part.passages)
        self.passages = [replace(passage, paragraph=n) for n, passage in enumerate(found)]

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the archive with the text of its parts replaced."""
        rest = iter(sentences)
        new = {
            name: part.render(list(islice(rest, len(part.passages))), lang)
            for name, part in self._parts.items()
        }
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self._data)) as old, zipfile.ZipFile(out, "w") as written:
            for member in old.infolist():
                # With its own ZipInfo, a member keeps its order, date and compression.
                if member.filename in new:
                    written.writestr(member, new[member.filename])
                    continue
                with old.open(member) as source, written.open(copy(member), "w") as target:
                    shutil.copyfileobj(source, target)
        return out.getvalue()


def read_epub(data: bytes, name: str) -> Archive:
    """Return the skeleton of an EPUB book. Raises IntegrityError if it is damaged or protected."""
    with opened(data, name) as book:
        package = _package(book, name)
        protected = book.namelist().count("META-INF/encryption.xml")
        secret = member(book, "META-INF/encryption.xml", name) if protected else b""
        parts: dict[str, Part] = {}
        for path in _chapters(book, package, name):
            if path.encode() in secret:
                raise IntegrityError(
                    f"{name} is protected against copying", "use an unprotected copy"
                )
            source = member(book, path, name)
            text, encoding = html.decode(source) or (decode_text(source, path), "utf-8")
            parts[path] = html.read(text, ".xhtml", encoding)
    return Archive(data, parts, ".epub")


def opened(data: bytes, name: str) -> zipfile.ZipFile:
    """Open a zip archive. Raises IntegrityError if a member is damaged or unpacks to too much."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        size = sum(member.file_size for member in archive.infolist())
        if size > max(LARGEST_PART, _LARGEST_RATIO * len(data)):
            raise IntegrityError(f"{name} unpacks from {len(data):,} bytes to {size:,}")
        if broken := archive.testzip():
            raise zipfile.BadZipFile(f"bad checksum of {broken}")
    except _ZIP_ERRORS as error:
        raise _damaged(name, error) from error
    return archive


def member(archive: zipfile.ZipFile, path: str, name: str) -> bytes:
    """Return a member's bytes. Raises IntegrityError if it is damaged, missing or far too large."""
    try:
        with archive.open(path) as file:
            data = file.read(LARGEST_PART + 1)
    except KeyError as error:
        raise IntegrityError(f"{name} is damaged: it has no {path}", "copy it again") from error
    except _ZIP_ERRORS as error:
        raise _damaged(name, error) from error
    if len(data) > LARGEST_PART:
        raise IntegrityError(f"{path} in {name} unpacks to over {LARGEST_PART >> 20} MiB")
    return data


def parsed(data: bytes, path: str, name: str) -> etree._Element:
    """Return the root of an XML member. Raises IntegrityError if it is not well formed."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise IntegrityError(f"{name} is damaged: {path}: {error}", "copy it again") from error


def _damaged(name: str, error: Exception) -> IntegrityError:
    reason = str(error) or "it is cut off"  # EOFError says nothing
    return IntegrityError(f"{name} is damaged: {reason}", "copy or download it again")


def _package(book: zipfile.ZipFile, name: str) -> str:
    """Return the path of the package document, which lists the chapters."""
    root = parsed(member(book, _CONTAINER, name), _CONTAINER, name)
    for file in root.iter("{*}rootfile"):
        if path := file.get("full-path"):
            return str(path)
    raise IntegrityError(f"{name} is damaged: {_CONTAINER} names no package", "copy it again")


def _chapters(book: zipfile.ZipFile, package: str, name: str) -> list[str]:
    """Return the paths of the chapters in reading order, then those of the contents pages."""
    root = parsed(member(book, package, name), package, name)
    folder = posixpath.dirname(package)
    paths, extra = {}, []
    for item in root.iter("{*}item"):
        href = unquote(item.get("href", ""))
        path = posixpath.normpath(posixpath.join(folder, href))
        kind = item.get("media-type", "")
        if kind == "application/xhtml+xml":
            paths[item.get("id", "")] = path
        if kind == "application/x-dtbncx+xml" or "nav" in item.get("properties", "").split():
            extra.append(path)
    order = [paths[ref] for each in root.iter("{*}itemref") if (ref := each.get("idref")) in paths]
    known = set(book.namelist())
    return [path for path in dict.fromkeys([*order, *paths.values(), *extra]) if path in known]
