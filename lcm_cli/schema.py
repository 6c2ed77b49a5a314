"""Validation of TOML and JSON data as dataclasses, with errors that name key and value."""

import dataclasses
import json
import tomllib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_type_hints

from lcm_cli.errors import IntegrityError, LcmError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")


def nearest(word: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` candidates similar to `word`, the closest first; case is ignored."""
    spelled = {candidate.casefold(): candidate for candidate in candidates}
    return [spelled[match] for match in get_close_matches(word.casefold(), spelled, n)]


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 document", "2,000 documents"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def json_value(text: str | bytes, source: str, hint: str = "") -> Any:
    """Return the value of a JSON text, such as the content of the file `source`.

    Raises IntegrityError for text that is not UTF-8 or JSON, or is nested too deeply to be read.
    """
    return _value(json.loads, "JSON", text, source, hint)


def toml_table(text: str | bytes, source: str, hint: str = "") -> dict[str, Any]:
    """Return the table in a TOML text, such as the content of the file `source`.

    Raises IntegrityError as `json_value` does.
    """
    table: dict[str, Any] = _value(_toml, "TOML", text, source, hint)
    return table


def _toml(text: str) -> dict[str, Any]:
    table = tomllib.loads(text)
    str(table)  # fails for a number of thousands of digits, which may be written in hexadecimal
    return table


def _value(
    parser: Callable[[str], Any], form: str, text: str | bytes, source: str, hint: str
) -> Any:
    try:
        return parser(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError as error:
        raise IntegrityError(f"{source} is not valid {form}: nested too deeply", hint) from error
    except ValueError as error:  # also for bytes that are not UTF-8 and for numbers too long
        raise IntegrityError(f"{source} is not valid {form}: {error}", hint) from error


def parse(cls: type[T], data: Mapping[str, Any], source: str) -> T:
    """Return `data` as an instance of `cls`, a dataclass (pydantic's or the standard library's).

    Types are checked strictly, as in JSON: "12" is not a number, but an integer is a float. Raises
    IntegrityError with `source` (a file name), key and value for every key that is unknown, missing
    or of a wrong type, and the errors of the classes themselves, prefixed with `source` and table.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps([dict(data)], default=str)
        parsed: tuple[T] = _adapter(cast(Hashable, cls)).validate_json(text, strict=True)
        return parsed[0]
    except ValidationError as error:
        problems = error.errors(include_url=False)
        hints = dict.fromkeys(filter(None, (_hint(cls, problem) for problem in problems)))
        message = "; ".join(dict.fromkeys(map(_describe, problems)))
        raise IntegrityError(f"{source}: {message}", "; ".join(hints)) from error
    except LcmError as error:
        table = _refused_table(cls, data)
        # Some messages name their table.
        place = f"{source}: {table}" if table and table not in error.message else source
        raise type(error)(f"{place}: {error.message}", error.hint) from error
    except (ValueError, RecursionError) as error:  # from json: a number of thousands of digits
        raise IntegrityError(f"{source}: {error}") from error


@cache  # pydantic takes milliseconds to build one, and there are as many cards as checkpoints
def _adapter(cls: Any) -> "TypeAdapter[Any]":
    from pydantic import ConfigDict, TypeAdapter

    # pydantic cannot set the config of a given dataclass, but nested ones inherit the tuple's.
    return TypeAdapter(tuple[cls], config=ConfigDict(extra="forbid"))


def _refused_table(cls: type, data: Mapping[str, Any]) -> str:
    """Return the path of the table in `data` whose own class refuses it, "" for `data` itself."""
    from pydantic import ValidationError

    hints = get_type_hints(cls)
    for key, value in data.items():
        if not isinstance(value, Mapping):
            continue
        for kind in _dataclasses_in(hints.get(key)):
            with suppress(ValidationError):  # of another class in a union
                try:
                    _adapter(cast(Hashable, kind)).validate_json(json.dumps([value]), strict=True)
                except LcmError:
                    return ".".join(filter(None, (key, _refused_table(kind, value))))
    return ""


def _describe(problem: "ErrorDetails") -> str:
    path = problem["loc"][1:]
    key = ".".join(str(step) for step in path)
    if _is_unknown(problem):
        return f"unknown key {key!r}"
    if problem["type"].startswith("missing"):
        return f"missing key {key!r}"
    reason = problem["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    return f"{key} = {problem['input']!r}: {reason}" if key else reason


def _hint(cls: type, problem: "ErrorDetails") -> str:
    if not _is_unknown(problem):
        return ""
    *path, key = problem["loc"][1:]
    known = sorted(_fields_at(cls, path))
    near = nearest(str(key), known)
    return f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"


def _is_unknown(problem: "ErrorDetails") -> bool:
    return problem["type"] == "unexpected_keyword_argument"


def _fields_at(cls: type, path: Sequence[int | str]) -> set[str]:
    """Return the field names of the dataclasses that may occur at `path` below `cls`."""
    found = {cls}
    for step in path:
        # For a union, pydantic adds the name of the chosen class to the path.
        named = {kind for kind in found if kind.__name__ == step}
        found = named or {inner for kind in found for inner in _inside(kind, step)}
    return {field.name for kind in found for field in dataclasses.fields(kind)}


def _inside(kind: type, step: int | str) -> Iterator[type]:
    """Yield the dataclasses in the type of a field, or `kind` for a list index or a dict key."""
    hints = get_type_hints(kind)
    yield from _dataclasses_in(hints.get(str(step), kind))


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _dataclasses_in(inner)
