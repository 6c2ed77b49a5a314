"""Reading of documents in every supported format, with the checks that later stages rely on."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import BinaryIO

from lcm_cli.documents.document import Document, SpaceInfo
from lcm_cli.documents.encoding import check_text
from lcm_cli.documents.formats.reading import DETECT, ReadOptions, has_skeleton, read_documents
from lcm_cli.documents.kinds import Source
from lcm_cli.documents.sources import OnError, expand_paths, opened
from lcm_cli.errors import IntegrityError, LcmError, UsageError


def read(
    paths: Sequence[str],
    options: ReadOptions | None = None,
    *,
    stdin: BinaryIO | None = None,
    on_error: OnError | None = None,
) -> Iterator[Document]:
    """Return the documents in `paths` for their text, without their concepts.

    `paths` may hold files, folders, globs, addresses of pages and - (`stdin`); an empty list means
    -. Each document has
    `text` or `sentences`. Missing and unsupported files are reported before this returns, other
    problems as the documents are consumed. A problem is passed to `on_error`, and reading continues
    with the next document or file; without `on_error` it is raised (NotFoundError, IntegrityError,
    UsageError).
    """
    report = on_error or _raise
    options = options or DETECT
    sources = list(expand_paths(paths or ["-"], report, options.kind))
    return _read(sources, stdin, report, options)


def read_concepts(
    paths: Sequence[str], *, stdin: BinaryIO | None = None, on_error: OnError | None = None
) -> tuple[SpaceInfo, Iterator[Document]]:
    """Return the space of the concepts in `paths`, and the documents, all with concepts.

    `paths` and `on_error` are as for `read`. Every document has finite concepts (S >= 1, D) of the
    same space, one for each sentence if it has sentences. Waits for the first document. Raises
    IntegrityError if there is none, UsageError for text that was not embedded.
    """
    from lcm_cli.documents.checks import space_of

    report = on_error or _raise
    sources = list(expand_paths(paths or ["-"], report))
    documents = _read_concepts(sources, stdin, report)
    first = next(documents, None)
    if first is None or first.concepts is None:
        names = ", ".join(paths) or "stdin"
        raise IntegrityError(f"there are no documents with concepts in {names}")
    return space_of(first), chain([first], documents)


def read_any(
    paths: Sequence[str],
    options: ReadOptions | None = None,
    *,
    stdin: BinaryIO | None = None,
    on_error: OnError | None = None,
) -> Iterator[Document]:
    """Return the documents in `paths` with their concepts, or with their text if they have none.

    `paths` and `on_error` are as for `read`. Concepts are finite, (S >= 1, D), and one for each
    sentence if the document has sentences.
    """
    report = on_error or _raise
    options = options or DETECT
    sources = list(expand_paths(paths or ["-"], report, options.kind))
    return _read_any(sources, stdin, report, options)


def read_source(
    source: Source, concepts: bool, stdin: BinaryIO | None, options: ReadOptions = DETECT
) -> Iterator[Document | LcmError]:
    """Yield the documents of a source, unchecked, and an error in place of each broken one."""
    with opened(source, stdin) as (file, kind):
        if has_skeleton(kind, options):
            yield from read_documents(file, source, kind, options)
        elif kind == "text":
            from lcm_cli.documents.text import read_text

            yield from read_text(file, source)
        elif kind == "jsonl":
            from lcm_cli.documents.text import read_jsonl

            yield from read_jsonl(file, source, concepts)
        elif kind == "audio":
            from lcm_cli.documents.formats.audio import read_recording

            yield read_recording(file, source)
        elif kind == "safetensors":
            from lcm_cli.documents.tensors import read_safetensors

            yield from read_safetensors(file, source, concepts)
        else:
            from lcm_cli.documents import arrow

            reader = arrow.read_parquet if kind == "parquet" else arrow.read_arrow
            yield from reader(file, source, concepts)


def _raise(error: LcmError) -> None:
    raise error


def _read(
    sources: list[Source], stdin: BinaryIO | None, report: OnError, options: ReadOptions
) -> Iterator[Document]:
    for document in _documents(sources, False, stdin, report, options):
        document.concepts = document.space = None
        for part in (document.target, document.plans):
            if part is not None:
                part.concepts = None
        try:
            _check_has_text(document)
        except LcmError as error:
            report(error)
            continue
        yield document


def _read_any(
    sources: list[Source], stdin: BinaryIO | None, report: OnError, options: ReadOptions
) -> Iterator[Document]:
    for document in _documents(sources, True, stdin, report, options):
        try:
            if document.concepts is None:
                _check_has_text(document)
            else:
                from lcm_cli.documents.checks import check_concepts

                check_concepts(document)
        except LcmError as error:
            report(error)
            continue
        yield document


def _read_concepts(
    sources: list[Source], stdin: BinaryIO | None, report: OnError
) -> Iterator[Document]:
    from lcm_cli.documents.checks import check_concepts, space_of

    space = None
    for document in _documents(sources, True, stdin, report, DETECT):
        try:
            if document.concepts is None and (document.text or document.recording):
                raise _not_embedded(document)
            check_concepts(document, space)
        except LcmError as error:
            report(error)
            continue
        space = space or space_of(document)
        yield document


def _documents(
    sources: list[Source],
    concepts: bool,
    stdin: BinaryIO | None,
    report: OnError,
    options: ReadOptions,
) -> Iterator[Document]:
    """Yield the documents of all sources, passing problems to `report`."""
    for source in sources:
        empty = True
        for item in _documents_and_errors(source, concepts, stdin, options):
            empty = False
            if isinstance(item, LcmError):
                report(item)
            else:
                yield item
        if empty:
            report(IntegrityError(f"{source.name} has no documents in it"))


def _documents_and_errors(
    source: Source, concepts: bool, stdin: BinaryIO | None, options: ReadOptions
) -> Iterator[Document | LcmError]:
    """Yield what `read_source` yields, then the error that ended it, if any."""
    try:
        yield from read_source(source, concepts, stdin, options)
    except LcmError as error:
        yield error


def _check_has_text(document: Document) -> None:
    if document.recording is not None:
        return
    if not document.text.strip() and not any(map(str.strip, document.sentences)):
        raise IntegrityError(
            f"{document.label} has no text in it",
            "if it holds concepts, decode them: lcm decode FILE --to LANG",
        )
    for text in (document.text, *document.sentences):
        check_text(text, document.label)
    for part in (document.target, document.plans):
        if part is not None:
            _check_has_text(part)


def _not_embedded(document: Document) -> UsageError:
    what = "text" if document.recording is None else "a recording"
    return UsageError(
        f"{document.label} is {what}, not concepts", "embed it first: lcm embed FILE -o NEW.parquet"
    )
