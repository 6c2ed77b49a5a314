"""Read training recipes: TOML files that are fully checked before anything starts."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.files import read_utf8
from lcm_cli.schema import json_value, nearest, parse, toml_table
from lcm_cli.training.recipes.fitted import NormalizerRecipe, QuantizerRecipe
from lcm_cli.training.recipes.model import ModelRecipe
from lcm_cli.training.recipes.space import SpaceRecipe
from lcm_cli.training.recipes.speech import SpeechRecipe

Trained = ModelRecipe | SpaceRecipe | SpeechRecipe  # step by step
Recipe = Trained | NormalizerRecipe | QuantizerRecipe
KINDS: dict[str, type[Recipe]] = {
    "model": ModelRecipe,
    "space": SpaceRecipe,
    "speech": SpeechRecipe,
    "normalizer": NormalizerRecipe,
    "quantizer": QuantizerRecipe,
}


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or the [recipe] table of a checkpoint's card, and apply `changes`.

    Changes have the form key=value. Of a run's folder, recipe.json is read.

    Raises NotFoundError, UsageError for a malformed change, IntegrityError for an invalid file.
    """
    path = path / "recipe.json" if path.is_dir() else path
    if not path.is_file():
        hint = "examples/recipes has recipes to start from; see docs/training.md"
        raise NotFoundError(f"no such recipe: {path}", hint)
    read: Callable[[str, str], Any] = json_value if path.suffix == ".json" else toml_table
    data = read(read_utf8(path), str(path))
    if not isinstance(data, dict):
        raise IntegrityError(f"{path} is not a recipe")
    whole = data
    data = data.get("recipe", data)
    if "kind" not in data or "licence_note" in data:  # a card without a [recipe] table
        about = "is a card without a" if "licence_note" in whole else "has no kind: it is not a"
        hint = f"""a recipe needs a kind: kind = "{'" or "'.join(KINDS)}\""""
        raise IntegrityError(f"{path} {about} recipe that lcm can run", hint)
    for change in changes:
        _apply(data, change)
    kind = str(data.get("kind", ""))
    if kind not in KINDS:
        near = " or ".join(nearest(kind, KINDS)) or ", ".join(KINDS)
        raise IntegrityError(f"{path}: kind = {kind!r} is not a kind of recipe", f"kinds: {near}")
    recipe: Recipe = parse(KINDS[kind], data, str(path))
    if recipe.name in ("", "..") or Path(recipe.name).name != recipe.name:
        raise IntegrityError(f"{path}: name = {recipe.name!r} cannot be the name of a folder")
    return recipe


def _apply(data: dict[str, Any], change: str) -> None:
    """Apply a change, such as train.steps=500, name=mine or data.train=["a.jsonl"]."""
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
