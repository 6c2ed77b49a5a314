"""Recipes with kind = "normalizer" or "quantizer", which are fitted in one pass."""

from dataclasses import dataclass, field
from typing import Literal

from lcm_cli.errors import IntegrityError
from lcm_cli.models.config import NormalizerConfig
from lcm_cli.training.data_options import DataOptions


@dataclass(frozen=True)
class NormalizerRecipe:
    """A recipe with kind = "normalizer", fitted on at most `concepts` concepts of the data."""

    kind: Literal["normalizer"]
    name: str
    data: DataOptions
    licence: str = ""
    space: str = "tiny"
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    concepts: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise IntegrityError if there is nothing to fit on."""
        if self.concepts < 1:
            raise IntegrityError(f"concepts must be at least 1, not {self.concepts}")


@dataclass(frozen=True)
class QuantizerFit:
    """Shapes of a quantizer, and how its codebooks are fitted, by k-means on the residuals."""

    codebooks: int = 64
    units: int = 8192
    iterations: int = 20
    concepts: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name in ("codebooks", "units", "iterations", "concepts"):
            if getattr(self, name) < 1:
                raise IntegrityError(f"quantizer.{name} must be at least 1")


@dataclass(frozen=True)
class QuantizerRecipe:
    """A recipe with kind = "quantizer"."""

    kind: Literal["quantizer"]
    name: str
    data: DataOptions
    licence: str = ""
    space: str = "tiny"
    quantizer: QuantizerFit = field(default_factory=QuantizerFit)
