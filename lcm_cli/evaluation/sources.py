"""Where the rows come from: a file, or a data set of the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

from lcm_cli.files import sha256

_HUB = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+){0,2}")


def locate(data: str) -> tuple[str, dict[str, Any]]:
    """Return the path of the rows, and what metrics.json says of them."""
    if Path(data).is_file():
        return data, {"path": data, "sha256": sha256(Path(data))}
    return data, {"path": data}
