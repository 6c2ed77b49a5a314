"""Write the size and sha256 of each bundled file into its card, after the files were made anew.

`make cards` runs this; a test fails while a card and its files differ.
"""

import hashlib
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = re.compile(r'^(\w+ = \{ name = "([\w-]+\.[\w.-]+)")[^}]*\}$', re.MULTILINE)


def updated(card: str, folder: Path) -> str:
    """Return the text of a card with what is true of the files in `folder`."""

    def line(match: re.Match[str]) -> str:
        content = (folder / match[2]).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return f'{match[1]}, bytes = {len(content)}, sha256 = "{digest}" }}'

    return FILE.sub(line, card)


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.toml")):
        before = path.read_text(encoding="utf-8")
        after = updated(before, HERE)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"updated {path.name}", file=sys.stderr)
