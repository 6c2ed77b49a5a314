"""Write the folder of a trained space, or of an adapter of one."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lcm_cli.files import atomic_files, atomic_path
from lcm_cli.hub.layouts import ADAPTER
from lcm_cli.hub.locate import AdapterConfig
from lcm_cli.space.adapters import adapter_state
from lcm_cli.space.decoder import DecoderConfig
from lcm_cli.space.encoder import EncoderConfig
from lcm_cli.training.recipes.space import SpaceRecipe
from lcm_cli.weights import pieces, write_safetensors

StateDict = dict[str, Tensor]


def save_space(
    folder: Path,
    recipe: SpaceRecipe,
    states: Mapping[str, StateDict | Path],
    configs: tuple[EncoderConfig, DecoderConfig],
    tokenizer: Path,
    source: Mapping[str, Any],
) -> Path:
    """Write a space's folder: weights, tokenizer and, last, config.json; return the folder.

    A network's state is written in the number format of the recipe; a file in its place is copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in states.items():
        path = folder / f"{name}.safetensors"
        copy(state, path) if isinstance(state, Path) else save_weights(path, state, recipe)
    copy(tokenizer, folder / "tokenizer.model")
    save_config(folder, recipe, configs, source)
    return folder


def save_adapter(
    folder: Path,
    recipe: SpaceRecipe,
    networks: Iterable[nn.Module],
    configs: tuple[EncoderConfig, DecoderConfig],
    source: Mapping[str, Any],
    adapter: AdapterConfig,
) -> None:
    """Write the adapters of a space, and a config.json that names their base."""
    states = [adapter_state(network) for network in networks]
    config = space_config(recipe, configs, source) | {"adapter": asdict(adapter)}
    with atomic_files(folder, (ADAPTER, "config.json"), force=True) as places:
        tensors = {name: [tensor.cpu()] for state in states for name, tensor in state.items()}
        write_safetensors(places[ADAPTER], tensors)
        places["config.json"].write_text(json.dumps(config, indent=1), encoding="utf-8")


def save_weights(path: Path, state: StateDict, recipe: SpaceRecipe) -> None:
    """Write weights in the number format of the recipe.

    Raises IntegrityError for numbers that are not finite or too large for it.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in state.items()}
    with atomic_path(path, force=True) as temporary:
        write_safetensors(temporary, pieces(weights, recipe.train.store))


def copy(source: Path, path: Path) -> None:
    """Copy a file, atomically."""
    with atomic_path(path, force=True) as temporary:
        shutil.copyfile(source, temporary)


def save_config(
    folder: Path,
    recipe: SpaceRecipe,
    configs: tuple[EncoderConfig, DecoderConfig],
    source: Mapping[str, Any],
) -> None:
    """Write a space's config.json."""
    config = space_config(recipe, configs, source)
    with atomic_path(folder / "config.json", force=True) as temporary:
        temporary.write_text(json.dumps(config, indent=1), encoding="utf-8")


def space_config(
    recipe: SpaceRecipe, configs: tuple[EncoderConfig, DecoderConfig], source: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of a space's config.json."""
    return {
        "kind": "space",
        "name": recipe.name,
        "licence": recipe.licence,
        "languages": recipe.languages,
        "encoder": asdict(configs[0]),
        "decoder": asdict(configs[1]),
        "source": dict(source),
    }
