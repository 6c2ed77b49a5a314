"""The files of spaces and concept models on this machine.

An adapter is a space or a model whose weights are those of another one, its base, with small
updates: it has the files of the base, and one of its own.

Nothing here uses the network (see lcm_cli.transfer): errors name the missing file and the command
that fetches it.
"""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub.cards import (
    ROLES,
    Card,
    CardFile,
    file_beside,
    find_card_file,
    list_pulled,
    model_folder,
    read_card,
    space_folder,
    speech_folder,
    suggest_names,
)
from lcm_cli.hub.layouts import ADAPTER, SPACE_FILES, read_json, weight_parts
from lcm_cli.hub.snapshot import local_snapshot
from lcm_cli.schema import json_value, parse

MODEL_FILES = {"config": "config.json", "model": "model.safetensors"}
SPEECH_FILES = {"config": "config.json", "speech": "model.safetensors"}
_LARGEST = (1 << 31) - 1  # of any number in a config
_MOST_TOKENS = 1 << 16  # of a sentence
_ENCODERS = "see the speech encoders: lcm checkpoints list"


@dataclass(frozen=True)
class _Shapes:
    """The numbers of an encoder, or of a decoder, in a space's config.json."""

    layers: int
    model_dim: int
    heads: int
    ffn_dim: int
    vocabulary: int
    max_length: int = 514

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = _MOST_TOKENS if name == "max_length" else _LARGEST
            if not 0 < value <= most:
                raise IntegrityError(f"{name} = {value} is not between 1 and {most}")
        if self.model_dim % self.heads:
            raise IntegrityError(
                f"model_dim {self.model_dim} is not a multiple of {self.heads} heads"
            )


@dataclass(frozen=True, kw_only=True)
class _DecoderShapes(_Shapes):
    concept_dim: int


@dataclass(frozen=True)
class _SpaceConfig:
    """The part of a space's config.json that is read."""

    name: str
    licence: str
    languages: tuple[str, ...]
    encoder: _Shapes
    decoder: _DecoderShapes


@dataclass(frozen=True)
class AdapterConfig:
    """The `adapter` table of a config.json: low-rank updates of the matrices of `base`.

    `base` is a name, a folder or ORG/REPO, and `fingerprint` the digest of its weights. An update
    is the product of two matrices of `rank` columns and rows, times `alpha` / `rank`. `modules`
    are the patterns that selected the matrices.
    """

    base: str
    fingerprint: str
    rank: int
    alpha: float
    modules: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise IntegrityError(f"rank must be at least 1, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise IntegrityError(f"alpha must be a positive number, not {self.alpha}")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter: its table, its weights, and the files of its base that the fingerprint covers."""

    config: AdapterConfig
    weights: Path
    base: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SpaceFiles:
    """The files of one space on this machine, and its config.json.

    Those of an adapter are the files of its base, to which `adapter` applies.
    """

    name: str
    config: Mapping[str, Any]
    encoder: Path
    decoder: Path
    tokenizer: Path
    licence: str
    adapter: AdapterFiles | None = None

    @property
    def contents(self) -> tuple[Path, ...]:
        """The files that the fingerprint of an adapter's base covers."""
        return (self.encoder, self.decoder, self.tokenizer)

    @property
    def folder(self) -> Path:
        """The folder of its own files."""
        return (self.adapter.weights if self.adapter else self.encoder).parent


@dataclass(frozen=True)
class ModelFiles:
    """The files of one concept model on this machine; `licence` is empty if it is unknown.

    Large weights may be split into several files beside `weights`, with an index. `weights` of an
    adapter are those of its base, to which `adapter` applies.
    """

    name: str
    config: Path
    weights: Path
    licence: str = ""
    adapter: AdapterFiles | None = None

    @property
    def contents(self) -> tuple[Path, ...]:
        """The files that the fingerprint of an adapter's base covers."""
        return tuple(weight_parts(self.weights))


@dataclass(frozen=True)
class SpeechFiles:
    """The files of one speech encoder on this machine."""

    config: Path
    weights: Path


def is_repository(source: str) -> bool:
    """Return whether `source` has the form ORG/REPO or ORG/REPO@REVISION."""
    form = r"[\w.-]*\w/\w[\w.-]*(@\w[\w./-]*)?"
    return bool(re.fullmatch(form, source)) and ".." not in source and not source.endswith(".toml")


def split_repository(source: str) -> tuple[str, str]:
    """Return the repository and the revision in ORG/REPO or ORG/REPO@REVISION."""
    repo, _, revision = source.partition("@")
    return repo, revision or "main"


def checkpoint_in(folder: Path) -> Path:
    """Return the folder of a checkpoint: `folder`, or "model" in it if it is a training run's."""
    config = MODEL_FILES["config"]
    of_run = not (folder / config).is_file() and (folder / "model" / config).is_file()
    return folder / "model" if of_run else folder


def locate_space(source: str) -> SpaceFiles:
    """Find the files of a space: a card's name, a card's path, a folder, or ORG/REPO.

    Raises NotFoundError with the missing file and the command that fetches it, IntegrityError if
    config.json does not describe a space, UsageError for the name of a model.
    """
    return _space_on_base(_find_space(source))


def _find_space(source: str) -> SpaceFiles:
    """Find a space; the files of an adapter are its own, without those of its base."""
    file = find_card_file(source)
    if file is not None:
        return _of_card(read_card(file), file, source)
    if Path(source).is_dir():
        return _space_in(Path(source))
    if source in list_pulled():
        return _space_in(space_folder(source))
    if is_repository(source):
        return _from_hub(source)
    raise NotFoundError(f"there is no space called {source!r}", suggest_names(source, "space"))


def locate_model(source: str) -> ModelFiles:
    """Find the files of a concept model: a card's name, a card's path, a folder, or ORG/REPO.

    Raises NotFoundError with the missing file and the command that fetches it, UsageError for the
    name of a space. The contents of the files are not checked.
    """
    return _model_on_base(_find_model(source))


def _find_model(source: str) -> ModelFiles:
    """Find a model; the files of an adapter are its own, without those of its base."""
    file = find_card_file(source)
    if file is not None:
        return _model_of_card(read_card(file), file, source)
    if Path(source).is_dir():
        return _model_in(Path(source), Path(source).resolve().name)
    if model_folder(source).name in list_pulled("model"):
        return _model_in(model_folder(source), source)
    if is_repository(source):
        return _model_from_hub(source)
    raise NotFoundError(f"there is no model called {source!r}", suggest_names(source, "model"))


def locate_speech(source: str) -> SpeechFiles:
    """Find the files of a speech encoder: a card's name, a card's path, a folder, or ORG/REPO.

    Raises NotFoundError with the missing file and the command that fetches it, UsageError for the
    name of a checkpoint of another kind. The contents of the files are not checked.
    """
    file = find_card_file(source)
    if file is not None:
        return _speech_of_card(read_card(file), file, source)
    if Path(source).is_dir():
        return _speech_in(checkpoint_in(Path(source)))
    if source in list_pulled("speech"):
        return _speech_in(speech_folder(source))
    if is_repository(source):
        return _speech_from_hub(source)
    hint = suggest_names(source, "speech")
    raise NotFoundError(f"there is no speech encoder called {source!r}", hint)


# By kind: functions that take a name, a path or ORG/REPO, and raise NotFoundError.
WAYS: dict[str, Callable[[str], object]] = {
    "space": locate_space,
    "model": locate_model,
    "speech": locate_speech,
}


def read_space(folder: Path) -> SpaceFiles:
    """Return the files of the space in a folder; raises as `locate_space` does."""
    return _space_on_base(_space_in(folder))


def _space_in(folder: Path) -> SpaceFiles:
    config = read_space_config(folder)
    paths: dict[str, Any] = {role: folder / SPACE_FILES[role] for role in ROLES}
    adapter = _adapter_in(folder, config) if "adapter" in config else None
    for path in [adapter.weights] if adapter else paths.values():
        if not path.is_file():
            again = f"lcm pull {folder.name} --force" if folder == space_folder(folder.name) else ""
            raise NotFoundError(f"{folder} is not a complete space: {path.name} is missing", again)
    about = {"name": config["name"], "config": config, "licence": config["licence"]}
    return SpaceFiles(**about, **paths, adapter=adapter)


def base_of(source: str) -> str:
    """Return the base of the adapter `source`, "" if it is none or is not on this machine."""
    for find in (_find_space, _find_model):
        with suppress(LcmError):
            adapter = find(source).adapter
            return adapter.config.base if adapter else ""
    return ""


def read_adapter(folder: Path) -> AdapterFiles | None:
    """Return the adapter in a folder, without the files of its base; None if there is none.

    Raises IntegrityError for a malformed config.
    """
    if not (folder / ADAPTER).is_file():
        return None
    return _adapter_in(folder, read_json(folder / "config.json"))


def _adapter_in(folder: Path, config: Mapping[str, Any]) -> AdapterFiles:
    """Return the adapter in a folder. Raises IntegrityError for a malformed table in its config."""
    table = config.get("adapter")
    if not isinstance(table, dict):
        raise IntegrityError(f"{folder / 'config.json'} has no table `adapter`")
    parsed = parse(AdapterConfig, table, f"{folder / 'config.json'}: adapter")
    return AdapterFiles(parsed, folder / ADAPTER)


def _space_on_base(found: SpaceFiles) -> SpaceFiles:
    """Give an adapter the files of its base; return any other space unchanged."""
    if found.adapter is None:
        return found
    base = _find_base(found.adapter, _find_space)
    adapter = replace(found.adapter, base=base.contents)
    return replace(
        base, name=found.name, config=found.config, licence=found.licence, adapter=adapter
    )


def _model_on_base(found: ModelFiles) -> ModelFiles:
    """Give an adapter the weights of its base; return any other model unchanged."""
    if found.adapter is None:
        return found
    base = _find_base(found.adapter, _find_model)
    adapter = replace(found.adapter, base=base.contents)
    return replace(found, weights=base.weights, adapter=adapter)


Files = TypeVar("Files", SpaceFiles, ModelFiles)


def _find_base(adapter: AdapterFiles, find: Callable[[str], Files]) -> Files:
    """Return the files of an adapter's base, which may not be an adapter itself."""
    name, folder = adapter.config.base, adapter.weights.parent
    try:
        base = find(name)
    except NotFoundError as error:
        message = f"{folder} is an adapter of {name!r}, which is missing: {error.message}"
        raise NotFoundError(message, error.hint) from error
    if base.adapter is not None:
        raise IntegrityError(
            f"{folder} is an adapter of {name!r}, which is an adapter itself",
            f"merge it and train again: lcm checkpoints convert {name} -o DIR",
        )
    return base


def read_space_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read the config of a space. Raises NotFoundError, or IntegrityError if it is malformed."""
    path = folder / name
    if not path.is_file():
        raise NotFoundError(f"{folder} is not a space: it has no {name}")
    config = json_value(path.read_bytes(), str(path))
    if not isinstance(config, dict):
        raise IntegrityError(f"{path} does not contain a JSON object")
    if config.get("model_type") == "m2m_100":
        raise LcmError(
            f"{folder} holds weights in the M2M-100 layout, which lcm has to convert before use",
            f"run: lcm checkpoints convert {folder} -o MY-SPACE; SONAR itself: lcm pull sonar-hub",
        )
    known = {"kind", "name", "licence", "languages", "encoder", "decoder"}
    missing = known - set(config)
    if missing or config["kind"] != "space":
        raise IntegrityError(
            f"{path} does not describe a space: {sorted(missing) or config['kind']}"
        )
    parse(_SpaceConfig, {key: config[key] for key in known - {"kind"}}, str(path))
    return config


def _of_card(card: Card, file: CardFile, source: str) -> SpaceFiles:
    if card.kind != "space":
        raise UsageError(f"{card.name} is a {card.kind}, not a space")
    if card.files:
        return _bundled(card, file)
    if card.name in list_pulled():
        return _space_in(space_folder(card.name))
    missing = space_folder(card.name) / SPACE_FILES["encoder"]
    message = f"{card.name} is not on this machine: no {missing}"
    raise NotFoundError(message, f"run: lcm pull {source}")


def _bundled(card: Card, file: CardFile) -> SpaceFiles:
    paths: dict[str, Any] = {
        role: file_beside(file, card.files[role].name) for role in ("config", *ROLES)
    }
    config_path = paths.pop("config")
    config = read_space_config(config_path.parent, config_path.name)
    return SpaceFiles(name=card.name, config=config, licence=card.licence, **paths)


def _model_of_card(card: Card, file: CardFile, source: str) -> ModelFiles:
    if card.kind != "model":
        raise UsageError(
            f"{card.name} is a {card.kind}, not a model", f"use it with: --space {source}"
        )
    if card.files:
        config, weights = (file_beside(file, card.files[role].name) for role in MODEL_FILES)
        return ModelFiles(card.name, config, weights, card.licence)
    if card.name in list_pulled("model"):
        return _model_in(model_folder(card.name), card.name, card.licence)
    missing = model_folder(card.name) / MODEL_FILES["model"]
    message = f"{card.name} is not on this machine: no {missing}"
    raise NotFoundError(message, f"run: lcm pull {source}")


def _model_in(folder: Path, name: str, licence: str = "") -> ModelFiles:
    folder = checkpoint_in(folder)
    config = folder / MODEL_FILES["config"]
    if not config.is_file():
        raise NotFoundError(
            f"no model at {folder}: {config.name} is missing",
            "convert the weights of another program with: lcm checkpoints convert",
        )
    weights = folder / MODEL_FILES["model"]
    return ModelFiles(name, config, weights, licence, read_adapter(folder))


def _model_from_hub(source: str) -> ModelFiles:
    """Find a model in lcm's own layout in huggingface_hub's own cache."""
    repo, revision = split_repository(source)
    folder = local_snapshot(repo, revision, [MODEL_FILES["config"]])
    if folder is None:
        message = f"{source} is not on this machine: no {MODEL_FILES['config']}"
        raise NotFoundError(message, f"run: lcm pull {source}")
    return _model_in(folder, source)


def _speech_of_card(card: Card, file: CardFile, source: str) -> SpeechFiles:
    if card.kind != "speech":
        raise UsageError(f"{card.name} is a {card.kind}, not a speech encoder", _ENCODERS)
    if card.files:
        return SpeechFiles(*(file_beside(file, card.files[role].name) for role in SPEECH_FILES))
    if card.name in list_pulled("speech"):
        return _speech_in(speech_folder(card.name))
    missing = speech_folder(card.name) / SPEECH_FILES["speech"]
    message = f"{card.name} is not on this machine: no {missing}"
    raise NotFoundError(message, f"run: lcm pull {source}")


def _speech_in(folder: Path) -> SpeechFiles:
    files = SpeechFiles(*(folder / name for name in SPEECH_FILES.values()))
    for path in (files.config, files.weights):
        if not path.is_file():
            raise NotFoundError(f"no speech encoder at {folder}: {path.name} is missing")
    # The files of concept models have the same names.
    kind = read_json(files.config).get("kind")
    if kind in ("model", "space"):
        raise UsageError(f"{folder} is a {kind}, not a speech encoder", _ENCODERS)
    return files


def _speech_from_hub(source: str) -> SpeechFiles:
    """Find a speech encoder in lcm's own layout in huggingface_hub's own cache."""
    folder = local_snapshot(*split_repository(source), [*SPEECH_FILES.values()])
    if folder is None:
        raise NotFoundError(f"{source} is not on this machine", f"run: lcm pull {source}")
    return _speech_in(folder)


def _from_hub(source: str) -> SpaceFiles:
    """Find a space in lcm's own layout in huggingface_hub's own cache."""
    repo, revision = split_repository(source)
    folder = local_snapshot(repo, revision, ["config.json"])
    if folder is None:
        raise NotFoundError(
            f"{source} is not on this machine: no config.json", f"run: lcm pull {source}"
        )
    return _space_in(folder)
