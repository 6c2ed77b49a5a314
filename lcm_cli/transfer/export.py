"""Export of spaces to the layouts of other programs."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm_cli.errors import UsageError
from lcm_cli.files import atomic_files
from lcm_cli.hub.cards import file_beside, find_card_file, read_card
from lcm_cli.hub.layouts import MODEL_CARD
from lcm_cli.hub.locate import SpaceFiles, locate_space
from lcm_cli.models.checkpoint import CONFIG, WEIGHTS
from lcm_cli.space.adapters import check_base
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.loading import open_weights
from lcm_cli.transfer.converters.m2m_100 import (
    check_architecture,
    is_tied,
    port_config,
    port_tensors,
)
from lcm_cli.transfer.converters.sonar import check_tokenizer
from lcm_cli.transfer.converters.tokenizer_json import SPECIAL, added_token, tokenizer_json
from lcm_cli.transfer.model_card import port_card
from lcm_cli.transfer.plan import PORT_TOKENIZER
from lcm_cli.weights import write_safetensors

_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_FILES = (MODEL_CARD, PORT_TOKENIZER, _TOKENIZER, _TOKENIZER_CONFIG, WEIGHTS, CONFIG)


@dataclass(frozen=True)
class Exported:
    """An exported space: its name, and the size in bytes of each file."""

    name: str
    files: dict[str, int]


def export(source: str, folder: Path, *, force: bool = False) -> Exported:
    """Write the space `source` to `folder` in the M2M-100 layout, which transformers reads.

    Adapters are merged into their base.

    Raises NotFoundError for an unknown space, IntegrityError for a damaged one, UsageError if its
    sizes do not fit the layout or `folder` already holds a checkpoint.
    """
    files = locate_space(source)
    encoder = EncoderConfig(**files.config["encoder"])
    decoder = DecoderConfig(**files.config["decoder"])
    check_architecture(files.name, vars(encoder), vars(decoder))
    if (folder / CONFIG).exists() and not force:
        message = f"{folder} already holds a checkpoint"
        raise UsageError(message, "choose another folder, or add --force")
    check_tokenizer(files.tokenizer, encoder.vocabulary, len(files.config["languages"]))
    if files.adapter:
        check_base(files.adapter)
    encoding = open_weights(TextEncoder, encoder, files.encoder, files.adapter)[1]
    decoding = open_weights(TextDecoder, decoder, files.decoder, files.adapter)[1]
    tied = is_tied(encoding, decoding)
    tensors = dict(port_tensors("encoder", vars(encoder), encoding, tied))
    tensors |= port_tensors("decoder", vars(decoder), decoding, tied)
    with atomic_files(folder, _FILES, force=force) as places:
        write_safetensors(places[WEIGHTS], tensors)
        _write_tokenizer(files, places)
        _write_json(places[CONFIG], port_config(vars(encoder), vars(decoder), tied))
        places[MODEL_CARD].write_text(_card(source, files), encoding="utf-8")
    return Exported(files.name, {name: (folder / name).stat().st_size for name in sorted(_FILES)})


def _write_tokenizer(files: SpaceFiles, places: Mapping[str, Path]) -> None:
    shutil.copyfile(files.tokenizer, places[PORT_TOKENIZER])
    languages = list(files.config["languages"])
    content = tokenizer_json(files.tokenizer, languages)
    _write_json(places[_TOKENIZER], content)
    bos, pad, eos, unk = SPECIAL
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{"bos_token": bos, "pad_token": pad, "eos_token": eos, "unk_token": unk},
        "additional_special_tokens": languages,
        "added_tokens_decoder": {
            str(one["id"]): added_token(one["content"]) for one in content["added_tokens"]
        },
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": files.config["encoder"].get("max_length", EncoderConfig.max_length),
    }
    _write_json(places[_TOKENIZER_CONFIG], config)


def _card(source: str, files: SpaceFiles) -> str:
    """Return the README.md: the space's own page, with usage and the results of its card."""
    entry = find_card_file(source)
    card = read_card(entry) if entry else None
    page = files.folder / MODEL_CARD
    if entry and card and card.files:  # a bundled space, whose page is named after it
        page = file_beside(entry, f"{card.name}.md")
    numbers = {name: n for name, n in (card.results if card else {}).items() if _is_number(n)}
    return port_card(files.config, page, files.licence, numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
