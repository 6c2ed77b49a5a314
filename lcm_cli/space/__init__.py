"""Spaces: the encoding of sentences as concepts, and of concepts as text in any of its languages.

One runtime, in plain torch on memory-mapped weights, serves the bundled `tiny`, the official
`sonar` and every space trained with `lcm train`. Importing the package does not import torch;
taking a name from it does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcm_cli.space.search import DecodeOptions as DecodeOptions
    from lcm_cli.space.space import Encoded as Encoded
    from lcm_cli.space.space import Space as Space
    from lcm_cli.space.space import Text as Text
    from lcm_cli.space.space import Truncation as Truncation
    from lcm_cli.space.space import load_space as load_space
    from lcm_cli.space.space import pick_device as pick_device

__all__ = ["DecodeOptions", "Encoded", "Space", "Text", "Truncation", "load_space", "pick_device"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lcm_cli.space import space

    return getattr(space, name)
