"""Cards: the TOML files that describe checkpoints before they are pulled."""

import atexit
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.files import not_there
from lcm_cli.paths import cache_dir
from lcm_cli.schema import nearest, parse, toml_table
from lcm_cli.text.languages import SONAR

ROLES = ("encoder", "decoder", "tokenizer")
PARTS = {"space": ROLES, "model": ("model",), "speech": ("speech",)}
FOLDERS = {"space": "spaces", "model": "models", "speech": "speech"}  # in lcm's cache
UNKNOWN_LICENCE = "NOASSERTION"  # in SPDX
_SEVERAL = ".cards.toml"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class DownloadSource:
    """The source of one part of a checkpoint: a URL, or a Hub repository or local folder (`repo`).

    `asset` is a sonar-space card whose address takes priority over `url` if sonar-space is
    installed. `bytes` and `sha256` are exact and checked; `about_bytes` is an estimate, only shown.
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
            raise IntegrityError("a source needs either url or repo, not both")


@dataclass(frozen=True)
class File:
    """A file beside its card; `make cards` writes `bytes` and `sha256`."""

    name: str
    bytes: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class CardFile:
    """The file of a card; `member` is the card's name if the file holds several."""

    path: Traversable | Path
    member: str = ""


@dataclass(frozen=True)
class Card:
    """The description of a checkpoint.

    A bundled checkpoint lists its `files`, which lie beside the card, by role; one that must be
    pulled lists the `source` of each part. `checksums` says where the digests of these come from:
    the card, or the first pull (see pins.py). A space has `encoder` and `decoder`, the dimensions
    of its halves, and may name the `model` that summarizes and expands in it. A model has an
    `architecture`, a `config` (see lcm_cli.models.config; empty if unknown before the pull) and the
    `space` of the concepts that it reads. A speech encoder has the shapes of its `encoder` and the
    `spaces` of its concepts, which are the same in all of them. `languages` is their number, or
    their codes in id order. `recipe` documents the training, `results` the evaluation. A `family`
    of cards shares one file.
    """

    name: str
    kind: Literal["space", "model", "speech"]
    summary: str
    licence: str
    licence_note: str
    languages: int | tuple[str, ...]
    checksums: Literal["card", "first pull"] = "first pull"
    architecture: str = ""
    space: str = ""
    spaces: tuple[str, ...] = ()
    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    source: dict[str, DownloadSource] = field(default_factory=dict)
    encoder: dict[str, int] = field(default_factory=dict)
    decoder: dict[str, int | bool] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    family: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise IntegrityError(
                f"name {self.name!r} has characters other than letters, digits, '.', '_' and '-'"
            )
        if foreign := set(self.source) - set(self.parts):
            raise IntegrityError(
                f"unknown part {min(foreign)!r}", f"parts: {', '.join(self.parts)}"
            )
        if outside := [
            file.name for file in self.files.values() if Path(file.name).name != file.name
        ]:
            raise IntegrityError(f"{outside[0]!r} is not in the folder of the card")
        if self.checksums == "card" and (bare := self._without_checksum()):
            raise IntegrityError(f"checksums = 'card', but {bare[0]} lacks bytes or sha256")

    @property
    def parts(self) -> tuple[str, ...]:
        """The roles of its parts."""
        return PARTS[self.kind]

    def _without_checksum(self) -> list[str]:
        every: dict[str, File | DownloadSource] = {**self.files, **self.source}
        return [role for role, part in every.items() if part.bytes is None or not part.sha256]


def is_non_commercial(licence: str) -> bool:
    """Return whether an SPDX licence forbids commercial use."""
    return "NC" in licence.upper().split("-")


def must_be_accepted(licence: str) -> bool:
    """Return whether a user has to accept a licence: it is non-commercial or unknown."""
    return is_non_commercial(licence) or licence in ("", UNKNOWN_LICENCE, "other", "unknown")


def cards() -> dict[str, Card]:
    """Return the cards that come with lcm, by name."""
    return {name: read_card(file) for name, file in sorted(_card_files().items())}


def card(source: str) -> Card:
    """Return the card called `source`, or the card in a file whose path ends in .toml.

    Raises NotFoundError, with the nearest names, or IntegrityError for a malformed file.
    """
    file = find_card_file(source)
    if file is None:
        raise NotFoundError(f"there is no checkpoint called {source!r}", suggest_names(source))
    return read_card(file)


@cache
def space_languages() -> dict[str, tuple[str, ...]]:
    """Return the language codes of every space that has a card, by the name of the space."""
    spaces = [card for card in cards().values() if card.kind == "space"]
    # A card that has only the number of its languages describes SONAR as published.
    return {c.name: SONAR if isinstance(c.languages, int) else c.languages for c in spaces}


def spaces_with(code: str) -> list[str]:
    """Return the names of the spaces that have the language `code`."""
    return [name for name, codes in space_languages().items() if code in codes]


def speech_encoder_for(space: str, code: str) -> str:
    """Return the name of a speech encoder for the language `code`, into the concepts of `space`.

    One that is on this machine takes priority. Raises NotFoundError, with the languages of the
    space's speech encoders, if there is none.
    """
    known = [card for card in cards().values() if card.kind == "speech" and space in card.spaces]
    by_name = {card.name: card.languages for card in known if not isinstance(card.languages, int)}
    if fitting := [name for name, codes in by_name.items() if code in codes]:
        here = {card.name for card in known if card.files} | set(list_pulled("speech"))
        return min(fitting, key=lambda name: name not in here)
    heard = sorted({code for codes in by_name.values() for code in codes})
    hint = f"it has them for: {' '.join(heard)}" if heard else "train one with: lcm train"
    raise NotFoundError(f"the space {space} has no speech encoder for {code}", hint)


def card_path(source: str) -> Path:
    """Return the file of a card, by a name that `card` accepts."""
    file = find_card_file(source)
    assert file is not None
    return _real_path(file.path)


def space_folder(name: str) -> Path:
    """Return the cache folder of the space called `name`, which need not exist."""
    return cache_dir() / "spaces" / name


def model_folder(name: str) -> Path:
    """Return the cache folder of the model called `name`, or ORG/REPO; it need not exist."""
    return cache_dir() / "models" / name.replace("/", "--").replace("@", "--")


def speech_folder(name: str) -> Path:
    """Return the cache folder of the speech encoder called `name`, which need not exist."""
    return cache_dir() / FOLDERS["speech"] / name


def folder_of(kind: str, name: str) -> Path:
    """Return the cache folder of the checkpoint of one kind called `name`; it need not exist."""
    return model_folder(name) if kind == "model" else cache_dir() / FOLDERS[kind] / name


def list_pulled(kind: str = "space") -> list[str]:
    """Return the names of the checkpoints of one kind in lcm's cache."""
    configs = (cache_dir() / FOLDERS[kind]).glob("*/config.json")
    return sorted(path.parent.name for path in configs if _NAME.fullmatch(path.parent.name))


def suggest_names(name: str, kind: str = "") -> str:
    """Return a hint with the checkpoint names closest to `name`, of one kind or of any."""
    if of_family := [known for known, card in cards().items() if card.family == name]:
        return f"name one of its {len(of_family)} checkpoints, such as {of_family[0]}"
    own = [known for known, card in cards().items() if kind in ("", card.kind)]
    here = [name for each in PARTS if kind in ("", each) for name in list_pulled(each)]
    known = sorted({*own, *here})
    near = nearest(name, known)
    families = {member: f"{file.family}-..." for member, file in cards().items() if file.family}
    listed = dict.fromkeys(families.get(one, one) for one in known)
    named = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(listed)}."
    return f"{named} A folder, a card (.toml) or ORG/REPO works as well"


def find_card_file(source: str) -> CardFile | None:
    """Return the file of the card called `source`, None for an unknown name.

    Raises NotFoundError for a path to a .toml file that does not exist.
    """
    if source.endswith(".toml"):
        if not Path(source).is_file():
            raise not_there(Path(source), "card")
        return CardFile(Path(source).resolve())
    if not source or "/" in source or "\\" in source:
        return None
    alone = _folder() / f"{source}.toml"
    return CardFile(alone) if alone.is_file() else _members().get(source)


def read_card(file: CardFile) -> Card:
    """Read a card. Raises IntegrityError."""
    place = str(file.path)
    table = _families()[file.member] if file.member else toml_table(file.path.read_bytes(), place)
    return parse(Card, table, place)


def _merge(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return `common` with the values of `own`, table by table."""
    nested = {
        key: _merge(value, own[key])
        for key, value in common.items()
        if isinstance(value, dict) and key in own
    }
    return common | own | nested


def _card_files() -> dict[str, CardFile]:
    names = (entry.name for entry in _folder().iterdir())
    alone = {
        name.removesuffix(".toml"): CardFile(_folder() / name)
        for name in names
        if name.endswith(".toml") and not name.endswith(_SEVERAL)
    }
    return alone | _members()


def _members() -> dict[str, CardFile]:
    files = {entry.name: entry for entry in _folder().iterdir()}
    return {
        name: CardFile(files[table["family"] + _SEVERAL], name)
        for name, table in _families().items()
    }


@cache
def _families() -> dict[str, dict[str, Any]]:
    """Return the content of each card in the files FAMILY.cards.toml, by its name.

    Such a file begins with the keys that its cards share; the tables in [cards] complete these.
    """
    found = {}
    for file in _folder().iterdir():
        if file.name.endswith(_SEVERAL):
            common = toml_table(file.read_bytes(), str(file))
            common["family"] = file.name.removesuffix(_SEVERAL)
            for name, own in common.pop("cards").items():
                found[name] = _merge(common, own | {"name": name})
    return found


def _folder() -> Traversable:
    return resources.files("lcm_cli.checkpoints")


_unpacked = ExitStack()
atexit.register(_unpacked.close)


def file_beside(file: CardFile, name: str) -> Path:
    """Return the file called `name` in the folder of a card."""
    return _real_path((file.path.parent if isinstance(file.path, Path) else _folder()) / name)


def _real_path(entry: Traversable | Path) -> Path:
    """Return a path that can be memory-mapped, even if the package is installed as a zip."""
    if not entry.is_file():
        raise NotFoundError(f"{entry} is missing from this installation of lcm", "reinstall lcm")
    return _unpacked.enter_context(resources.as_file(entry))
