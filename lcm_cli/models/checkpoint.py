"""Model checkpoints: folders with config.json and model.safetensors.

The weights include the normalizer. They are memory-mapped and replace the model's own, without a
copy where the dtype already fits. Nothing is unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.files import atomic_files
from lcm_cli.hub.layouts import ADAPTER, weight_parts
from lcm_cli.hub.locate import MODEL_FILES, AdapterConfig, ModelFiles, locate_model
from lcm_cli.models.base_lcm import BaseLCM
from lcm_cli.models.config import (
    AnyConfig,
    QuantizerConfig,
    SpaceRef,
    TransformerConfig,
    read_model_config,
    to_dict,
)
from lcm_cli.models.interface import ConceptModel
from lcm_cli.models.layers import AddedProjection
from lcm_cli.models.one_tower import OneTowerLCM
from lcm_cli.models.packed import lay_out
from lcm_cli.models.quant_lcm import QuantLCM, ResidualQuantizer
from lcm_cli.models.sonar_llm import SonarLLM
from lcm_cli.models.two_tower import TwoTowerLCM
from lcm_cli.space import pick_device
from lcm_cli.space.adapters import adapted, adapter_state, check_base
from lcm_cli.space.kernels import page_out
from lcm_cli.space.space import PRECISIONS
from lcm_cli.weights import (
    Int8Matrix,
    Store,
    Weight,
    pieces,
    read_weights,
    without_weights,
    write_safetensors,
)

CONFIG, WEIGHTS = MODEL_FILES["config"], MODEL_FILES["model"]
KINDS: dict[str, type[nn.Module]] = {
    "base": BaseLCM,
    "two_tower": TwoTowerLCM,
    "one_tower": OneTowerLCM,
    "quant": QuantLCM,
    "sonar_llm": SonarLLM,
    "quantizer": ResidualQuantizer,
}
# Prefixes of tensors that stay float32 when a model runs in half precision or is stored as int8.
FULL_PRECISION = ("normalizer.", "quantizer.", "codebooks")
LISTED = 8  # maximum number of tensors named in an error message


def build(config: AnyConfig | QuantizerConfig) -> nn.Module:
    """Return a new model of `config` with random weights and an identity normalizer."""
    return KINDS[config.architecture](config)


def load_model(
    source: Path | str, *, device: str = "auto", precision: str = "auto", packed: bool = False
) -> ConceptModel:
    """Load a concept model by card name, folder or ORG/REPO, ready to generate.

    `precision` is "float32", "bfloat16", "float16" or "int8". "auto" is float32 on the CPU, with
    float16 weights in a model laid out for generation; elsewhere it is the dtype of the file, or
    float16 for int8 files. `packed` lays the model out for generation (see
    `packed.lay_out`); such a model can be neither trained nor saved.
    Models in int8 are always laid out.

    Raises NotFoundError if the model is not installed, UsageError for an unknown device or
    precision and for int8 elsewhere than on the CPU, and IntegrityError if a file is damaged or
    does not fit the config, or for an adapter of another base.
    """
    chosen = pick_device(device)
    on_cpu, packed = chosen.type == "cpu", packed or precision == "int8"
    if precision not in PRECISIONS:
        choices = ", ".join(PRECISIONS)
        raise UsageError(f"unknown precision {precision!r}", f"choose from: {choices}")
    if precision == "int8" and not on_cpu:
        raise UsageError(f"int8 runs only on the CPU, not on {chosen}", "use float16 or bfloat16")
    dtype = None
    if precision not in ("auto", "int8"):
        dtype = getattr(torch, precision)
    elif on_cpu and not packed:  # `lay_out` converts one layer at a time, which spares memory
        dtype = torch.float32
    model = load_from(locate_model(str(source)), dtype)
    if not isinstance(model, ConceptModel):
        raise IntegrityError(f"{source} is a {model.config.architecture}, not a concept model")  # type: ignore[union-attr]
    model = model.to(chosen).eval()
    if precision == "int8":
        model._precision = precision
    return lay_out(model, precision) if packed else model


def load_quantizer(source: Path | str) -> ResidualQuantizer:
    """Load a quantizer by card name, folder or ORG/REPO; raises as `load_model` does."""
    quantizer = load_from(locate_model(str(source)))
    if not isinstance(quantizer, ResidualQuantizer):
        hint = "train one with a recipe of kind quantizer: lcm train RECIPE.toml"
        raise IntegrityError(f"{source} is not a quantizer", hint)
    return quantizer


def load_from(files: ModelFiles, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a checkpoint of any kind on the CPU, in `dtype` or in the dtype of its file."""
    model, weights = open_model(files)
    state = {}
    for key, weight in weights.items():
        wanted = torch.float32 if key.startswith(FULL_PRECISION) else dtype or weight.dtype
        state[key] = weight.to("cpu", wanted)
        if isinstance(weight, Int8Matrix):
            # The floats replace the mapped numbers, whose pages would otherwise stay in memory.
            page_out(weight.numbers)
    model.load_state_dict(state, assign=True)
    return model


def open_model(files: ModelFiles) -> tuple[Any, dict[str, Weight]]:
    """Return a model without content, and the weights that fit it, not yet read.

    The weights are in one file or in the several that an index names. Raises IntegrityError as
    `load_model` does.
    """
    config = read_model_config(files.config)
    if files.adapter:
        check_base(files.adapter)
    weights = adapted(read_weights(*weight_parts(files.weights)), files.adapter)
    model = without_weights(lambda: build(config), _layers(config), weights, files.weights)
    check_state(model, weights, str(files.weights))
    return model, weights


def _layers(config: AnyConfig | QuantizerConfig) -> int:
    """Return the number of layers in all stacks."""
    parts = vars(config).values()
    return sum(part.layers for part in parts if isinstance(part, TransformerConfig))


def check_state(model: nn.Module, state: Mapping[str, Weight], source: str) -> None:
    """Raise IntegrityError, naming tensors, unless `state` has exactly those of `model`."""
    wanted = model.state_dict()
    problems = [
        _named("missing tensors", [key for key in wanted if key not in state]),
        _named("unknown tensors", [key for key in state if key not in wanted]),
        _named(
            "wrong shapes",
            [
                f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
                for key, tensor in wanted.items()
                if key in state and state[key].shape != tensor.shape
            ],
        ),
        _named(
            "wrong types",
            [
                f"{key} {state[key].dtype} for {tensor.dtype}"
                for key, tensor in wanted.items()
                if key in state and state[key].is_floating_point() != tensor.is_floating_point()
            ],
        ),
    ]
    if any(problems):
        raise IntegrityError(
            f"{source} does not fit its {CONFIG}: {'; '.join(filter(None, problems))}"
        )


def with_added(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with the zero projections that `model` has and its origin may lack."""
    added = {
        f"{name}.{key}": tensor
        for name, part in model.named_modules()
        if isinstance(part, AddedProjection)
        for key, tensor in part.state_dict().items()
    }
    # Tensors that the origin does have replace the zeros.
    return added | dict(state)


def _named(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{what}: {', '.join(names[:LISTED])}{more}"


def save(model: nn.Module, folder: Path, *, force: bool = False) -> None:
    """Write `model` as a checkpoint folder, created if missing. Raises as `write` does."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    config: Any = model.config
    write(config, state, folder, force=force)


def save_adapter(
    model: nn.Module, adapter: AdapterConfig, folder: Path, *, force: bool = False
) -> None:
    """Write the adapters of `model` as a checkpoint folder; raises as `write` does."""
    state = {key: [tensor.cpu()] for key, tensor in adapter_state(model).items()}
    config: Any = model.config
    with atomic_files(folder, (ADAPTER, CONFIG), force=force) as places:
        write_safetensors(places[ADAPTER], state)
        places[CONFIG].write_text(config_text(config, adapter), encoding="utf-8")


def write(
    config: AnyConfig | QuantizerConfig,
    weights: Mapping[str, Weight],
    folder: Path,
    *,
    store: Store | None = None,
    force: bool = False,
) -> None:
    """Write a checkpoint folder, created if missing, with its weights unchanged or as `store`.

    Raises UsageError if a checkpoint is already there and `force` is false or if `folder` is not
    a folder, IntegrityError for weights that cannot be stored as `store`.
    """
    with atomic_files(folder, (WEIGHTS, CONFIG), force=force) as places:
        write_safetensors(places[WEIGHTS], pieces(weights, store, FULL_PRECISION))
        places[CONFIG].write_text(config_text(config), encoding="utf-8")


def config_text(config: AnyConfig | QuantizerConfig, adapter: AdapterConfig | None = None) -> str:
    """Return the content of a config.json file, with the table of an adapter."""
    content = to_dict(config) | ({"adapter": asdict(adapter)} if adapter else {})
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def check_model_space(config: AnyConfig | QuantizerConfig, space: SpaceRef, dim: int) -> None:
    """Raise IntegrityError unless `config` belongs to this space, whose concepts are `dim` wide.

    A config without a space fits any space of its width.
    """
    if config.concept_dim != dim:
        raise IntegrityError(
            f"the model reads concepts of width {config.concept_dim}, "
            f"those of the space {space.name!r} have width {dim}",
            f"use the space it was trained in: --space {config.space.name or 'NAME'}",
        )
    if config.space.fingerprint and config.space.fingerprint != space.fingerprint:
        raise IntegrityError(
            f"the model was trained in the space {config.space.name!r} "
            f"({config.space.fingerprint}), not in {space.name!r} ({space.fingerprint})",
            f"use that space: --space {config.space.name}",
        )
