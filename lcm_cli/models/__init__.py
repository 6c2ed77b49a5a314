"""Concept models: one file a model of the paper, over shared layers, normalizer and diffusion.

Importing this package imports no torch; its modules do. Start at `config` (presets) and
`load_model`, then `generate.generate`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcm_cli.models.checkpoint import load_model as load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lcm_cli.models import checkpoint

    return getattr(checkpoint, name)
