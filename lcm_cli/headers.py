"""Headers of safetensors files: how many numbers weights have, and of which types.

A matrix NAME may be stored as int8 with one scale per row, in NAME.scale (see lcm_cli.weights).
Scales are not parameters of the model, so they are not counted. Only JSON is parsed.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from lcm_cli.errors import IntegrityError
from lcm_cli.schema import json_value

SCALE = ".scale"  # the suffix that turns the name of a matrix into that of its scales
HEADER_LIMIT = 100 << 20  # bytes, as in the safetensors library
_HINT = "copy or make the file again"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}

Entries = Mapping[str, Mapping[str, Any]]


def read_header(file: BinaryIO, name: str) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a safetensors header, including its length, and its parsed entries.

    Each entry has a dtype, a shape and the data_offsets that fit them; `__metadata__`, if present,
    maps strings to strings. Raises IntegrityError if the header is truncated or malformed.
    """
    length = file.read(8)
    size = int.from_bytes(length, "little")
    header = file.read(size) if size <= HEADER_LIMIT else b""
    if len(header) < size:
        raise damaged(name, "its header is incomplete")
    try:
        entries = json_value(header, "its header")
    except IntegrityError as error:
        raise damaged(name, error.message) from error
    if not isinstance(entries, dict):
        raise damaged(name, "its header is not an object")
    for key, entry in entries.items():
        if not (_is_metadata if key == "__metadata__" else _is_entry)(entry):
            raise damaged(name, f"its header has a malformed entry for {key[:80]!r}")
    return length + header, entries


def damaged(name: str, reason: str) -> IntegrityError:
    """Return the error for a safetensors file that cannot be read."""
    return IntegrityError(f"{name} is damaged or cut off: {reason}", _HINT)


def read_entries(path: Path) -> tuple[int, dict[str, str], dict[str, dict[str, Any]]]:
    """Return the length of a file's header in bytes, its metadata, and the entry of each tensor.

    Raises IntegrityError if the header is truncated or malformed.
    """
    with path.open("rb") as file:
        header, entries = read_header(file, str(path))
    return len(header), entries.pop("__metadata__", None) or {}, entries


def _is_metadata(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        return False
    length = offsets[1] - offsets[0]
    width = _BYTES.get(entry["dtype"])
    return length >= 0 if width is None else math.prod(shape) * width == length


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def is_scale(name: str, int8: Collection[str]) -> bool:
    """Return whether a tensor holds the scales of one of the matrices named in `int8`."""
    return name.endswith(SCALE) and name.removesuffix(SCALE) in int8


def count_numbers(entries: Entries) -> dict[str, int]:
    """Return how many numbers have each type, by safetensors' type names, without scales."""
    int8 = {name for name, entry in entries.items() if entry["dtype"] == "I8"}
    counts: Counter[str] = Counter()
    for name, entry in entries.items():
        if not is_scale(name, int8):
            counts[entry["dtype"]] += math.prod(entry["shape"])
    return dict(counts)


def type_name(dtype: str) -> str:
    """Return the common name of one of safetensors' types."""
    return _NAMES.get(dtype, dtype)


def main_type(counts: Mapping[str, int]) -> str:
    """Return the common name of the most frequent type; "" if there are no numbers."""
    return type_name(max(counts, key=lambda dtype: counts[dtype])) if counts else ""
