"""Pins: size, sha256 and etag of each source file at its first pull.

The publishers of the official weights give no checksums, so the first pull records those of the
files that it got (pins.json in the cache), and every later pull must get the same bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError
from lcm_cli.files import atomic_path, sha256
from lcm_cli.hub.http import locked


@dataclass(frozen=True)
class Pin:
    """The size and digests of one source file at its first pull, on `date`."""

    bytes: int
    sha256: str
    etag: str = ""
    date: str = ""


def find_pin(cache: Path, address: str) -> Pin | None:
    """Return the pin of `address`, or None."""
    entry = _read(cache / "pins.json").get(address)
    return Pin(**entry) if entry else None


def check_pin(cache: Path, address: str, found: Pin) -> None:
    """Raise IntegrityError if `found` differs from the pin of `address`."""
    known = find_pin(cache, address)
    if known and (known.bytes, known.sha256) != (found.bytes, found.sha256):
        raise IntegrityError(
            f"{address} has changed since {known.date}: {found.bytes} bytes, sha256 "
            f"{found.sha256}; the record says {known.bytes} bytes, sha256 {known.sha256}",
            "if you trust the new file, pull with --force",
        )


def record_pins(cache: Path, found: Mapping[str, Pin]) -> None:
    """Record the pin of each address; replaces older ones."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "pins.json"
    today = datetime.now(UTC).date().isoformat()
    with locked(cache / ".pins.lock", "the record of checksums"):
        entries = _read(path)
        entries |= {address: asdict(pin) | {"date": today} for address, pin in found.items()}
        with atomic_path(path, force=True) as temporary:
            temporary.write_text(json.dumps(entries, indent=1, sort_keys=True), encoding="utf-8")


def pin_file(path: Path) -> Pin:
    """Return the pin of a file on this machine."""
    return Pin(path.stat().st_size, sha256(path))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{path}, the record of checksums, is damaged: {error}"
        raise IntegrityError(message, f"move it away: mv {path} {path}.bad") from error
    return entries
