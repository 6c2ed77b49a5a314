"""Conversion of checkpoints: from other programs' layouts, or to another number format."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.files import atomic_files, sha256
from lcm_cli.hub.cards import Card
from lcm_cli.hub.layouts import ADAPTER, MODEL_CARD, OURS, SPACE_FILES, read_json, read_licence
from lcm_cli.hub.locate import SpaceFiles, checkpoint_in, locate_model, locate_space, locate_speech
from lcm_cli.models.checkpoint import (
    CONFIG,
    FULL_PRECISION,
    WEIGHTS,
    config_text,
    open_model,
    write,
)
from lcm_cli.space import Space, load_space
from lcm_cli.space.adapters import check_base
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.loading import open_weights
from lcm_cli.space.similarity import unit_length
from lcm_cli.space.tokenizer import EOS
from lcm_cli.speech.speech import open_speech
from lcm_cli.speech.speech import write as write_speech
from lcm_cli.transfer.converters.foreign import read_model
from lcm_cli.transfer.converters.m2m_100 import port_space
from lcm_cli.transfer.converters.sonar import check_tokenizer, convert_half
from lcm_cli.transfer.converters.speech import card_of, config_of, read_speech
from lcm_cli.transfer.inventory import find_any
from lcm_cli.transfer.plan import ORIGIN, PORT_TOKENIZER
from lcm_cli.weights import (
    Store,
    Weight,
    pieces,
    read_weights,
    relative_error,
    write_safetensors,
)

# Everyday English sentences of common lengths, to measure how far rounding moves concepts.
_LANGUAGE = "eng_Latn"
_SENTENCES = (
    "She was very happy.",
    "The children play in the garden behind the house.",
    "Where did you put the keys of the car?",
    "My brother has worked in a small town by the sea for twenty years.",
    "It rained all night, and in the morning the streets were full of water.",
    "If you had told me that before, I would not have bought the tickets.",
)


@dataclass(frozen=True)
class Cost:
    """The effect of storing weights in another number format.

    `relative_error` is the norm of the change of the weights over the norm of the weights; `cosine`
    is the mean cosine between the concepts of a few English sentences before and after.
    `loss_before` and `loss_after` are the mean cross-entropies per token, in nats, of decoding
    these sentences from their own concepts. All three are None for models and for spaces without
    English.
    """

    bytes_before: int
    bytes_after: int
    relative_error: float
    cosine: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None

    @property
    def decodes_worse(self) -> bool:
        """Whether the decoder has lost more than a tenth of a nat per token."""
        return (self.loss_after or 0) > (self.loss_before or 0) + 0.1


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint; `space` names the space.

    `space` is empty if a model does not name one; only a model has an `architecture`. `cost` is
    None without a number format, except for adapters. Without `same_concepts`, a space has another
    fingerprint than its source.
    """

    kind: Literal["space", "model", "speech"]
    architecture: str
    dim: int
    space: str
    cost: Cost | None = None
    same_concepts: bool = True


def convert(
    source: str, folder: Path, store: Store | None = None, *, force: bool = False
) -> Converted:
    """Write the checkpoint `source` to `folder` in lcm's layout, with numbers stored as `store`.

    `source` is a model of another program (see converters.foreign), whose numbers keep their type
    without `store`, the folder of a space in the M2M-100 layout, an official speech encoder under
    its published name, or a checkpoint of lcm, by name or folder. An adapter is merged into its
    base, whose number formats are kept without `store` (float16 for adapted matrices in int8).
    Nothing is written unless every tensor fits. Raises NotFoundError for an unknown source,
    IntegrityError if it is damaged, not a checkpoint, would run code, or has numbers that `store`
    cannot hold, UsageError if `folder` already holds a checkpoint.
    """
    ours = _is_own_layout(source)
    if ours and store is None and not _is_adapter(source):
        message = f"{source} is already in lcm's layout"
        raise UsageError(message, "choose a number format, as in: --store int8")
    if (folder / CONFIG).exists() and not force:
        message = f"{folder} already holds a checkpoint"
        raise UsageError(message, "choose another folder, or add --force")
    try:
        if not ours:
            if read_json(Path(source) / CONFIG).get("model_type") == "m2m_100":
                return _convert_port(Path(source), folder, store, force)
            if card := card_of(Path(source)):
                return _convert_official_speech(card, Path(source), folder, store, force)
            return _convert_foreign(Path(source), folder, store, force)
        found = find_any(source)
        if found.path is not None and found.path.resolve() == folder.resolve():
            raise UsageError(f"{folder} is the source itself", "choose another folder")
        if found.kind == "space":
            return _convert_space(locate_space(source), folder, store, force)
        if found.kind == "speech":
            return _convert_speech(source, folder, store, force)
        return _convert_model(source, folder, store, force)
    except IntegrityError as error:
        if source in error.message:
            raise
        raise IntegrityError(f"{source}: {error.message}", error.hint) from error


def _is_own_layout(source: str) -> bool:
    """Return whether `source` is in lcm's own layout. Raises NotFoundError if it does not exist."""
    path = Path(source)
    if not path.exists():
        try:
            find_any(source)
        except NotFoundError as error:
            message = f"no file, folder or checkpoint is called {source}"
            raise NotFoundError(message, error.hint) from error
        return True
    if not path.is_dir():
        return False
    folder = checkpoint_in(path)
    return folder != path or read_json(folder / CONFIG).get("kind") in OURS


def _is_adapter(source: str) -> bool:
    return any(file.name == ADAPTER for file in find_any(source).files.values())


def _convert_foreign(source: Path, folder: Path, store: Store | None, force: bool) -> Converted:
    config, before = read_model(source)
    write(config, before, folder, store=store, force=force)
    cost = None if store is None else _measure_cost(before, read_weights(folder / WEIGHTS))
    return Converted("model", config.architecture, config.concept_dim, config.space.name, cost)


def _convert_port(source: Path, folder: Path, store: Store | None, force: bool) -> Converted:
    if store is not None:
        message = "a space in the M2M-100 layout keeps its numbers"
        raise UsageError(
            message, "convert it without --store, then convert the result with --store"
        )
    config = port_space(source)
    tokenizer, languages = source / PORT_TOKENIZER, config["languages"]
    check_tokenizer(tokenizer, config["encoder"]["vocabulary"], len(languages))
    with atomic_files(folder, [*SPACE_FILES.values(), CONFIG], force=force) as places:
        digests = {
            role: convert_half(role, source, places[SPACE_FILES[role]], config[role], languages)
            for role in ("encoder", "decoder")
        }
        shutil.copyfile(tokenizer, places[SPACE_FILES["tokenizer"]])
        digests["tokenizer"] = sha256(tokenizer)
        _write_json(places[CONFIG], {**config, "sha256": digests})
    return Converted("space", "", config["encoder"]["model_dim"], config["name"])


def _convert_model(source: str, folder: Path, store: Store | None, force: bool) -> Converted:
    files = locate_model(source)
    model, before = open_model(files)
    place, config = files.config.parent, model.config
    licence = files.licence or read_licence(place)
    names = [*_readme_beside(files.config), *([ORIGIN] if licence else []), WEIGHTS, CONFIG]
    with atomic_files(folder, names, force=force) as places:
        stored = pieces(before, store, FULL_PRECISION)
        digests = {WEIGHTS: write_safetensors(places[WEIGHTS], stored)}
        places[CONFIG].write_text(config_text(config), encoding="utf-8")
        digests[CONFIG] = sha256(places[CONFIG])
        if licence:  # a config has no place for it
            made_of = read_json(place / ORIGIN).get("source", {})
            about = {"name": files.name, "licence": licence, "source": made_of, "sha256": digests}
            _write_json(places[ORIGIN], about)
        _copy_readme(place, places)
    cost = _measure_cost(before, read_weights(folder / WEIGHTS))
    return Converted("model", config.architecture, config.concept_dim, config.space.name, cost)


def _convert_space(files: SpaceFiles, folder: Path, store: Store | None, force: bool) -> Converted:
    if files.adapter:
        check_base(files.adapter)
    shapes = EncoderConfig(**files.config["encoder"]), DecoderConfig(**files.config["decoder"])
    before = {
        "encoder": open_weights(TextEncoder, shapes[0], files.encoder, files.adapter)[1],
        "decoder": open_weights(TextDecoder, shapes[1], files.decoder, files.adapter)[1],
    }
    beside = files.adapter.weights if files.adapter else files.encoder
    names = [*_readme_beside(beside), *SPACE_FILES.values(), CONFIG]
    with atomic_files(folder, names, force=force) as places:
        digests = {
            role: write_safetensors(places[SPACE_FILES[role]], pieces(weights, store))
            for role, weights in before.items()
        }
        shutil.copyfile(files.tokenizer, places[SPACE_FILES["tokenizer"]])
        digests["tokenizer"] = sha256(files.tokenizer)
        config = {key: value for key, value in files.config.items() if key != "adapter"}
        _write_json(places[CONFIG], {**config, "sha256": digests})
        _copy_readme(files.folder, places)
    after = read_weights(*(folder / SPACE_FILES[role] for role in before))
    space = Space(files, torch.device("cpu"), "float32", None)
    new = load_space(str(folder), device="cpu", precision="float32")
    cost = _measure_cost(before["encoder"] | before["decoder"], after)
    if _LANGUAGE in space.languages:
        cost = _with_sentences(cost, space, new)
    same = new.fingerprint == space.fingerprint
    return Converted("space", "", space.dim, space.name, cost, same_concepts=same)


def _convert_official_speech(
    card: Card, source: Path, folder: Path, store: Store | None, force: bool
) -> Converted:
    config = config_of(card)
    before = read_speech(source, config.encoder)
    write_speech(config, before, folder, store=store, force=force)
    cost = None if store is None else _measure_cost(before, read_weights(folder / WEIGHTS))
    return Converted("speech", "", config.encoder.concept_dim, config.spaces[0], cost)


def _convert_speech(source: str, folder: Path, store: Store | None, force: bool) -> Converted:
    files = locate_speech(source)
    config, before = open_speech(files)
    write_speech(config, before, folder, store=store, force=force)
    if _readme_beside(files.config):
        shutil.copyfile(files.config.with_name(MODEL_CARD), folder / MODEL_CARD)
    cost = _measure_cost(before, read_weights(folder / WEIGHTS))
    return Converted("speech", "", config.encoder.concept_dim, config.spaces[0], cost)


def _readme_beside(file: Path) -> list[str]:
    """Return the name of the README.md beside `file`, unless `file` is a bundled one."""
    # Bundled files have other names.
    of_its_own = file.name in (CONFIG, ADAPTER, SPACE_FILES["encoder"])
    return [MODEL_CARD] if of_its_own and (file.parent / MODEL_CARD).is_file() else []


def _copy_readme(place: Path, places: Mapping[str, Path]) -> None:
    if MODEL_CARD in places:
        shutil.copyfile(place / MODEL_CARD, places[MODEL_CARD])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _measure_cost(before: Mapping[str, Weight], after: Mapping[str, Weight]) -> Cost:
    sizes = [sum(weight.nbytes for weight in part.values()) for part in (before, after)]
    return Cost(sizes[0], sizes[1], relative_error(before, after))


def _with_sentences(cost: Cost, before: Space, after: Space) -> Cost:
    """Return `cost` with what a few sentences lose."""
    concepts = [space.encode(_SENTENCES, _LANGUAGE).concepts for space in (before, after)]
    a_SD, b_SD = map(unit_length, concepts)
    cosine = float((a_SD * b_SD).sum(axis=1).mean())
    losses = [_decoding_loss(*each) for each in zip((before, after), concepts, strict=True)]
    return replace(cost, cosine=cosine, loss_before=losses[0], loss_after=losses[1])


@torch.inference_mode()
def _decoding_loss(space: Space, concepts_SD: np.ndarray) -> float:
    """Return the mean cross-entropy per token of the sentences given their concepts, in nats.

    The language token is given, not predicted. Rows are cut off at the decoder's maximum length.
    """
    most = space.decoder.config.max_length
    rows = [row[:most] for row in space.tokenize(_SENTENCES, _LANGUAGE)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    inputs = [[EOS, *rows[i][:-1]] for i in order]
    decoder = space.decoder
    logits_TV = decoder.project(decoder(torch.from_numpy(concepts_SD[order]).float(), inputs))
    wanted_T = torch.tensor([token for i in order for token in rows[i]])
    first_T = torch.tensor([place == 0 for i in order for place in range(len(rows[i]))])
    return float(F.cross_entropy(logits_TV[~first_T].float(), wanted_T[~first_T]))
