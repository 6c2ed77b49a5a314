"""The config of a speech encoder, stored as config.json beside its weights.

This module does not import torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError
from lcm_cli.schema import json_value, parse

_LARGEST = (1 << 31) - 1  # of any number in a config
_MOST_FRAMES = 1 << 16  # of an utterance


@dataclass(frozen=True)
class SpeechShapes:
    """The shapes of a speech encoder.

    A frame joins `stride` steps of 10 ms, each with `bins` mel bands; `max_length` counts frames.
    `kernel` is the width of the depthwise convolutions in frames, an odd number. The names that
    start with `pool_` are the shapes of the attention pooling.
    """

    layers: int
    model_dim: int
    heads: int
    ffn_dim: int
    kernel: int
    pool_layers: int
    pool_heads: int
    pool_ffn_dim: int
    concept_dim: int
    bins: int = 80
    stride: int = 2
    max_length: int = 4096

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = _MOST_FRAMES if name == "max_length" else _LARGEST
            if not 0 < value <= most:
                raise IntegrityError(f"{name} = {value} is not between 1 and {most}")
        for heads in (self.heads, self.pool_heads):
            if self.model_dim % heads:
                raise IntegrityError(
                    f"model_dim {self.model_dim} is not a multiple of {heads} heads"
                )
        if self.model_dim % 2 or not self.kernel % 2:
            raise IntegrityError(
                f"model_dim {self.model_dim} must be even, kernel {self.kernel} must be odd"
            )

    @property
    def features(self) -> int:
        """The number of features of a frame."""
        return self.bins * self.stride


@dataclass(frozen=True)
class SpeechConfig:
    """A speech encoder: the languages that it hears, and the spaces of its concepts.

    All `spaces` have the same concepts. `fingerprint` is theirs, empty if it was unknown when the
    encoder was made. `sha256` and `source` are records of a pull.
    """

    name: str
    licence: str
    languages: tuple[str, ...]
    spaces: tuple[str, ...]
    encoder: SpeechShapes
    fingerprint: str = ""
    sha256: Mapping[str, str] | None = None
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.languages or not self.spaces:
            raise IntegrityError("a speech encoder needs at least one language and one space")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {"kind": "speech"} | {k: v for k, v in asdict(self).items() if v is not None}


def read_speech_config(path: Path) -> SpeechConfig:
    """Read a config.json. Raises IntegrityError if it does not describe a speech encoder."""
    config = json_value(path.read_bytes(), str(path))
    if not isinstance(config, dict) or config.get("kind") != "speech":
        raise IntegrityError(f"{path} does not describe a speech encoder")
    return parse(SpeechConfig, {k: v for k, v in config.items() if k != "kind"}, str(path))
