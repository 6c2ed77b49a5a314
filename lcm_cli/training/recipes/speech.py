"""Recipes with kind = "speech": utterances, shapes and training of a speech encoder."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lcm_cli.errors import IntegrityError


@dataclass(frozen=True)
class SpeechData:
    """Speech with its text: JSON Lines of {"audio", "text"}, relative to the current folder.

    Audio paths are relative to the folder of their table. A line may have a `lang`, the code of its
    language; it must if the recipe has several.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpeechShape:
    """Shapes of a new speech encoder (see lcm_cli.speech.config); a finetuned one keeps its own."""

    layers: int = 4
    model_dim: int = 192
    heads: int = 4
    ffn_dim: int = 384
    kernel: int = 7
    pool_layers: int = 1
    pool_heads: int = 4
    pool_ffn_dim: int = 384
    bins: int = 40
    stride: int = 6
    max_length: int = 512


@dataclass(frozen=True)
class SpeechTraining:
    """How to train a speech encoder. Intervals are in steps.

    `batch_seconds` is the duration of a batch; utterances of more than `max_seconds` are left out.
    `contrast` weights the loss that tells the concept of the own sentence from those of the batch
    and of `negatives` other sentences, `ctc` the loss that spells the text from the frames; the
    weight of the squared distance is 1. `noise` is the fraction of utterances that are mixed with
    noise, at a signal-to-noise ratio within `snr` (dB). `mask` is the largest fraction of the mel
    bands, and of the steps, that is masked in an utterance. `decay`, `dropout`, `weight_decay` and
    `ema` are those of spaces.
    """

    steps: int = 10_000
    batch_seconds: float = 200.0
    max_seconds: float = 30.0
    learning_rate: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    warmup: int = 200
    decay: float = 0.5
    clip: float = 1.0
    contrast: float = 0.1
    ctc: float = 0.0
    negatives: int = 4096
    noise: float = 0.5
    snr: tuple[float, float] = (5.0, 35.0)
    mask: float = 0.1
    dropout: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    save_every: int = 250
    eval_every: int = 1000
    sample_every: int = 1000  # log what is heard in a few utterances; 0: never

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name in ("steps", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("batch_seconds", "max_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise IntegrityError(f"train.{name} must be positive, not {getattr(self, name)}")
        for name in _SPEECH_NUMBERS:
            if not 0 <= getattr(self, name) < math.inf:
                raise IntegrityError(
                    f"train.{name} must be 0 or a positive number, not {getattr(self, name)}"
                )
        for name in ("decay", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise IntegrityError(f"train.{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("mask", "dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be in [0, 1), not {getattr(self, name)}")
        if not -math.inf < self.snr[0] <= self.snr[1] < math.inf:
            raise IntegrityError(f"train.snr must be [lowest, highest], not {list(self.snr)}")


_SPEECH_NUMBERS = (
    *("learning_rate", "warmup", "clip", "contrast", "ctc", "negatives", "weight_decay"),
    *("sample_every", "seed"),
)


@dataclass(frozen=True)
class SpeechRecipe:
    """A recipe with kind = "speech": an encoder of speech to the concepts of `space`.

    `start` names a speech encoder to finetune; without it, it is new.
    """

    kind: Literal["speech"]
    name: str
    data: SpeechData
    languages: tuple[str, ...] = ()
    licence: str = ""
    space: str = "tiny"
    start: str = ""
    shape: SpeechShape = field(default_factory=SpeechShape)
    train: SpeechTraining = field(default_factory=SpeechTraining)

    def __post_init__(self) -> None:
        """Raise IntegrityError if the languages are missing."""
        if not self.languages and not self.start:
            raise IntegrityError("a new speech encoder needs languages", 'languages = ["eng_Latn"]')
