"""Headers of safetensors files: how many numbers weights have, and of which types.

A matrix NAME may be stored as int8 with one scale per row, in NAME.scale (see lcm_cli.weights).
Scales are not parameters of the model, so they are not counted. Only JSON is parsed.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lcm_cli.errors import IntegrityError

SCALE = ".scale"  # the suffix that turns the name of a matrix into that of its scales
HEADER_LIMIT = 100 << 20  # bytes, as in the safetensors library
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}

Entries = Mapping[str, Mapping[str, Any]]


def read_header(file: BinaryIO, name: str) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a safetensors header, including its length, and its parsed entries.

    Raises IntegrityError if it is truncated or not a JSON object.
    """
    length = file.read(8)
    size = int.from_bytes(length, "little")
    header = file.read(size) if size <= HEADER_LIMIT else b""
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise damaged(name, "its header is incomplete") from error
    if len(length) < 8 or not isinstance(entries, dict):
        raise damaged(name, "its header is not an object")
    return length + header, entries


def damaged(name: str, reason: str) -> IntegrityError:
    """Return the error for a safetensors file that cannot be read."""
    return IntegrityError(f"{name} is damaged or cut off: {reason}", "copy or make the file again")


def read_entries(path: Path) -> tuple[int, dict[str, str], dict[str, dict[str, Any]]]:
    """Return the length of a file's header in bytes, its metadata, and the entry of each tensor.

    Raises IntegrityError if the header is truncated or malformed.
    """
    with path.open("rb") as file:
        header, entries = read_header(file, str(path))
    metadata = entries.pop("__metadata__", None) or {}
    for name, entry in entries.items():
        if not _is_entry(entry):
            raise damaged(str(path), f"its header has a malformed entry for {name}")
    return len(header), metadata, entries


def _is_entry(entry: Any) -> bool:
    try:
        start, end = entry["data_offsets"]
        return 0 <= start <= end and math.prod(entry["shape"]) >= 0 and bool(entry["dtype"])
    except (TypeError, KeyError, ValueError):
        return False


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
