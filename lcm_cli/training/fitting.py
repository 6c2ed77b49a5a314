"""Fit a normalizer or a quantizer on the concepts of the data, as a recipe says.

Shapes: N concepts, D concept dim.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lcm_cli.files import atomic_path
from lcm_cli.models import checkpoint
from lcm_cli.models.config import QuantizerConfig, SpaceRef
from lcm_cli.models.normalizer import Normalizer, fit
from lcm_cli.models.quant_lcm import ResidualQuantizer
from lcm_cli.progress import StartJob, no_progress
from lcm_cli.space import Space, load_space
from lcm_cli.training.prepare import (
    NORMALIZER,
    QUANTIZER,
    EndlessData,
    concepts,
    counting,
    fit_codebooks,
    open_data,
)
from lcm_cli.training.recipes.fitted import NormalizerRecipe, QuantizerRecipe
from lcm_cli.training.states import disk_errors

HELD_OUT = 200  # documents on which a fit is evaluated


def fit_recipe(
    recipe: NormalizerRecipe | QuantizerRecipe,
    folder: Path,
    device: torch.device,
    progress: StartJob = no_progress,
    data: EndlessData | None = None,
) -> dict[str, Any]:
    """Fit what the recipe says, and write it below `folder`; return its path and quality.

    A normalizer's `deviation` is the mean standard deviation of held-out channels after
    normalization (1 is perfect); a quantizer's `lost` lists the fraction of variance that the first
    1, 2, 3 ... codebooks leave unexplained. Raises LcmErrors of the data, and UsageError if there
    are too few concepts.
    """
    space = load_space(recipe.space, device=str(device))
    seed = recipe.seed if isinstance(recipe, NormalizerRecipe) else recipe.quantizer.seed
    data = data or open_data(recipe.data, space, seed=seed)
    if isinstance(recipe, NormalizerRecipe):
        return _fit_normalizer(recipe, folder / NORMALIZER, space, data, progress)
    return _fit_quantizer(recipe, folder / QUANTIZER, space, data, progress, device)


def _fit_normalizer(
    recipe: NormalizerRecipe, folder: Path, space: Space, data: EndlessData, progress: StartJob
) -> dict[str, Any]:
    with progress("reading concepts", recipe.concepts) as advance:
        parts = counting(concepts(data, recipe.concepts), advance)
        normalizer = fit(parts, recipe.normalizer, seed=recipe.seed)
    save_normalizer(normalizer, folder, SpaceRef(space.name, space.fingerprint))
    deviation = float(normalizer.normalize(held_out(data)).std(dim=0, correction=0).mean())
    return {"kind": "normalizer", "path": str(folder), "deviation": deviation}


def _fit_quantizer(
    recipe: QuantizerRecipe,
    folder: Path,
    space: Space,
    data: EndlessData,
    progress: StartJob,
    device: torch.device,
) -> dict[str, Any]:
    wanted = recipe.quantizer
    config = QuantizerConfig(
        concept_dim=space.dim,
        codebooks=wanted.codebooks,
        units=wanted.units,
        space=SpaceRef(space.name, space.fingerprint),
    )
    limit, iterations = wanted.concepts, wanted.iterations
    state = fit_codebooks(config, data, limit, iterations, wanted.seed, progress, device)
    quantizer = ResidualQuantizer(config)
    quantizer.load_state_dict(state)
    with disk_errors(folder / checkpoint.WEIGHTS):
        checkpoint.save(quantizer, folder, force=True)
    lost = quantizer.to(device).errors(held_out(data).to(device))
    return {"kind": "quantizer", "path": str(folder), "lost": lost}


def held_out(data: EndlessData) -> Tensor:
    """Return held-out concepts (N, D) or, without validation data, those of a training batch."""
    batches = data.validation(HELD_OUT) or [data.batch(0)]
    found = [b.concepts_BSD[b.positions() < b.lengths_B[:, None]] for b in batches]
    return torch.cat(found).float()


def save_normalizer(normalizer: Normalizer, folder: Path, space: SpaceRef) -> None:
    """Write a normalizer as a checkpoint: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        disk_errors(folder / checkpoint.WEIGHTS),
        atomic_path(folder / checkpoint.WEIGHTS, force=True) as temporary,
    ):
        save_file(normalizer.state_dict(), temporary, metadata={"format": "pt"})
    config = {"kind": "normalizer", **asdict(normalizer.config), "space": asdict(space)}
    with atomic_path(folder / checkpoint.CONFIG, force=True) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
