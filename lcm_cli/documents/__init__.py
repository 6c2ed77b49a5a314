"""Documents and their concepts: read, write and describe them.

This package never imports torch, and imports numpy and pyarrow only for the formats that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lcm_cli.documents.document import Document, SpaceInfo, check_space
from lcm_cli.documents.reading import read, read_any, read_concepts
from lcm_cli.documents.targets import check_target
from lcm_cli.documents.text import to_json

if TYPE_CHECKING:
    from lcm_cli.documents.description import describe
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

# A name must differ from its module: importing the module would set it as the attribute.
_LAZY = {
    "ConceptWriter": "writing",
    "as_written": "writing",
    "describe": "description",
    "open_writer": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
