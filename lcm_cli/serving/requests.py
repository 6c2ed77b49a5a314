"""Reading requests: the body, its fields, and the errors that a client sees."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from lcm_cli.errors import LcmError


@dataclass(frozen=True)
class Limits:
    """Limits that protect a server from requests that would occupy it for long."""

    body: int = 1 << 20  # bytes
    sentences: int = 2048  # in a request; times the number of languages to decode
    requests: int = 256  # accepted and not yet answered
    seconds: float = 120.0  # for a request


class RefusedError(Exception):
    """A refused request: the status, the message for the client, and further headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@contextmanager
def refusing(status: int = 400) -> Iterator[None]:
    """Turn an LcmError about the values of a request into a refusal.

    Their hints are for the command line, and are left out.
    """
    try:
        yield
    except LcmError as error:
        raise RefusedError(status, error.message) from error


class Fields:
    """The fields of a body. Methods raise RefusedError (400) for a value of the wrong kind."""

    def __init__(self, values: Mapping[str, Any], form: bool = False) -> None:
        self._values, self._form = values, form

    def only(self, *names: str) -> None:
        """Refuse fields that are not among `names`."""
        for name in self._values:
            if name not in names:
                known = ", ".join(names)
                raise RefusedError(400, f"unknown field {_shown(name)}; known are {known}")

    def get(self, name: str) -> Any:
        """Return the unchecked value of a field, None if it is missing."""
        return self._values.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string; without a default, the field is required."""
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise RefusedError(400, f"the field {name!r} is missing")
            return default
        return _text(name, value)

    def texts(self, name: str) -> list[str]:
        """Return a list of strings, also for a single string; [] if the field is missing."""
        value = self._values.get(name)
        if value is None:
            return []
        return [_text(name, each) for each in (value if isinstance(value, list) else [value])]

    def choice(self, name: str, among: Sequence[str]) -> str:
        """Return one of several strings; the default is the first."""
        value = self.text(name, among[0])
        if value not in among:
            raise RefusedError(400, f"{name!r} must be one of {', '.join(among)}")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean; False if it is missing."""
        value = self._values.get(name, False)
        if self._form and isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False, "": False}.get(value)
        if not isinstance(value, bool):
            raise RefusedError(400, f"{name!r} must be true or false")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`."""
        value = self._number(name)
        if value is None:
            return default
        if not float(value).is_integer() or not low <= value <= high:
            raise RefusedError(400, f"{name!r} must be a whole number from {low} to {high}")
        return int(value)

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number from `low` to `high`; None if it is missing."""
        value = self._number(name)
        if value is not None and not low <= value <= high:
            raise RefusedError(400, f"{name!r} must be a number from {low:g} to {high:g}")
        return value

    def _number(self, name: str) -> float | None:
        value = self._values.get(name)
        try:
            if self._form and isinstance(value, str):
                value = float(value) if value else None
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = float(value)
        except (ValueError, OverflowError):
            value = math.nan
        if value is None or (isinstance(value, float) and math.isfinite(value)):
            return value
        raise RefusedError(400, f"{name!r} must be a number")


async def read_fields(request: Request, most: int) -> Fields:
    """Return the fields of a body in JSON or of a form.

    Raises RefusedError for a body of more than `most` bytes (413), another content type (415), and
    invalid JSON (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await _read(request, most)
    if kind == "application/x-www-form-urlencoded":
        return Fields(_form(body), form=True)
    if kind in ("application/json", "") or kind.endswith("+json"):
        return Fields(_json(body))
    raise RefusedError(415, f"the body must be application/json or a form, not {_shown(kind)}")


async def _read(request: Request, most: int) -> bytes:
    too_large = RefusedError(413, f"the body is larger than {most} bytes", {"Connection": "close"})
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect as error:
        raise RefusedError(400, "the body is incomplete") from error
    return bytes(body)


def _json(body: bytes) -> dict[str, Any]:
    def not_finite(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        found = json.loads(body, parse_constant=not_finite)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the body is not valid JSON") from error
    if not isinstance(found, dict):
        raise RefusedError(400, "the body must be a JSON object")
    return found


def _form(body: bytes) -> dict[str, Any]:
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise RefusedError(400, "the body is not a valid form in UTF-8") from error
    found: dict[str, Any] = {}
    for name, value in pairs:  # repeated names make a list
        old = found.get(name)
        found[name] = value if old is None else [*(old if isinstance(old, list) else [old]), value]
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RefusedError(400, f"{name!r} must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError(400, f"{name!r} has a character that is not valid Unicode") from error
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
