"""Answers that arrive in parts, as server-sent events."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Emit = Callable[[str, Any], None]  # receives the name of an event and its data


@dataclass(frozen=True)
class Stream:
    """An answer in parts: `run` passes each part to the function that it receives."""

    run: Callable[[Emit], None]


def event(name: str, data: Any) -> bytes:
    """Return one server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
