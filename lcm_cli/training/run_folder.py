"""The folder of a run: the recipe that it was trained with, and who is at work in it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lcm_cli.errors import LcmError
from lcm_cli.files import atomic_path, disk_error, make_folder
from lcm_cli.training.recipe import Recipe

RECIPE = "recipe.json"
_LOCK = ".lock"
_TOPS = ("", "best", "alone", "alone/best")
_KINDS = ("model", "space", "normalizer", "quantizer")


def leads() -> bool:
    """Return whether this process is alone, or the first of those that torchrun started."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder of a run, and hold it alone: of several processes, the first one does.

    What a killed run left of files that it was writing is removed. Raises LcmError if another run
    is at work in it, or it cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        make_folder(folder)
        if not leads():
            yield
            return
        with FileLock(folder / _LOCK, blocking=False):
            _remove_halves(folder)
            yield
    except Timeout as error:
        raise LcmError(
            f"another run is at work in {folder}", "wait for it, or choose another folder with -o"
        ) from error


def _remove_halves(folder: Path) -> None:
    # Of this run alone: in other folders here there may be runs and data sets at work.
    places = [folder / top / kind for top in _TOPS for kind in ("", *_KINDS)]
    for path in [path for place in places for path in place.glob(".*.part")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def changes(folder: Path, recipe: Recipe) -> list[str]:
    """Return what differs between the recipe that a run began with and this one, in words."""
    try:
        before = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of an earlier lcm, or damaged: nothing is known
        return []
    if not isinstance(before, dict):
        return []
    old, new = _flat(before), _flat(_plain(recipe))
    return [
        f"{key} was {_shown(old.get(key))} and is {_shown(new.get(key))}"
        for key in dict.fromkeys([*new, *old])
        if old.get(key) != new.get(key)
    ]


@contextmanager
def keeping(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Keep the recipe in the folder of a run; that of the run so far, if it cannot go on with this.

    Such an error comes before a state is saved.
    """
    from lcm_cli.training.states import states  # with torch, which `lcm plot` has no need of

    file, before = folder / RECIPE, states(folder)
    old = file.read_bytes() if before and file.is_file() else None
    write_recipe(folder, recipe)
    try:
        yield
    except LcmError:
        if old is not None and states(folder) == before:
            with atomic_path(file, force=True) as temporary:
                temporary.write_bytes(old)
        raise


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the whole recipe, with defaults and changes, so that `load_recipe` reads it."""
    text = json.dumps(_plain(recipe), indent=2, ensure_ascii=False) + "\n"
    try:
        with atomic_path(folder / RECIPE, force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, folder / RECIPE) from error


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as JSON has it."""
    return dict(json.loads(json.dumps(asdict(recipe))))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
