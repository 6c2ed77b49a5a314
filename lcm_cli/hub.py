"""Checkpoints by name: the cards that come with lcm, and where the files of each are.

Nothing here downloads (see pull.py): `locate_space` and `locate_model` find what is on this
machine, and their errors name the file that is missing and the command that fetches it.
"""

import atexit
import json
import re
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import not_there
from lcm_cli.paths import cache_dir
from lcm_cli.schema import nearest, parse
from lcm_cli.snapshot import local_snapshot

ROLES = ("encoder", "decoder", "tokenizer")
FILES = {
    "encoder": "encoder.safetensors",
    "decoder": "decoder.safetensors",
    "tokenizer": "tokenizer.model",
}
MODEL_FILES = {"config": "config.json", "model": "model.safetensors"}
PARTS = {"space": ROLES, "model": ("model",)}
UNKNOWN_LICENCE = "NOASSERTION"  # SPDX's word for it
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Source:
    """Where one part of a checkpoint comes from: an address, or a Hub repository or local folder.

    `asset` is the sonar-space card whose address goes before `url` where sonar-space is installed.
    `bytes` and `sha256` are exact and checked; `about_bytes` is an estimate for people.
    """

    url: str = ""
    asset: str = ""
    repo: str = ""
    revision: str = "main"
    bytes: int | None = None
    about_bytes: int | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.repo):
            raise IntegrityError("a source needs either url or repo")


@dataclass(frozen=True)
class File:
    """A file that lies beside its card. `make cards` writes `bytes` and `sha256`."""

    name: str
    bytes: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Card:
    """What lcm knows of a checkpoint before it is here.

    `files` are the parts of a checkpoint that lie beside the card, by role, `source` says where the
    parts of one that must be pulled come from. `checksums` tells where their digests are: in the
    card, or taken at the first pull (see pins.py). A space has `encoder` and `decoder`, the shapes
    that its weights must have, and may name the `model` that summarizes and expands in it; a model
    has `architecture`, `config` (see lcm_cli.models.config; empty if it is not known before the
    pull) and `space`, whose concepts it reads. `languages`: their number, or their codes in id
    order. `recipe` is what it was trained with, `results` what was measured.
    """

    name: str
    kind: Literal["space", "model"]
    summary: str
    licence: str
    licence_note: str
    languages: int | tuple[str, ...]
    checksums: Literal["card", "first pull"] = "first pull"
    architecture: str = ""
    space: str = ""
    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    source: dict[str, Source] = field(default_factory=dict)
    encoder: dict[str, int] = field(default_factory=dict)
    decoder: dict[str, int] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise IntegrityError(
                f"name {self.name!r} is not made of letters, digits, '.', '_', '-'"
            )
        if foreign := set(self.source) - set(self.parts):
            raise IntegrityError(
                f"unknown part {min(foreign)!r}", f"parts: {', '.join(self.parts)}"
            )
        if outside := [
            file.name for file in self.files.values() if Path(file.name).name != file.name
        ]:
            raise IntegrityError(f"{outside[0]!r} does not lie beside the card")
        if self.checksums == "card" and (bare := self._without_checksum()):
            raise IntegrityError(f"{bare[0]} has no bytes and sha256, and checksums = 'card'")

    @property
    def parts(self) -> tuple[str, ...]:
        """What it consists of."""
        return PARTS[self.kind]

    def _without_checksum(self) -> list[str]:
        every: dict[str, File | Source] = {**self.files, **self.source}
        return [role for role, part in every.items() if part.bytes is None or not part.sha256]


@dataclass(frozen=True)
class SpaceFiles:
    """The files of one space on this machine, and its config.json."""

    name: str
    config: Mapping[str, Any]
    encoder: Path
    decoder: Path
    tokenizer: Path
    licence: str


@dataclass(frozen=True)
class ModelFiles:
    """The files of one concept model on this machine; `licence` is empty if nothing tells it.

    Large weights may lie in several files beside `weights`, with an index.
    """

    name: str
    config: Path
    weights: Path
    licence: str = ""


def is_non_commercial(licence: str) -> bool:
    """Return whether an SPDX licence forbids commercial use."""
    return "NC" in licence.upper().split("-")


def must_be_accepted(licence: str) -> bool:
    """Return whether people are asked before a pull: the licence forbids much or is not known."""
    return is_non_commercial(licence) or licence in ("", UNKNOWN_LICENCE, "other", "unknown")


def cards() -> dict[str, Card]:
    """Return every card that comes with lcm, by name."""
    return {name: _read_card(_folder() / f"{name}.toml") for name in _names()}


def card(source: str) -> Card:
    """Return the card called `source`, or read it from a path that ends in .toml.

    Raises NotFoundError (with the nearest names), IntegrityError for a malformed file.
    """
    entry = _card_file(source)
    if entry is None:
        raise NotFoundError(f"there is no checkpoint called {source!r}", _did_you_mean(source))
    return _read_card(entry)


def card_path(source: str) -> Path:
    """Return the file of a card; a space that comes with lcm can be named by it."""
    entry = _card_file(source)
    assert entry is not None  # for names that card() knows
    return _real_path(entry)


def is_repository(source: str) -> bool:
    """Return whether `source` has the form ORG/REPO or ORG/REPO@REVISION."""
    form = r"[\w.-]*\w/\w[\w.-]*(@\w[\w./-]*)?"
    return bool(re.fullmatch(form, source)) and ".." not in source and not source.endswith(".toml")


def repository(source: str) -> tuple[str, str]:
    """Return the name and the revision in ORG/REPO or ORG/REPO@REVISION."""
    repo, _, revision = source.partition("@")
    return repo, revision or "main"


def space_folder(name: str) -> Path:
    """Return the cache folder of the space called `name`, whether it exists or not."""
    return cache_dir() / "spaces" / name


def model_folder(name: str) -> Path:
    """Return the cache folder of the model called `name`, or ORG/REPO, whether it exists or not."""
    return cache_dir() / "models" / name.replace("/", "--").replace("@", "--")


def pulled(kind: str = "space") -> list[str]:
    """Return the names of the spaces, or of the models, in the cache."""
    configs = (cache_dir() / f"{kind}s").glob("*/config.json")
    return sorted(path.parent.name for path in configs if _NAME.fullmatch(path.parent.name))


def locate_space(source: str) -> SpaceFiles:
    """Find the files of a space: a card's name, a card's path, a folder, or ORG/REPO.

    Never uses the network. Raises NotFoundError that names the missing file and the command that
    fetches it, IntegrityError if config.json is not one of a space.
    """
    entry = _card_file(source)
    if entry is not None:
        return _of_card(_read_card(entry), entry, source)
    if Path(source).is_dir():
        return read_space(Path(source))
    if source in pulled():
        return read_space(space_folder(source))
    if is_repository(source):
        return _from_hub(source)
    raise NotFoundError(f"there is no space called {source!r}", _did_you_mean(source, "space"))


def locate_model(source: str) -> ModelFiles:
    """Find the files of a concept model: a card's name, a card's path, a folder, or ORG/REPO.

    Never uses the network. Raises NotFoundError that names the missing file and the command that
    fetches it, UsageError for the name of a space. What is in the files is looked at when they are
    loaded.
    """
    entry = _card_file(source)
    if entry is not None:
        return _model_of_card(_read_card(entry), entry, source)
    if Path(source).is_dir():
        return _model_in(Path(source), Path(source).resolve().name)
    if model_folder(source).name in pulled("model"):
        return _model_in(model_folder(source), source)
    if is_repository(source):
        return _model_from_hub(source)
    raise NotFoundError(f"there is no model called {source!r}", _did_you_mean(source, "model"))


def read_space(folder: Path) -> SpaceFiles:
    """Read a space folder: config.json and the three files it stands for."""
    config = read_config(folder)
    paths = {role: folder / FILES[role] for role in ROLES}
    for path in paths.values():
        if not path.is_file():
            again = f"lcm pull {folder.name} --force" if folder == space_folder(folder.name) else ""
            raise NotFoundError(f"{folder} is not a whole space: {path.name} is missing", again)
    return SpaceFiles(name=config["name"], config=config, licence=config["licence"], **paths)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read a space's config. Raises NotFoundError, or IntegrityError if it is not one."""
    path = folder / name
    if not path.is_file():
        raise NotFoundError(f"{folder} is not a space: it has no {name}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON: {error}") from error
    if isinstance(config, dict) and config.get("model_type") == "m2m_100":
        raise LcmError(
            f"{folder} holds weights in the M2M-100 layout, which lcm converts once before use",
            "run: lcm pull sonar-hub; for other weights copy its card (checkpoints/sonar-hub.toml),"
            " name the folder or repository of each part in it, and run: lcm pull CARD.toml",
        )
    missing = {"kind", "name", "licence", "languages", "encoder", "decoder"} - set(config)
    if missing or config["kind"] != "space":
        raise IntegrityError(
            f"{path} does not describe a space: {sorted(missing) or config['kind']}"
        )
    return dict(config)


def _of_card(card: Card, entry: Traversable | Path, source: str) -> SpaceFiles:
    if card.kind != "space":
        raise UsageError(f"{card.name} is a {card.kind}, not a space")
    if card.files:
        return _bundled(card, entry)
    if card.name in pulled():
        return read_space(space_folder(card.name))
    missing = space_folder(card.name) / FILES["encoder"]
    message = f"{card.name} is not on this machine: no {missing}"
    raise NotFoundError(message, f"run: lcm pull {source}")


def _bundled(card: Card, entry: Traversable | Path) -> SpaceFiles:
    beside = entry.parent if isinstance(entry, Path) else _folder()
    paths = {role: _real_path(beside / card.files[role].name) for role in ("config", *ROLES)}
    config_path = paths.pop("config")
    config = read_config(config_path.parent, config_path.name)
    return SpaceFiles(name=card.name, config=config, licence=card.licence, **paths)


def _model_of_card(card: Card, entry: Traversable | Path, source: str) -> ModelFiles:
    if card.kind != "model":
        raise UsageError(
            f"{card.name} is a {card.kind}, not a model", f"use it with: --space {source}"
        )
    if card.files:
        beside = entry.parent if isinstance(entry, Path) else _folder()
        config, weights = (_real_path(beside / card.files[role].name) for role in MODEL_FILES)
        return ModelFiles(card.name, config, weights, card.licence)
    if card.name in pulled("model"):
        return _model_in(model_folder(card.name), card.name, card.licence)
    missing = model_folder(card.name) / MODEL_FILES["model"]
    message = f"{card.name} is not on this machine: no {missing}"
    raise NotFoundError(message, f"run: lcm pull {source}")


def _model_in(folder: Path, name: str, licence: str = "") -> ModelFiles:
    config = folder / MODEL_FILES["config"]
    of_run = folder / "model" / config.name  # what `lcm train` leaves in the folder of a run
    if not config.is_file() and of_run.is_file():
        return _model_in(of_run.parent, name, licence)
    if not config.is_file():
        raise NotFoundError(
            f"no model at {folder}: {config.name} is missing",
            "weights of another program become a model with: lcm checkpoints convert",
        )
    return ModelFiles(name, config, folder / MODEL_FILES["model"], licence)


def _model_from_hub(source: str) -> ModelFiles:
    """Find a model in our layout in huggingface_hub's own cache."""
    repo, revision = repository(source)
    folder = local_snapshot(repo, revision, [MODEL_FILES["config"]])
    if folder is None:
        message = f"{source} is not on this machine: no {MODEL_FILES['config']}"
        raise NotFoundError(message, f"run: lcm pull {source}")
    return _model_in(folder, source)


_unpacked = ExitStack()
atexit.register(_unpacked.close)


def _real_path(entry: Traversable | Path) -> Path:
    """Return a path that can be memory-mapped, also where the package lies in a zip."""
    if not entry.is_file():
        raise NotFoundError(f"{entry} is missing from this installation of lcm", "reinstall lcm")
    return _unpacked.enter_context(resources.as_file(entry))


def _from_hub(source: str) -> SpaceFiles:
    """Find a space in our layout in huggingface_hub's own cache."""
    repo, revision = repository(source)
    folder = local_snapshot(repo, revision, ["config.json"])
    if folder is None:
        raise NotFoundError(
            f"{source} is not on this machine: no config.json", f"run: lcm pull {source}"
        )
    return read_space(folder)


def _folder() -> Traversable:
    return resources.files("lcm_cli.checkpoints")


def _names() -> list[str]:
    names = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _card_file(source: str) -> Traversable | Path | None:
    if source.endswith(".toml"):
        if not Path(source).is_file():
            raise not_there(Path(source), "card")
        return Path(source).resolve()
    if not source or "/" in source or "\\" in source:
        return None
    entry = _folder() / f"{source}.toml"
    return entry if entry.is_file() else None


def _read_card(entry: Traversable | Path) -> Card:
    try:
        data = tomllib.loads(entry.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{entry} is not valid TOML: {error}") from error
    return parse(Card, data, str(entry))


def _did_you_mean(name: str, kind: str = "") -> str:
    """Return a hint with the names like `name`: of checkpoints of one kind, or of any."""
    own = [known for known, card in cards().items() if kind in ("", card.kind)]
    here = [name for each in PARTS if kind in ("", each) for name in pulled(each)]
    known = sorted({*own, *here})
    near = nearest(name, known)
    named = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}."
    return f"{named} A folder, a card (.toml) or ORG/REPO works as well"
