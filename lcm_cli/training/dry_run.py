"""Estimate what a run will cost: memory and disk by arithmetic, time by doing a few steps.

The size of a model is known without weights or data. Estimates that need a missing space, start or
data set are left out.
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
from lcm_cli.space.adapters import attach
from lcm_cli.space.encoder import EncoderConfig
from lcm_cli.training.data.filters import Filter
from lcm_cli.training.data.index import files_of
from lcm_cli.training.data.packing import prompt_of
from lcm_cli.training.data_options import DataOptions, as_data_set
from lcm_cli.training.optim import freeze, sizes
from lcm_cli.training.prepare import load_start, make_trainer, model_config
from lcm_cli.training.recipes.adapter import AdapterOptions
from lcm_cli.training.recipes.load import Trained
from lcm_cli.training.recipes.model import ModelRecipe
from lcm_cli.training.recipes.space import SpaceRecipe
from lcm_cli.training.recipes.speech import SpeechRecipe
from lcm_cli.training.trainers.concept_model import ModelTrainer
from lcm_cli.weights import without_content

FLOAT = 4  # bytes per weight in training, whatever the precision of the computation
MEASURED = 4  # steps; the first, which warms up, does not count
SPOKEN = 256  # utterances read for the steps
MEASURES = "time, peak memory, epochs"  # known only after a few steps
_UNKNOWN = (
    *("parameters", "trained", "state_bytes", "disk_bytes", "memory_bytes"),
    *("steps", "epochs", "per_step", "unit", "seconds_per_step", "minutes"),
)
ROOM = 0.8  # fraction of the free memory for weights, gradients and optimizer states


def dry_run(recipe: Trained, device: torch.device) -> dict[str, Any]:
    """Return the estimated costs of a recipe; nothing is kept on disk.

    `state_bytes` are weights, gradients, optimizer states and average, `memory_bytes` the peak in
    the measured steps, `disk_bytes` the states and checkpoints of a run, and `per_step` the number
    of `unit`s in a step: counted, or from the recipe. Unknown values are None: if the state would
    not fit into memory, or if space, data or the model to start from are not on this machine. Each
    line of `not_known` gives a reason, the values concerned, and what to do.

    Raises LcmErrors for an invalid recipe, as far as that shows without what is missing.
    """
    if isinstance(recipe, SpaceRecipe) and recipe.distill is not None:
        return _dry_run_of_student(recipe, device)
    if isinstance(recipe, SpaceRecipe):
        from lcm_cli.training.trainers import text_space

        with TemporaryDirectory() as folder:
            trainer = text_space.make_space_trainer(recipe, Path(folder), device)
            return _report(recipe, trainer.sizes, recipe.train.ema) | _measured(trainer, device)
    if isinstance(recipe, SpeechRecipe):
        return _dry_run_of_speech(recipe, device)
    not_known: list[str] = []
    config = _config(recipe, not_known)
    not_known += _without_data(recipe.data, config)
    counts = None
    if config is not None:
        counts = parameters(config, recipe.train.freeze, recipe.adapter)
    report = _report(recipe, counts, recipe.train.ema) | {"not_known": not_known}
    report |= {"per_step": recipe.data.batch_concepts, "unit": ModelTrainer.unit}
    if not not_known and report["state_bytes"] > ROOM * free_memory(device):
        not_known.append(f"{MEASURES}: the state does not fit into the free memory")
    if not_known:
        return report
    with TemporaryDirectory() as folder:
        return report | _measured(make_trainer(recipe, Path(folder), device, fitted=False), device)


def _dry_run_of_speech(recipe: SpeechRecipe, device: torch.device) -> dict[str, Any]:
    from lcm_cli.training.trainers import speech

    with TemporaryDirectory() as folder:
        trainer = speech.make_speech_trainer(recipe, Path(folder), device, most=SPOKEN)
        size = sum(p.numel() for p in trainer.parameters)
        return _report(recipe, (size, size), recipe.train.ema) | _measured(trainer, device)


def _dry_run_of_student(recipe: SpaceRecipe, device: torch.device) -> dict[str, Any]:
    from lcm_cli.training.trainers import space_student

    source, not_known = space_student.options(recipe).teacher, []
    space, absent = _space(source)
    if isinstance(space, SpaceInfo):
        found = cards.cards().get(source) or cards.card(source)
        shapes = EncoderConfig(**found.encoder)
        known = found.languages if isinstance(found.languages, tuple) else recipe.languages
    else:
        shapes, known = EncoderConfig(**space.files.config["encoder"]), space.languages
    config = space_student.student_config(recipe, shapes, len(set(recipe.languages) - set(known)))
    report = _report(
        recipe, space_student.encoder_sizes(config, recipe.train.freeze), recipe.train.ema
    )
    report |= {"per_step": 2 * recipe.train.batch_tokens, "unit": "tokens"}
    if absent is not None:
        not_known.append(_line(MEASURES, absent))
    if report["state_bytes"] > ROOM * free_memory(device):
        not_known.append(f"{MEASURES}: the state does not fit into the free memory")
    if not_known:
        return report | {"not_known": not_known}
    return report | _measured(space_student.make_student_trainer(recipe, device), device)


def parameters(
    config: AnyConfig, frozen: tuple[str, ...] = (), adapter: AdapterOptions | None = None
) -> tuple[int, int]:
    """Return the numbers of parameters of a model of `config`: all, and those trained.

    No memory is allocated for them. Raises IntegrityError for a pattern in `frozen` that matches
    none, and for an `adapter` that does not fit.
    """
    with without_content():
        model = checkpoint.build(config)
        if adapter is not None:
            attach([model], adapter.modules or ("*",), rank=adapter.rank, alpha=adapter.alpha)
    freeze(model, frozen)
    return sizes(model)


def _config(recipe: ModelRecipe, not_known: list[str]) -> AnyConfig | None:
    """Return the config of the recipe's model, or None if the model to start from is missing.

    Adds to `not_known` what is unknown without the space or the start.
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
    # The card of a missing space has no fingerprint, but the start names that of its space.
    if isinstance(space, SpaceInfo) and start is not None:
        space = replace(space, fingerprint=start.config.space.fingerprint)
    return model_config(recipe, space, start)


def _space(source: str) -> tuple[Space | SpaceInfo, LcmError | None]:
    """Return a space, or the facts from the card of a missing one and the error that reports it.

    Raises NotFoundError for a missing space without a card.
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
    """Return whether a missing model can be trained or pulled; otherwise its name is misspelt."""
    return start.startswith("runs/") or start in cards.cards() or locate.is_repository(start)


def _without_data(options: DataOptions, config: AnyConfig | None) -> Iterator[str]:
    """Yield a line for each missing data set, on what is unknown without it.

    Raises IntegrityError for errors in [data] that show without the data.
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
        yield f"{MEASURES}: {message}; embed text to make it: lcm embed TEXT -o {path}"


def _line(what: str, error: LcmError) -> str:
    return f"{what}: {error.message}; {error.hint}" if error.hint else f"{what}: {error.message}"


def _report(recipe: Trained, counts: tuple[int, int] | None, ema: float) -> dict[str, Any]:
    found = dict.fromkeys(_UNKNOWN) | {"steps": recipe.train.steps, "not_known": []}
    if counts is None:
        return found
    size, trained = counts
    kept = trained if getattr(recipe, "adapter", None) else size
    # AdamW keeps two numbers per weight, Muon one; the estimate assumes AdamW.
    rest = FLOAT * (2 * trained + (trained if ema else 0))
    saved = FLOAT * kept + rest
    keep = recipe.train.keep if isinstance(recipe, ModelRecipe) else 2
    return found | {
        "parameters": size,
        "trained": trained,
        "state_bytes": FLOAT * size + rest + FLOAT * trained,
        # One state more than are kept: an old one is removed only after the new one is written.
        "disk_bytes": (keep + 1) * saved + 2 * FLOAT * kept,
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
    # Batches differ in size, so scale the time by the number of concepts or sentences.
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
    """Return the number of free bytes of memory on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 1 << 40  # unknown: assume enough
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # MemAvailable counts the page cache as free
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak number of bytes used so far, on the GPU or else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak << 10 if os.uname().sysname == "Linux" else peak
