"""Storage of finished results, so that a stopped evaluation can be resumed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Work:
    """Results by the content that they were computed from; a file keeps them for later runs.

    Each line of the file is a pair [sha256 of the key, result]. A line that a killed process left
    incomplete is dropped, and its result computed again. `resumed` is the number of results read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._done: dict[str, Any] = {}
        if path is not None and path.is_file():
            self._read(path)
        self.resumed = len(self._done)

    def remember(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return the stored result for `key`, or compute and store it; both must be JSON data."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if digest not in self._done:
            self._done[digest] = compute()
            self._write(digest)
        return self._done[digest]

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        for line in complete.splitlines():
            try:
                digest, result = json.loads(line)
            except ValueError:
                continue
            self._done[digest] = result
        if len(complete) < len(data):  # otherwise the next line would continue the broken one
            with path.open("r+b") as file:
                file.truncate(len(complete))

    def _write(self, digest: str) -> None:
        if self._path is None:
            return
        line = json.dumps([digest, self._done[digest]], ensure_ascii=True)
        # Opened for each line, so that a killed process loses at most the last one.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
