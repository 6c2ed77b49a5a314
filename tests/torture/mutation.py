"""Broken versions of small valid files: damaged bytes, lengths, text, JSON and TOML."""

import json
import math
import struct
from random import Random
from typing import Any

HEAD = 512  # bytes at the start of a file that are damaged more often than the others
_LENGTHS = (0, 1, 7, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1)
_NUMBERS = (math.nan, math.inf, -math.inf, 0.0)
_BAD_TEXT = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\0", b"\xff\xfe", b"\x80")
_WORDS = ("", "x", "\0", "\ud800", "é" * 40, "../x", "/", "nan", "eng_Latn", "float64", "a" * 5000)
_DEPTH = 100_000


def mutate(data: bytes, chance: Random) -> bytes:
    """Return `data` with one to three faults of any kind."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        data = chance.choice(_FAULTS)(data, chance)
    return data


def mutate_json(data: bytes, chance: Random) -> bytes:
    """Return JSON, or lines of JSON, with a wrong value or key, or as `mutate` does."""
    if chance.random() < 0.3:
        return mutate(data, chance)
    lines = data.decode().splitlines() if data.count(b'{"') > 1 else [data.decode()]
    number = chance.randrange(len(lines))
    lines[number] = _json_text(_changed(json.loads(lines[number]), chance), chance)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_safetensors(data: bytes, chance: Random) -> bytes:
    """Return a safetensors file with a wrong header of the right length, or as `mutate` does."""
    if chance.random() < 0.4:
        return mutate(data, chance)
    end = 8 + int.from_bytes(data[:8], "little")
    header = _json_text(_changed(json.loads(data[8:end]), chance), chance)
    encoded = header.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + data[end:]


def mutate_toml(data: bytes, chance: Random) -> bytes:
    """Return TOML with a wrong value, key or line, or as `mutate` does."""
    if chance.random() < 0.3:
        return mutate(data, chance)
    lines = data.decode().splitlines()
    number = chance.randrange(len(lines))
    key, found, _ = lines[number].partition("=")
    if found and chance.random() < 0.8:
        lines[number] = f"{key}= {_toml_value(chance)}"
    elif chance.random() < 0.5:
        lines.insert(number, f"{chance.choice(('x', '[x]', '[[train]]', key))} = 1")
    else:
        lines[number] = chance.choice(("", "[", "[data]", "[a.b.c]", '"' * 3, "a" * 5000))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _place(data: bytes, chance: Random) -> int:
    """Return a position in the head, at the end, or anywhere."""
    most = chance.choice((min(HEAD, len(data)), len(data)))
    place = chance.randrange(most + 1)
    return len(data) - place if chance.random() < 0.2 else place


def _flip(data: bytes, chance: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = min(_place(data, chance), len(data) - 1)
        if place >= 0:
            changed[place] ^= chance.choice((1 << chance.randrange(8), 0xFF, chance.randrange(256)))
    return bytes(changed)


def _truncate(data: bytes, chance: Random) -> bytes:
    return data[: _place(data, chance)]


def _insert(data: bytes, chance: Random) -> bytes:
    place = _place(data, chance)
    added = chance.choice((chance.randbytes(chance.randrange(1, 64)), bytes(64), b"\xff" * 64))
    return data[:place] + added + data[place:]


def _delete(data: bytes, chance: Random) -> bytes:
    place = _place(data, chance)
    return data[:place] + data[place + chance.randrange(1, 64) :]


def _duplicate(data: bytes, chance: Random) -> bytes:
    start, end = sorted((_place(data, chance), _place(data, chance)))
    return data[:end] + data[start:end] + data[end:]


def _swap(data: bytes, chance: Random) -> bytes:
    a, b, c, d = sorted(_place(data, chance) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _length(data: bytes, chance: Random) -> bytes:
    """Overwrite an aligned integer with a length that cannot be right."""
    value = chance.choice(_LENGTHS) * chance.choice((1, 1, -1)) + chance.choice((0, 0, 1, -1))
    size = chance.choice((4, 8))
    place = _place(data, chance) // size * size
    return data[:place] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[place + size :]


def _number(data: bytes, chance: Random) -> bytes:
    form = chance.choice(["<e", "<f", "<d"])
    place = _place(data, chance) // 2 * 2
    packed = struct.pack(form, chance.choice(_NUMBERS))
    return data[:place] + packed + data[place + len(packed) :]


def _text(data: bytes, chance: Random) -> bytes:
    place = _place(data, chance)
    bad = chance.choice(_BAD_TEXT)
    return data[:place] + bad + data[place + len(bad) :]


_FAULTS = (_flip, _flip, _flip, _truncate, _insert, _delete, _duplicate, _swap, _length, _number)
_FAULTS += (_length, _text)


def _changed(value: Any, chance: Random) -> Any:
    """Return a JSON value with one value in it replaced, or one key added, lost or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        rest = {name: each for name, each in value.items() if name != key}
        fault = chance.random()
        if fault < 0.05:
            return rest
        if fault < 0.1:
            return rest | {chance.choice(_WORDS): value[key]}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    return _wrong_value(value, chance)


def _wrong_value(value: Any, chance: Random) -> Any:
    wrong: list[Any] = [
        *(None, True, -1, 0, 1.5, 1 << 31, 1 << 62, -(1 << 63), 10**18, 1e308, *_NUMBERS),
        *(chance.choice(_WORDS), [], {}, [value], {"x": value}, [[value], []], [None], ["x", 1]),
        *(_Digits(), _Deep("["), _Deep('{"x":')),
    ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        wrong += [value + 1, -value, value * 1000, value * 1_000_000, str(value)]
    if isinstance(value, list):
        wrong += [value * 2, value[1:], value * 500]
    return chance.choice(wrong)


class _Digits:
    """A number of 5,000 digits."""


class _Deep:
    """Lists or objects in each other, far deeper than Python's stack."""

    def __init__(self, start: str) -> None:
        self.start = start


def _json_text(value: Any, chance: Random) -> str:
    raw: list[str] = []

    def mark(special: Any) -> str:
        deep = isinstance(special, _Deep)
        end = {"[": "]", '{"x":': "}"}[special.start] if deep else ""
        middle = "1" if deep else "9" * 5000
        closed = end * _DEPTH if chance.random() < 0.7 else ""
        raw.append((special.start * _DEPTH if deep else "") + middle + closed)
        return f"@raw{len(raw) - 1}@"

    text = json.dumps(value, default=mark, ensure_ascii=chance.random() < 0.5)
    for number, part in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', part)
    return text


def _toml_value(chance: Random) -> str:
    values = ["1", "-1", "0", "1.5", "nan", "inf", "-inf", "1e400", "true", '""', '"x"', "[]", "{}"]
    values += ["9" * 5000, "0x" + "f" * 5000, "[" * 5000 + "]" * 5000, '["x", 1]', "1979-05-27"]
    values += ['"' + "a" * 5000 + '"', '"\\ud800"', '"\\u0000"', "{x = 1}", "9223372036854775807"]
    values += ["{x = " * 3000 + "1" + "}" * 3000, "99999999999", "'../x'", "[[1, 2], [3]]"]
    return chance.choice(values)
