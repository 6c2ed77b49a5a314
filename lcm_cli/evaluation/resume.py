"""What an evaluation has done so far, kept by content, so that a stopped one goes on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Work:
    """Results by what they were computed from; with a file they outlive the process.

    A line that a killed process left unfinished is dropped: its result is computed again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._done: dict[str, Any] = {}
        if path is not None and path.is_file():
            self._read(path)
        self.resumed = len(self._done)

    def remember(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return the result for `key`, computed only if it is not known; both have to be JSON."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if digest not in self._done:
            self._done[digest] = compute()
            self._write(digest)
        return self._done[digest]

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                digest, result = json.loads(line)
            except ValueError:
                continue
            self._done[digest] = result
        if len(whole) < len(data):  # or the next line would be joined to the broken one
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def _write(self, digest: str) -> None:
        if self._path is None:
            return
        line = json.dumps([digest, self._done[digest]], ensure_ascii=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
