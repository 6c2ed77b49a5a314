"""A space: what a concept is. Text to concepts, and concepts to text in every language it knows.

One runtime for the bundled `tiny`, the official `sonar` and anything trained with `lcm train`:
plain torch on memory-mapped weights. torch is imported with the first name taken from here.
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
