"""The folder of a run: its recipe, and a lock against a second run in it."""

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
from lcm_cli.training.recipes.load import Recipe

RECIPE = "recipe.json"
_LOCK = ".lock"
_TOPS = ("", "best", "alone", "alone/best")
_KINDS = ("model", "space", "speech", "normalizer", "quantizer")


def leads() -> bool:
    """Return whether this is the only process, or the first of those that torchrun started."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Create and lock the folder of a run; of several processes the first one does.

    Unfinished files of a killed run are removed. Raises LcmError if another run is using the
    folder, or if it cannot be created.
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
            f"another run is using {folder}", "wait for it to end, or choose another folder with -o"
        ) from error


def _remove_halves(folder: Path) -> None:
    # Only this run's own folders: others in here may belong to active runs or data sets.
    places = [folder / top / kind for top in _TOPS for kind in ("", *_KINDS)]
    for path in [path for place in places for path in place.glob(".*.part")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def changes(folder: Path, recipe: Recipe) -> list[str]:
    """Return the differences between a run's recipe so far and this one, one message each."""
    try:
        before = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing (a run of an earlier lcm) or damaged
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
    """Write the recipe to the folder of a run; put the old one back if the run cannot continue.

    That is the case after an error or a signal before a new state is saved.
    """
    from lcm_cli.training.states import states  # imports torch, which `lcm plot` does without

    file, before = folder / RECIPE, states(folder)
    old = file.read_bytes() if before and file.is_file() else None
    write_recipe(folder, recipe)
    try:
        yield
    except BaseException:
        if old is not None and states(folder) == before:
            with atomic_path(file, force=True) as temporary:
                temporary.write_bytes(old)
        raise


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the whole recipe, with defaults and changes, for `load_recipe` to read."""
    text = json.dumps(_plain(recipe), indent=2, ensure_ascii=False) + "\n"
    try:
        with atomic_path(folder / RECIPE, force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, folder / RECIPE) from error


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain JSON values."""
    return dict(json.loads(json.dumps(asdict(recipe))))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
