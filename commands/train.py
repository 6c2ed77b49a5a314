"""lcm train: train a model, a space or a speech encoder, or fit a normalizer or a quantizer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError

from . import _training as shared
from ._options import Device, Json
from ._training import (
    check_run_folder,
    own_device,
    show,
    show_estimate,
    show_step,
    stopping_on_signal,
    together,
)

if TYPE_CHECKING:
    import torch

    from lcm_cli.training.loop import Trainer
    from lcm_cli.training.recipes.load import Trained

EPILOG = """\
lcm train recipe.toml

lcm train recipe.toml --set train.steps=500 --max-minutes 10

lcm train recipe.toml --resume

lcm train recipe.toml --dry-run
"""


def main(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A recipe or a checkpoint's card, in TOML, or a run's folder."
        ),
    ],
    changes: shared.Changes = None,
    output: shared.RunFolder = None,
    resume: shared.Resume = False,
    max_minutes: shared.MaxMinutes = float("inf"),
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Only estimate memory, disk and time, from a few steps."),
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a model, a space, a speech encoder, a normalizer or a quantizer from a recipe."""
    from lcm_cli.training.recipes.load import Trained, load_recipe

    loaded = load_recipe(recipe, changes or ())
    if getattr(loaded, "distill", None) is not None:
        raise UsageError(f"{recipe} names a teacher", f"use lcm distill {recipe}")
    folder = output or (recipe if resume and recipe.is_dir() else Path("runs") / loaded.name)

    from lcm_cli.space import pick_device

    chosen = pick_device(own_device(device))
    if dry:
        if not isinstance(loaded, Trained):
            hint = f"leave it out: fitting a {loaded.kind} has no steps to measure"
            raise UsageError(f"--dry-run does not work for a {loaded.kind}", hint)
        from lcm_cli.training.dry_run import dry_run

        (console.emit if json else show_estimate)(dry_run(loaded, chosen))
        return
    check_run_folder(folder, resume, loaded.kind)
    with shared.at_work(folder, loaded, resume):
        if isinstance(loaded, Trained):
            command = shared.resume_command("train", recipe, folder, changes or ())
            train_steps(loaded, folder, chosen, resume, max_minutes, json, command)
            return
        from lcm_cli.training.fitting import fit_recipe

        fitted = fit_recipe(loaded, folder, chosen, console.progress)
        (console.emit if json else show)(fitted)


def train_steps(
    recipe: "Trained",
    folder: Path,
    device: "torch.device",
    resume: bool,
    max_minutes: float,
    json: bool,
    command: str,
) -> "Trainer | None":
    """Train step by step; return the trainer of a finished run."""
    from lcm_cli.training.curves import tensorboard
    from lcm_cli.training.loop import Run
    from lcm_cli.training.prepare import prepare_run

    trainer = prepare_run(recipe, folder, device, console.progress)
    world, shown = trainer.world, []
    if world.leads:  # other processes report only errors
        console.info(f"{trainer.summary}, on {world.size} x {device}")
        shown = [console.emit if json else show, tensorboard(folder)]
    else:
        console.configure(quiet=True)
    run = Run(trainer, folder, max_minutes, together(shown), show_step)
    if resume:
        run.resume()
    result = folder / recipe.kind
    with stopping_on_signal(run):
        done = run.train()
    if done:
        console.info(f"done: {result}")
    else:
        console.info(f"stopped at step {trainer.step} of {trainer.steps}; continue with: {command}")
    if not json and world.leads:
        console.out(str(result))
    return trainer if done else None
