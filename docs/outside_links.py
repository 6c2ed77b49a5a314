"""Hook of MkDocs: let links to files outside docs/ lead to the project's repository.

In the repository a link such as `../checkpoints/tiny.md` works as it stands. On the site there is
no such page, so the link gets the repository's address. A link to a missing file is a warning,
which `mkdocs build --strict` turns into an error.
"""

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")

logger = logging.getLogger("mkdocs.hooks.outside_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Return the text of a page with its outside links resolved; MkDocs calls this by name."""

    def resolved(link: re.Match[str]) -> str:
        path = ROOT / link[1]
        if not path.exists():
            logger.warning("%s links to ../%s, which does not exist", page.file.src_uri, link[1])
        kind = "tree" if path.is_dir() else "blob"
        return f"{config.extra['repository']}/{kind}/main/{link[1]}"

    return LINK.sub(resolved, markdown)
