"""Recipes with kind = "space": text, shapes, training and distillation of a space."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lcm_cli.errors import IntegrityError
from lcm_cli.training.recipes.adapter import AdapterOptions, check_adapter


@dataclass(frozen=True)
class SpaceData:
    """The text of a space: JSON Lines of {language code: sentence}, relative to the current folder.

    An entry of `train` is PATH[:WEIGHT]; the weight is how often an epoch uses each line.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpaceShape:
    """Shapes of a new space; a finetuned one keeps its own.

    `vocabulary` is the number of sentencepiece pieces; with `tie`, encoder and decoder share one
    embedding.
    """

    vocabulary: int = 8000
    dim: int = 256
    heads: int = 4
    ffn_dim: int = 1024
    encoder_layers: int = 3
    decoder_layers: int = 3
    max_length: int = 256
    tie: bool = True

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name, value in vars(self).items():
            if value < 1 and name != "tie":
                raise IntegrityError(f"shape.{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class SpaceTraining:
    """How to train a space. Lengths are in tokens, intervals in steps.

    `batch_tokens` is the number of tokens on one side of the pairs. `noise` is the largest standard
    deviation of the noise added to concepts, in units of theirs. `translate` is the fraction of
    targets that are translations; the others are the sentences themselves. `align` weights the loss
    that pulls translations together, `contrast` the one that pushes other sentences apart. `join`
    is the fraction of pairs joined into longer ones. `decay` is the fraction of steps over which
    the learning rate falls to 0. `dropout` is the dropout probability in each layer, `smoothing`
    the label smoothing of the decoder's targets, `weight_decay` the decay of matrices. `ema` is the
    decay of an average of the weights, which is then saved and evaluated in their place. `freeze`
    are patterns of the names of parameters not to train, such as "encoder.*". `store` is the number
    format of the exported space. With int8, every step computes with rounded matrices, and its
    gradients change the exact ones (the straight-through estimator, arXiv 1308.3432), so that the
    space learns to do without the digits that it loses. `compile` compiles each layer where steps
    are captured as CUDA graphs, and has no effect elsewhere.
    """

    steps: int = 10_000
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    warmup: int = 200
    decay: float = 0.25
    clip: float = 1.0
    noise: float = 0.4
    translate: float = 0.5
    align: float = 0.3
    contrast: float = 0.0
    join: float = 0.15
    dropout: float = 0.0
    smoothing: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    store: Literal["float16", "int8"] = "float16"
    max_tokens: int = 128
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    save_every: int = 250
    eval_every: int = 2000
    eval_sentences: int = 100

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name in ("steps", "batch_tokens", "max_tokens", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in (*_SPACE_NUMBERS, "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise IntegrityError(
                    f"train.{name} must be 0 or a positive number, not {getattr(self, name)}"
                )
        for name in ("decay", "translate", "join"):
            if not 0 <= getattr(self, name) <= 1:
                raise IntegrityError(f"train.{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("dropout", "smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be in [0, 1), not {getattr(self, name)}")


_SPACE_NUMBERS = ("learning_rate", "warmup", "clip", "noise", "align", "contrast", "weight_decay")


@dataclass(frozen=True)
class SpaceDistillation:
    """The [distill] table of a space: a new encoder learns the concepts of the space `teacher`.

    The encoder starts from the teacher's `layers`, numbered from 0, with their shapes; without
    them it has new layers, of the shapes in [shape]. Token embeddings are the teacher's.
    """

    teacher: str
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class SpaceRecipe:
    """A recipe with kind = "space". `start` names a space to finetune; without it, it is new.

    With `adapter`, only small updates of `start` are trained and kept. With `distill`, only the
    encoder is new, and `languages` are added to those of the teacher.
    """

    kind: Literal["space"]
    name: str
    data: SpaceData
    languages: tuple[str, ...] = ()
    licence: str = ""
    start: str = ""
    shape: SpaceShape = field(default_factory=SpaceShape)
    train: SpaceTraining = field(default_factory=SpaceTraining)
    adapter: AdapterOptions | None = None
    distill: SpaceDistillation | None = None

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid combinations."""
        check_adapter(self.adapter, self.start, self.distill)
        if self.distill is not None and self.start:
            raise IntegrityError(
                f"start = {self.start!r} cannot be combined with a teacher",
                "a student starts from distill.layers",
            )
        if self.adapter is not None and self.train.store == "int8":
            message = '[adapter] cannot be combined with train.store = "int8"'
            hint = (
                "train without store; merging the adapter can store int8: lcm checkpoints convert"
            )
            raise IntegrityError(message, hint)
        if not self.languages and not self.start and self.distill is None:
            raise IntegrityError("a new space needs languages", 'languages = ["eng_Latn", ...]')
        if self.shape.dim % self.shape.heads:
            raise IntegrityError(
                f"dim {self.shape.dim} is not a multiple of {self.shape.heads} heads"
            )
