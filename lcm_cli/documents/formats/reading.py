"""Reading of documents in formats with a skeleton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from lcm_cli.documents.document import Document
from lcm_cli.documents.encoding import decode_text
from lcm_cli.documents.formats.skeleton import Passage, Skeleton
from lcm_cli.documents.formats.written import AsWritten, TextForm
from lcm_cli.documents.kinds import BINARY, NAMES, Kind, Source
from lcm_cli.errors import UsageError


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading documents from files.

    `kind` is the format of all files, None to detect each. `column` is the column of a table that
    holds the text. `whole` reads all text of a file as one document, for translation; otherwise
    only the article of a page is read, and each row of a table is a document.
    """

    kind: Kind | None = None
    column: str | None = None
    whole: bool = False


DETECT = ReadOptions()


def has_skeleton(kind: Kind, options: ReadOptions) -> bool:
    """Return whether this module reads a format. Raises UsageError for a stray column."""
    table = kind in ("csv", "tsv", "json", "jsonl")
    if options.column is not None and not table:
        raise UsageError(
            f"--column is for tables (CSV, TSV, JSON, JSON Lines), not for {NAMES[kind]}"
        )
    if kind == "jsonl":
        return options.column is not None
    return kind not in ("text", "parquet", "arrow", "safetensors", "audio")


def read_documents(
    file: BinaryIO, source: Source, kind: Kind, options: ReadOptions
) -> Iterator[Document]:
    """Yield the documents in a file of a format for which `has_skeleton` is true.

    Raises IntegrityError for a damaged file, UsageError for a missing package or column.
    """
    data = file.read()
    if kind in ("csv", "tsv", "json", "jsonl"):
        yield from _rows(data, source, kind, options)
        return
    if kind == "html" and not options.whole:
        passages = _article(data, source)
        yield _document(source, passages, None)
        return
    skeleton = _READERS[kind](data, source)
    if kind not in BINARY:
        skeleton = AsWritten(skeleton, TextForm.of(data))
    yield _document(source, list(skeleton.passages), skeleton)


def _document(source: Source, passages: list[Passage], skeleton: Skeleton | None) -> Document:
    text = "\n\n".join(passage.text for passage in passages)
    return Document(
        source.id, text=text, origin=source.name, passages=tuple(passages), skeleton=skeleton
    )


def _rows(data: bytes, source: Source, kind: Kind, options: ReadOptions) -> Iterator[Document]:
    from lcm_cli.documents.formats import tables

    decode_text(data, source.name)  # rejects other encodings
    text = data.decode("utf-8-sig")  # with its line ends, which cells may contain
    if kind == "jsonl" and source.suffix == ".json" and text.lstrip().startswith("["):
        kind = "json"
    suffix = source.suffix or f".{kind}"
    skeleton = tables.read(text, source.name, kind, suffix, options.column)
    if options.whole:
        yield _document(
            source, skeleton.passages, AsWritten(skeleton, TextForm(TextForm.of(data).mark))
        )
        return
    for cell in skeleton.cells:
        origin = f"{source.name} row {cell.row}"
        yield Document(f"{source.id}:{cell.row}", text=cell.text, origin=origin)


def _article(data: bytes, source: Source) -> list[Passage]:
    """Return the passages of a page's article, extracted by trafilatura if it is installed."""
    from lcm_cli.documents.formats import html

    text, _ = _page(data, source)
    try:
        import trafilatura
    except ImportError:
        return html.article(text)
    found = trafilatura.extract(text, include_comments=False, favor_precision=True)
    if not found:
        return html.article(text)
    return [Passage(line, n) for n, line in enumerate(filter(None, found.split("\n")))]


def _page(data: bytes, source: Source) -> tuple[str, str]:
    from lcm_cli.documents.formats import html

    return html.decode(data) or (decode_text(data, source.name), "utf-8")


def _markdown(data: bytes, source: Source) -> Skeleton:
    from lcm_cli.documents.formats import markdown

    return markdown.read(decode_text(data, source.name), source.suffix or ".md")


def _html(data: bytes, source: Source) -> Skeleton:
    from lcm_cli.documents.formats import html

    text, encoding = _page(data, source)
    return html.read(text, source.suffix or ".html", encoding)


def _subtitles(kind: Kind) -> Callable[[bytes, Source], Skeleton]:
    def read(data: bytes, source: Source) -> Skeleton:
        from lcm_cli.documents.formats import subtitles

        return subtitles.read(decode_text(data, source.name), f".{kind}", source.name)

    return read


def _word(data: bytes, source: Source) -> Skeleton:
    from lcm_cli.documents.formats import word

    return word.read(data, source.name)


def _book(data: bytes, source: Source) -> Skeleton:
    from lcm_cli.documents.formats import archive

    return archive.read_epub(data, source.name)


def _pdf(data: bytes, source: Source) -> Skeleton:
    with _extra("pypdf", "PDF"):
        from lcm_cli.documents.formats import pdf

        return pdf.read(data, source.name)


def _catalog(data: bytes, source: Source) -> Skeleton:
    with _extra("polib", "gettext catalogs"):
        from lcm_cli.documents.formats import gettext

        return gettext.Catalog(decode_text(data, source.name), source.name)


@contextmanager
def _extra(package: str, what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UsageError(
            f"reading {what} needs the package {package}",
            "install it: pip install 'lcm-cli[formats]'",
        ) from error


_READERS: dict[Kind, Callable[[bytes, Source], Skeleton]] = {
    "markdown": _markdown,
    "html": _html,
    "srt": _subtitles("srt"),
    "vtt": _subtitles("vtt"),
    "docx": _word,
    "epub": _book,
    "pdf": _pdf,
    "po": _catalog,
}
