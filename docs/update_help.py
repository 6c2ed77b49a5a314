"""Write what `lcm COMMAND --help` prints into the pages here, between their markers.

    <!-- help: lcm summarize -->     the block after such a line is replaced

`make docs` runs this; a test fails while a page and the program differ.
"""

import io
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"(?<=<!-- help: )(lcm ?[\w -]*)( -->\n\n```text\n)(.*?)(?=```\n)", re.DOTALL)
WIDTH = "80"  # columns; the help must not depend on the terminal that it was made on


def shown(command: str) -> str:
    """Return what `command --help` prints."""
    from lcm_cli.app import main

    os.environ["COLUMNS"] = WIDTH
    with redirect_stdout(io.StringIO()) as output:
        main([*command.split()[1:], "--help"])
    return output.getvalue()


def updated(page: str) -> str:
    """Return the text of a page with all of its blocks as they should be."""
    return BLOCK.sub(lambda match: f"{match[1]}{match[2]}{shown(match[1])}", page)


def commands(page: str) -> list[str]:
    """Return the commands that have a block in a page, in order."""
    return [match[1] for match in BLOCK.finditer(page)]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # works uninstalled, too
    for path in sorted(HERE.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.write_text(updated(text), encoding="utf-8")
