"""Translations by a function of the sentence, through the same path as `lcm translate`."""

from collections.abc import Callable
from pathlib import Path

from lcm_cli.documents import Document, read
from lcm_cli.documents.formats.reading import ReadOptions
from lcm_cli.pipeline import prepare_documents


def read_whole(path: Path, column: str | None = None) -> Document:
    """Return the document in a file, as a translator reads it."""
    (document,) = read([str(path)], ReadOptions(column=column, whole=True))
    return document


def translate(document: Document, change: Callable[[str], str], lang: str = "eng_Latn") -> bytes:
    """Return the file of a document with each sentence replaced by `change(sentence)`."""
    prepared = prepare_documents(document, ["eng_Latn"], "here", "eng_Latn")
    skeleton = prepared.skeleton()
    assert skeleton is not None
    return prepared.render(skeleton, [change(each) for each in prepared.document.sentences], lang)


def translated(
    path: Path,
    change: Callable[[str], str] = str,
    lang: str = "eng_Latn",
    column: str | None = None,
) -> bytes:
    """Return the translation of a file."""
    return translate(read_whole(path, column), change, lang)
