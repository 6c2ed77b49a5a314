"""Documents and their concepts: reading them from anywhere, writing them, looking into them.

Nothing here needs torch; numpy and pyarrow are imported when a format asks for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lcm_cli.documents.document import Document, SpaceInfo, check_space
from lcm_cli.documents.reading import read, read_any, read_concepts
from lcm_cli.documents.targets import check_target
from lcm_cli.documents.text import to_json

if TYPE_CHECKING:
    from lcm_cli.documents.describe import describe
    from lcm_cli.documents.writing import ConceptWriter, as_written, open_writer

__all__ = [
    "ConceptWriter",
    "Document",
    "SpaceInfo",
    "as_written",
    "check_space",
    "check_target",
    "describe",
    "open_writer",
    "read",
    "read_any",
    "read_concepts",
    "to_json",
]

_LATER = {
    "ConceptWriter": "writing",
    "as_written": "writing",
    "describe": "describe",
    "open_writer": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
