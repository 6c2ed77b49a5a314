"""Recipes: what to train, on what, how. A TOML file, checked before anything starts."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.schema import parse


@dataclass(frozen=True)
class SpaceData:
    """Where the text is: JSON Lines of {language code: sentence}, paths from the current folder."""

    train: tuple[str, ...]
    dev: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpaceShape:
    """Shapes of a new space (a finetuned one has those it started with).

    `vocabulary` counts sentencepiece pieces; `tie` gives encoder and decoder one embedding.
    """

    vocabulary: int = 8000
    dim: int = 256
    heads: int = 4
    ffn_dim: int = 1024
    encoder_layers: int = 3
    decoder_layers: int = 3
    max_length: int = 256
    tie: bool = True


@dataclass(frozen=True)
class SpaceTraining:
    """How to train a space.

    `batch_tokens` counts the tokens of one side of the pairs; `noise` is the largest standard
    deviation added to concepts, in units of their own; `align` weighs the pull between
    translations; `join` is the share of pairs joined into longer ones; `decay` is the share of the
    steps over which the learning rate falls to 0. Lengths are in tokens, intervals in steps.
    """

    steps: int = 10_000
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    warmup: int = 200
    decay: float = 0.25
    clip: float = 1.0
    noise: float = 0.4
    align: float = 0.3
    join: float = 0.15
    max_tokens: int = 128
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    save_every: int = 250
    eval_every: int = 2000
    eval_sentences: int = 100


@dataclass(frozen=True)
class SpaceRecipe:
    """A recipe with kind = "space". `start` names a space to finetune; empty: a new one."""

    kind: Literal["space"]
    name: str
    data: SpaceData
    languages: tuple[str, ...] = ()
    licence: str = ""
    start: str = ""
    shape: SpaceShape = field(default_factory=SpaceShape)
    train: SpaceTraining = field(default_factory=SpaceTraining)

    def __post_init__(self) -> None:
        """Raise IntegrityError for combinations that cannot be."""
        if not self.languages and not self.start:
            raise IntegrityError("a new space needs languages", 'languages = ["eng_Latn", ...]')
        if self.shape.dim % self.shape.heads:
            raise IntegrityError(
                f"dim {self.shape.dim} is not a multiple of {self.shape.heads} heads"
            )


def load_recipe(path: Path, changes: Sequence[str] = ()) -> SpaceRecipe:
    """Read a recipe file, or the [recipe] table of a checkpoint's card, and apply `key=value`s.

    Raises NotFoundError, UsageError for a malformed change, IntegrityError for what is in the file.
    """
    if not path.is_file():
        raise NotFoundError(f"no such recipe: {path}", "examples: lcm train --help")
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} is not valid TOML: {error}") from error
    data = data.get("recipe", data)
    for change in changes:
        _apply(data, change)
    return parse(SpaceRecipe, data, str(path))


def _apply(data: dict[str, Any], change: str) -> None:
    """Set a dotted key: train.steps=500, name=mine, data.train=["a.jsonl"]."""
    key, found, text = change.partition("=")
    if not found or not key:
        raise UsageError(f"--set {change!r} is not key=value", "for example: --set train.steps=500")
    *tables, last = key.strip().split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, Mapping):
            raise UsageError(f"--set {change!r}: {table} is not a table")
    try:
        data[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        data[last] = text  # a bare word is a string
