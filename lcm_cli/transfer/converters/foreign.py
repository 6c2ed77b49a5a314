"""Models of other programs, read as data and never as code.

Two formats are known: checkpoints of facebookresearch/large_concept_model (weights and a YAML card,
or a config in JSON) and folders of SONAR-LLM (config.json and pytorch_model.bin). Their tensors and
settings are renamed in `official`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.files import not_there
from lcm_cli.hub.layouts import OFFICIAL_CARD
from lcm_cli.models.checkpoint import CONFIG, build, check_state
from lcm_cli.models.config import AnyConfig, SpaceRef, from_dict, preset, to_dict
from lcm_cli.transfer.converters.official import official_config, official_state, sonar_llm
from lcm_cli.transfer.converters.sonar import read_folder, read_pickle
from lcm_cli.weights import map_file, without_content

SONAR = SpaceRef("sonar")  # the space of every foreign model with concepts of SONAR's width
SONAR_DIM = 1024
# Official cards may name one of these instead of a config.
_ARCHITECTURES = {
    "base_lcm_1_6B": ("base", "1.6B"),
    "two_tower_diffusion_lcm_1_6B": ("two_tower", "1.6B"),
    "two_tower_diffusion_lcm_7B": ("two_tower", "7B"),
}


def read_model(source: Path) -> tuple[AnyConfig, dict[str, Tensor]]:
    """Return the config of a foreign model, and its tensors under lcm's names.

    `source` is a folder, or a file of weights (.pt, .bin or .safetensors) with its config beside it
    (the same name ending in .json or .yaml, config.json, or model_card.yaml). The tensors stay
    mapped to the file. Raises NotFoundError if `source` does not exist, IntegrityError if it is not
    such a model, is damaged, does not fit its config, or would run code.
    """
    if not source.exists():
        raise not_there(source, "file or folder")
    place = _config_file(source)
    about = _settings(place)
    state = _tensors(source)
    try:
        config, state = _translated(about, state)
        config = _validated(config)
    except LcmError as error:
        raise type(error)(f"{place}: {error.message}", error.hint) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise IntegrityError(f"{place} does not describe a concept model: {error}") from error
    with without_content():
        model = build(config)
    check_state(model, state, str(source))
    return config, state


def _config_file(source: Path) -> Path:
    """Return the file that describes the weights at `source`."""
    if source.is_dir():
        places = [source / CONFIG, source / OFFICIAL_CARD, *sorted(source.glob("*.yaml"))]
    else:
        beside = [source.with_suffix(suffix) for suffix in (".json", ".yaml")]
        places = [*beside, source.parent / CONFIG, source.parent / OFFICIAL_CARD]
    for place in places:
        if place.is_file() and place != source:
            return place
    raise IntegrityError(
        f"{source} is not a model: there is neither {CONFIG} nor {OFFICIAL_CARD} beside it",
        "put the config beside the weights, under one of these names",
    )


def _settings(place: Path) -> dict[str, Any]:
    """Read a config: a JSON object, perhaps under the key "config", or a fairseq2 card."""
    try:
        text = place.read_text(encoding="utf-8")
        data = json.loads(text) if place.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:  # safe_load refuses what would run code
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"{place} cannot be read as plain data: {reason}") from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{place} does not describe a concept model")
    if data.get("kind") in ("model", "space"):
        message = f"{place.parent} is a {data['kind']} already in lcm's layout"
        raise UsageError(message, "to change its number format, convert its folder with --store")
    if isinstance(data.get("config"), dict):
        return dict(data["config"])
    if isinstance(data.get("model_config"), dict):
        return {"model_type": data.get("model_family"), **data["model_config"]}
    return data


def _tensors(source: Path) -> dict[str, Tensor]:
    if source.is_dir():
        state = read_folder(source)
    elif source.suffix == ".safetensors":
        state = map_file(source)
    else:
        state = read_pickle(source)
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = getattr(value, "dtype", type(value).__name__)
            raise IntegrityError(f"{source}: {key} is {what}, not a tensor of floats")
    return state


def _translated(
    about: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[AnyConfig, dict[str, Tensor]]:
    if "llama_config" in about:
        width = about.get("embed_dim", SONAR_DIM)
        return sonar_llm(about, state, space=_space(width))
    if "model_type" in about:
        config = official_config(about, space=_space(about.get("sonar_embed_dim")))
        return config, official_state(state)
    name = str(about.get("model_arch"))
    if name not in _ARCHITECTURES:
        raise IntegrityError(
            "the config is neither an official concept model's nor SONAR-LLM's",
            f"a card without model_config must name one of: {', '.join(_ARCHITECTURES)}",
        )
    return preset(*_ARCHITECTURES[name], space=SONAR), official_state(state)


def _space(width: object) -> SpaceRef:
    return SONAR if width == SONAR_DIM else SpaceRef()


def _validated(config: AnyConfig) -> AnyConfig:
    """Return `config` after checking the types of its fields, which come from a foreign file."""
    checked = from_dict(to_dict(config), "its settings")
    assert isinstance(checked, type(config))
    return checked
