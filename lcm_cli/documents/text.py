"""Documents as text: plain text files of one document, and JSON Lines with one per line."""

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, BinaryIO, TypeGuard

from lcm_cli.documents.document import (
    Concepts,
    Document,
    SpaceInfo,
    check_alignment,
    plans_of,
    target_of,
)
from lcm_cli.documents.encoding import converting, decode_text, mostly_utf8
from lcm_cli.documents.formats.written import TextForm
from lcm_cli.documents.kinds import Source
from lcm_cli.errors import IntegrityError, LcmError

_TIMES = "a list of [start, end] in seconds"
_EXAMPLE = 'a line is an object such as {"id": "a", "text": "One. Two."} or {"sentences": ["One."]}'


BLOCK_BYTES = 1 << 20  # read at once to count lines
Line = tuple[int, str | LcmError]  # its number from 1, and its text or why it has none


def read_text(file: BinaryIO, source: Source) -> Iterator[Document]:
    """Yield the document in a text file.

    Raises IntegrityError if the file is not UTF-8, has only white space, or is a JSON array.
    """
    data = file.read()
    text = decode_text(data, source.name)
    if not text.strip():
        raise _blank(source.name, "text")
    if text.lstrip().startswith("[") and _are_records(items := _parsed(text)):
        raise _array(items, source.name)
    yield Document(source.id, text=text, origin=source.name, form=TextForm.of(data))


def read_jsonl(file: BinaryIO, source: Source, concepts: bool) -> Iterator[Document | LcmError]:
    """Yield the documents in a JSON Lines file, each as soon as its line arrives.

    A bad line is yielded as its error. Raises IntegrityError if the file is not UTF-8, is JSON in
    another form, or has only white space. Of a source with a span, only the lines that begin in it
    are read; they keep their numbers.
    """
    blank = source.span is None
    for number, line in _records(file, source):
        blank = False
        try:
            if isinstance(line, LcmError):
                raise line
            origin = f"{source.name} line {number}"
            yield _document(_object(line, origin), f"{source.id}:{number}", origin, concepts)
        except LcmError as error:
            yield error
    if blank:
        raise _blank(source.name, "documents")


def _records(file: BinaryIO, source: Source) -> Iterator[Line]:
    """Yield the lines of a source that are not blank."""
    if source.span is None:
        return one_per_line(_lines(file, source.name), source.name)
    start, end = source.span
    number, offset = _seek_line(file, start)
    lines = _lines(file, source.name, number, offset, end)
    # The form of the file can be recognized only at its beginning.
    return one_per_line(lines, source.name) if start == 0 else _not_blank(lines)


def one_per_line(lines: Iterator[Line], name: str) -> Iterator[Line]:
    """Yield the lines of JSON Lines that are not blank.

    Raises IntegrityError for a JSON array, or for an object spread over lines, as one error with
    the command that converts it. Waits for a second line only if the first is not an object.
    """
    lines = _not_blank(lines)
    head = list(islice(lines, 1))
    first = head[0][1] if head else None
    if isinstance(first, str) and not isinstance(_parsed(first), dict):
        head += islice(lines, 1)
        _refuse_other_forms(first, head[-1][1] if head[1:] else "", name)
    yield from chain(head, lines)


def _not_blank(lines: Iterator[Line]) -> Iterator[Line]:
    return (each for each in lines if isinstance(each[1], LcmError) or each[1].strip())


def _seek_line(file: BinaryIO, start: int) -> tuple[int, int]:
    """Move to the first line that begins at byte `start` or later; return its number and offset.

    All bytes before it are read, to count their lines.
    """
    if start == 0:
        return 1, 0
    number, left = 1, start - 1
    while left and (block := file.read(min(left, BLOCK_BYTES))):
        number += block.count(b"\n")
        left -= len(block)
    # Byte start - 1 ends the line before, or lies in a line that begins before `start`.
    skipped = file.readline()
    return number + 1, start - 1 + len(skipped)


def _lines(
    file: BinaryIO, name: str, first: int = 1, offset: int = 0, end: int | None = None
) -> Iterator[Line]:
    """Yield the lines of a file from its position on, line number `first` at byte `offset`.

    The last line is the last one that begins before byte `end`. Raises IntegrityError if the file
    is in another encoding.
    """
    utf8 = False
    for number, data in enumerate(file, start=first):
        if end is not None and offset >= end:
            return
        try:
            line = decode_text(data, name, offset, number, utf8)
            utf8 = utf8 or not line.isascii()
            yield number, line
        except IntegrityError as error:
            if not (utf8 or mostly_utf8(data)):
                raise
            yield number, error
        offset += len(data)


def _refuse_other_forms(first: str, second: str | LcmError, name: str) -> None:
    """Raise if JSON that begins with these two lines is not JSON Lines; there may be no second."""
    first, items = first.strip(), _parsed(first)
    if first.startswith("[") and (second == "" or items is None):
        raise _array(items, name)
    following = second.lstrip() if isinstance(second, str) else ""
    inside = first.endswith(("{", "[", ":")) or following.startswith((",", '"', "}", "]"))
    if first.startswith("{") and following and inside:
        raise IntegrityError(
            f"{name} is JSON spread over several lines, not JSON Lines (one object per line)",
            f"convert it: {converting('jq -c .', name, '.jsonl')}",
        )


def _array(items: list[Any] | None, name: str) -> IntegrityError:
    convert = 'jq -c ".[] | {text: .}"' if items and _is_string(items[0]) else 'jq -c ".[]"'
    return IntegrityError(
        f"{name} is a JSON array, not JSON Lines (one object per line)",
        f"convert it: {converting(convert, name, '.jsonl')}",
    )


def _are_records(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a JSON value is a list of objects or strings, which prose cannot be."""
    kinds = {type(item) for item in value} if isinstance(value, list) else set()
    return kinds in ({dict}, {str})


def _blank(name: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{name} has no {what} in it, only white space", "check the command that wrote it"
    )


def to_json(document: Document, *, concepts: bool = True) -> dict[str, Any]:
    """Return a document as an object for a line of JSON, without unknown or empty fields.

    Concepts are written as the shortest decimals that round to the same float16 or float32.
    """
    record: dict[str, Any] = {"id": document.id}
    for key in ("lang", "split", "text", "sentences", "paragraphs"):
        if value := getattr(document, key):
            record[key] = value
    if document.times:
        record["times"] = document.times
    target = document.target
    if target is not None and (target.sentences or target.text):
        record["target"] = target.sentences or target.text
    plans = document.plans
    if plans is not None and plans.sentences:
        record["plans"] = plans.sentences
    if not concepts or document.concepts is None:
        return record
    if document.space is not None:
        record |= {"space": document.space.name, "fingerprint": document.space.fingerprint}
    record["dtype"] = str(document.concepts.dtype)
    record["concepts"] = _numbers(document.concepts)
    if target is not None and target.concepts is not None:
        record["target_concepts"] = _numbers(target.concepts)
    if plans is not None and plans.concepts is not None:
        record["plan_concepts"] = _numbers(plans.concepts)
    return record


def _numbers(matrix: Concepts) -> list[list[float]]:
    # NumPy prints the shortest decimal of the dtype; astype(float) alone would turn the float16
    # nearest to 0.1 into 0.0999755859375.
    numbers: list[list[float]] = matrix.astype(str).astype(float).tolist()
    return numbers


def _parsed(line: str) -> Any:
    """Return the JSON value of a line, None if it is not valid."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _object(line: str, origin: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{origin} is not valid JSON: {error}",
            f"{_EXAMPLE}; to put each object on one line: jq -c . FILE",
        ) from error
    if not isinstance(record, dict):
        raise IntegrityError(f"{origin} is {type(record).__name__}, not an object", _EXAMPLE)
    return record


def _document(record: dict[str, Any], id: str, origin: str, concepts: bool) -> Document:
    def get(key: str, kind: str, fits: Callable[[Any], bool]) -> Any:
        value = record.get(key)
        if value is not None and not fits(value):
            raise IntegrityError(f"{origin}: {key!r} is {_shown(value)}, not {kind}", _EXAMPLE)
        return value

    own_id = get("id", "a string or whole number", lambda v: _is_string(v) or _is_integer(v))
    sentences = get("sentences", "a list of strings", lambda v: _is_list(v, _is_string))
    document = Document(
        id=id if own_id is None else str(own_id),
        lang=get("lang", "a string", _is_string) or "",
        text=get("text", "a string", _is_string) or "",
        sentences=sentences or [],
        paragraphs=get("paragraphs", "a list of numbers", lambda v: _is_list(v, _is_integer)) or [],
        origin=origin,
        split=get("split", "a string", _is_string) or "",
        times=[(start, end) for start, end in get("times", _TIMES, _is_times) or []],
    )
    target = get("target", "a string or a list of strings", _is_target)
    plans = get("plans", "a list of strings", lambda v: _is_list(v, _is_string))
    if not {"text", "sentences", "concepts"} & record.keys():
        keys = ", ".join(record) or "nothing"
        raise IntegrityError(
            f"{origin} has neither 'text' nor 'sentences'; it has {keys}", _EXAMPLE
        )
    if concepts and record.get("concepts") is not None:
        document.concepts = _matrix(record, "concepts", document)
        document.space = _space(record, document.concepts.shape[1])
    check_alignment(document, has_sentences=sentences is not None)
    document.target = _target(record, target, document, concepts)
    held = concepts and record.get("plan_concepts") is not None
    if plans or held:
        document.plans = plans_of(document.id, document.lang, origin, sentences=plans or [])
        if held:
            document.plans.concepts = _matrix(record, "plan_concepts", document.plans)
        check_alignment(document.plans)
    return document


def _target(
    record: dict[str, Any], given: str | list[str] | None, document: Document, concepts: bool
) -> Document | None:
    """Return the target that a line gives, None if it gives none or an empty one."""
    held = concepts and record.get("target_concepts") is not None
    if not given and not held:
        return None
    known = {"sentences": given} if isinstance(given, list) else {"text": given or ""}
    target = target_of(document.id, document.lang, document.origin, **known)
    if held:
        target.concepts = _matrix(record, "target_concepts", target)
    check_alignment(target)
    return target


def _matrix(record: dict[str, Any], key: str, document: Document) -> Concepts:
    import numpy as np

    dtype = record.get("dtype", "float32")
    if dtype not in ("float16", "float32"):
        raise IntegrityError(f"{document.label}: dtype {dtype!r} is not float16 or float32")
    try:
        matrix = np.array(record[key], dtype=float)
    except (ValueError, TypeError) as error:
        raise IntegrityError(
            f"{document.label}: its concepts are not lists of numbers of one width",
            "embed its sentences again: lcm embed FILE -o NEW.jsonl",
        ) from error
    if matrix.ndim != 2:
        raise IntegrityError(f"{document.label}: its concepts are not a list of lists of numbers")
    with np.errstate(over="ignore"):  # check_concepts reports values that become infinite
        return matrix.astype(dtype)


def _space(record: dict[str, Any], width: int) -> SpaceInfo | None:
    name, fingerprint = record.get("space"), record.get("fingerprint")
    if not isinstance(name, str) or not isinstance(fingerprint, str):
        return None
    return SpaceInfo(name, fingerprint, width)


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: object, fits: Callable[[object], bool]) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(map(fits, value))


def _is_times(value: object) -> bool:
    return _is_list(value, _is_span)


def _is_span(value: object) -> bool:
    return _is_list(value, lambda v: isinstance(v, float) or _is_integer(v)) and len(value) == 2


def _is_target(value: object) -> bool:
    return isinstance(value, str) or _is_list(value, _is_string)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
