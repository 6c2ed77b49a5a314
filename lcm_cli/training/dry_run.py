"""What a run will cost, before it begins: memory, disk, and time by doing a few steps."""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lcm_cli.models import checkpoint
from lcm_cli.space import load_space
from lcm_cli.training.model import ModelTrainer
from lcm_cli.training.prepare import load_start, make_trainer, model_config
from lcm_cli.training.recipe import ModelRecipe, SpaceRecipe

FLOAT = 4  # bytes of a weight in training, whatever the precision of the computation
MEASURED = 4  # steps; the first one, which warms up, does not count
ROOM = 0.8  # share of the free memory that weights, gradients and optimizer may take


def dry_run(recipe: ModelRecipe | SpaceRecipe, device: torch.device) -> dict[str, Any]:
    """Return what the recipe will need; nothing is kept on the disk.

    `state_bytes` are weights, gradients, optimizer and average, `memory_bytes` the most that was
    seen in the steps measured, `disk_bytes` the states and checkpoints of a run. Where the state
    would not fit into memory nothing is measured, and what depends on it is None.
    """
    if isinstance(recipe, SpaceRecipe):
        from lcm_cli.training import space

        with TemporaryDirectory() as folder:
            trainer = space.make_trainer(recipe, Path(folder), device)
            size = sum(p.numel() for p in trainer.parameters)
            return _report(recipe, size, size, 0.0) | _measured(trainer, device)
    size = parameters(recipe)
    report = _report(recipe, size, size, recipe.train.ema)
    if report["state_bytes"] > ROOM * free_memory(device):
        return report
    with TemporaryDirectory() as folder:
        model = make_trainer(recipe, Path(folder), device, fitted=False)
        trained = sum(p.numel() for p in model.parameters)
        report = _report(recipe, size, trained, recipe.train.ema)
        return report | _measured(model, device)


def parameters(recipe: ModelRecipe) -> int:
    """Return the number of parameters of the recipe's model, which is not built."""
    space = load_space(recipe.space, device="cpu")
    config = model_config(recipe, space, load_start(recipe.start) if recipe.start else None)
    with torch.device("meta"):
        return sum(p.numel() for p in checkpoint.build(config).parameters())


def _report(
    recipe: ModelRecipe | SpaceRecipe, size: int, trained: int, ema: float
) -> dict[str, Any]:
    # AdamW has two numbers a weight, Muon one: the estimate is that of AdamW.
    saved = FLOAT * (size + 2 * trained + (trained if ema else 0))
    keep = recipe.train.keep if isinstance(recipe, ModelRecipe) else 2
    return {
        "parameters": size,
        "trained": trained,
        "state_bytes": saved + FLOAT * trained,
        # One state more than is kept: the old ones go when the new one is whole.
        "disk_bytes": (keep + 1) * saved + 2 * FLOAT * size,
        "steps": recipe.train.steps,
        "memory_bytes": None,
        "per_step": None,
        "seconds_per_step": None,
        "minutes": None,
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
