"""Concept models: one module per model of the paper, on shared layers, normalizer and diffusion.

Importing the package does not import torch; importing its modules (except `config`) does. Start
with `config.preset` or `load_model`, then `generate.generate_concepts`.
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
