"""What a run will cost, before it begins: memory, disk, and time by doing a few steps.

A model's size needs neither weights nor data: what depends on those that are not here is left out.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lcm_cli.documents.document import SpaceInfo
from lcm_cli.errors import LcmError, NotFoundError
from lcm_cli.hub import cards, locate
from lcm_cli.models import checkpoint
from lcm_cli.models.config import AnyConfig
from lcm_cli.space import Space, load_space
from lcm_cli.training.data.filters import Filter
from lcm_cli.training.data.index import files_of
from lcm_cli.training.data.packing import prompt_of
from lcm_cli.training.data_options import DataOptions, as_data_set
from lcm_cli.training.prepare import load_start, make_trainer, model_config
from lcm_cli.training.recipe import ModelRecipe, SpaceRecipe
from lcm_cli.training.trainers.concept_model import ModelTrainer, freeze
from lcm_cli.weights import without_content

FLOAT = 4  # bytes of a weight in training, whatever the precision of the computation
MEASURED = 4  # steps; the first one, which warms up, does not count
MEASURES = "time, peak memory, epochs"  # what a few steps tell
_UNKNOWN = (
    *("parameters", "trained", "state_bytes", "disk_bytes", "memory_bytes"),
    *("steps", "epochs", "per_step", "unit", "seconds_per_step", "minutes"),
)
ROOM = 0.8  # share of the free memory that weights, gradients and optimizer may take


def dry_run(recipe: ModelRecipe | SpaceRecipe, device: torch.device) -> dict[str, Any]:
    """Return what the recipe will need; nothing is kept on the disk.

    `state_bytes` are weights, gradients, optimizer and average, `memory_bytes` the most that was
    seen in the steps measured, `disk_bytes` the states and checkpoints of a run, `per_step` the
    `unit`s in a step: counted, or what the recipe says. What is not known is None: where the state
    would not fit into memory, or space, data or the model to start from are not on this machine;
    `not_known` says for each reason what that is, and what to do.

    Raises LcmErrors for what is wrong with the recipe, as far as it shows without these.
    """
    if isinstance(recipe, SpaceRecipe):
        from lcm_cli.training.trainers import text_space

        with TemporaryDirectory() as folder:
            trainer = text_space.make_space_trainer(recipe, Path(folder), device)
            size = sum(p.numel() for p in trainer.parameters)
            return _report(recipe, (size, size), recipe.train.ema) | _measured(trainer, device)
    not_known: list[str] = []
    config = _config(recipe, not_known)
    not_known += _without_data(recipe.data, config)
    sizes = None if config is None else parameters(config, recipe.train.freeze)
    report = _report(recipe, sizes, recipe.train.ema) | {"not_known": not_known}
    report |= {"per_step": recipe.data.batch_concepts, "unit": ModelTrainer.unit}
    if not not_known and report["state_bytes"] > ROOM * free_memory(device):
        not_known.append(f"{MEASURES}: the state does not fit into the free memory")
    if not_known:
        return report
    with TemporaryDirectory() as folder:
        return report | _measured(make_trainer(recipe, Path(folder), device, fitted=False), device)


def parameters(config: AnyConfig, frozen: tuple[str, ...] = ()) -> tuple[int, int]:
    """Return how many parameters a model of `config` has, and how many of them are trained.

    It is not built. Raises IntegrityError for names in `frozen` that it has not.
    """
    with without_content():
        model = checkpoint.build(config)
    freeze(model, frozen)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _config(recipe: ModelRecipe, not_known: list[str]) -> AnyConfig | None:
    """Return the config of the recipe's model, None if that it starts from is not here.

    Adds to `not_known` what cannot be told without the space and the start, where they are absent.
    """
    start = None
    space, absent = _space(recipe.space)
    not_known += [] if absent is None else [_line(MEASURES, absent)]
    if recipe.start:
        try:
            start = load_start(recipe.start)
        except NotFoundError as error:
            if not _may_come(recipe.start):
                raise
            not_known.append(_line(f"parameters, state, disk, {MEASURES}", error))
            return None
    if isinstance(space, SpaceInfo) and start is not None:  # it says which weights the space has
        space = replace(space, fingerprint=start.config.space.fingerprint)
    return model_config(recipe, space, start)


def _space(source: str) -> tuple[Space | SpaceInfo, LcmError | None]:
    """Return a space, or what its card says of one that is not here and the error that tells so.

    Raises NotFoundError for a name without a card.
    """
    try:
        return load_space(source, device="cpu"), None
    except NotFoundError as error:
        known = cards.cards().get(source) or (cards.card(source) if _is_card(source) else None)
        if known is None or "model_dim" not in known.encoder:
            raise
        return SpaceInfo(known.name, "", known.encoder["model_dim"]), error


def _is_card(source: str) -> bool:
    return source.endswith(".toml") and Path(source).is_file()


def _may_come(start: str) -> bool:
    """Return whether a model that is not here may be made, or pulled; others are misspelt."""
    return start.startswith("runs/") or start in cards.cards() or locate.is_repository(start)


def _without_data(options: DataOptions, config: AnyConfig | None) -> Iterator[str]:
    """Yield what is not known for each part of the data that is not here.

    Raises IntegrityError for what is wrong with [data] before there is anything to look through.
    """
    if options.filter:
        Filter(options.filter)
    absent = {}
    for entry in map(as_data_set, (*options.train, *options.validation)):
        if config is not None:
            prompt_of(entry, config.prompts)
        try:
            files_of(entry.path)
        except NotFoundError as error:
            absent[entry.path] = error.message
    for path, message in absent.items():
        yield f"{MEASURES}: {message}; make a data set of text: lcm embed TEXT -o {path}"


def _line(what: str, error: LcmError) -> str:
    return f"{what}: {error.message}; {error.hint}" if error.hint else f"{what}: {error.message}"


def _report(
    recipe: ModelRecipe | SpaceRecipe, sizes: tuple[int, int] | None, ema: float
) -> dict[str, Any]:
    found = dict.fromkeys(_UNKNOWN) | {"steps": recipe.train.steps, "not_known": []}
    if sizes is None:
        return found
    size, trained = sizes
    # AdamW has two numbers a weight, Muon one: the estimate is that of AdamW.
    saved = FLOAT * (size + 2 * trained + (trained if ema else 0))
    keep = recipe.train.keep if isinstance(recipe, ModelRecipe) else 2
    return found | {
        "parameters": size,
        "trained": trained,
        "state_bytes": saved + FLOAT * trained,
        # One state more than is kept: the old ones go when the new one is whole.
        "disk_bytes": (keep + 1) * saved + 2 * FLOAT * size,
    }


def _measured(trainer: Any, device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    counts, seconds = [], []
    for _ in range(min(MEASURED, trainer.steps)):
        begun = time.monotonic()
        counts.append(trainer.train_step()[trainer.unit])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - begun)
    # Batches differ in size: time goes by what is in them.
    some = slice(1, None) if len(seconds) > 1 else slice(None)
    per_step = sum(counts) / len(counts)
    step = per_step * sum(seconds[some]) / max(sum(counts[some]), 1)
    found = {
        "memory_bytes": peak_memory(device),
        "per_step": per_step,
        "unit": trainer.unit,
        "seconds_per_step": step,
        "minutes": step * trainer.steps / 60,
    }
    if isinstance(trainer, ModelTrainer):
        found["epochs"] = trainer.steps / trainer.data.batches_per_epoch  # type: ignore[attr-defined]
    return found


def free_memory(device: torch.device) -> int:
    """Return how many bytes of memory are free where the model will be."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 1 << 40  # not known: try
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # what is only cached counts as free
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that were in use so far: of the GPU's, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak << 10 if os.uname().sysname == "Linux" else peak
