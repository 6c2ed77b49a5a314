"""What the headers of safetensors files say of weights: how many numbers, and how they are stored.

A matrix NAME may be stored as int8 with one scale a row, in NAME.scale (see lcm_cli.weights): the
scales are no numbers of the model, and count as none here. Nothing but JSON is needed to tell.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lcm_cli.errors import IntegrityError

SCALE = ".scale"  # after the name of a matrix: that of its scales
HEADER_LIMIT = 100 << 20  # bytes; the safetensors library has the same
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}

Entries = Mapping[str, Mapping[str, Any]]


def read_header(file: BinaryIO, name: str) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a safetensors header and what it says: a dict of name to entry.

    Raises IntegrityError if it is cut off or no JSON.
    """
    length = file.read(8)
    size = int.from_bytes(length, "little")
    header = file.read(size) if size <= HEADER_LIMIT else b""
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise damaged(name, "its header is not whole") from error
    if len(length) < 8 or not isinstance(entries, dict):
        raise damaged(name, "its header is not an object")
    return length + header, entries


def damaged(name: str, reason: str) -> IntegrityError:
    """Return the error of a safetensors file that cannot be read."""
    return IntegrityError(f"{name} is damaged or cut off: {reason}", "copy or make the file again")


def read_entries(path: Path) -> tuple[int, dict[str, str], dict[str, dict[str, Any]]]:
    """Return how long a file's header is, its metadata, and what it says of each tensor.

    Raises IntegrityError if it is cut off, or does not say what it should.
    """
    with path.open("rb") as file:
        header, entries = read_header(file, str(path))
    metadata = entries.pop("__metadata__", None) or {}
    for name, entry in entries.items():
        if not _is_entry(entry):
            raise damaged(str(path), f"its header does not say what {name} is")
    return len(header), metadata, entries


def _is_entry(entry: Any) -> bool:
    try:
        start, end = entry["data_offsets"]
        return 0 <= start <= end and math.prod(entry["shape"]) >= 0 and bool(entry["dtype"])
    except (TypeError, KeyError, ValueError):
        return False


def is_scale(name: str, int8: Collection[str]) -> bool:
    """Return whether a tensor holds the scales of one of the matrices whose names are in `int8`."""
    return name.endswith(SCALE) and name.removesuffix(SCALE) in int8


def count_numbers(entries: Entries) -> dict[str, int]:
    """Return how many numbers there are of each type, by safetensors' names; scales are none."""
    int8 = {name for name, entry in entries.items() if entry["dtype"] == "I8"}
    counts: Counter[str] = Counter()
    for name, entry in entries.items():
        if not is_scale(name, int8):
            counts[entry["dtype"]] += math.prod(entry["shape"])
    return dict(counts)


def type_name(dtype: str) -> str:
    """Return what people call one of safetensors' types."""
    return _NAMES.get(dtype, dtype)


def main_type(counts: Mapping[str, int]) -> str:
    """Return what people call the type of most numbers; "" if there are none."""
    return type_name(max(counts, key=lambda dtype: counts[dtype])) if counts else ""
