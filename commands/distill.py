"""lcm distill: train a small model, or a space's encoder, to imitate a large one."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.schema import counted

from . import _training as shared
from ._options import Device, Force, Json
from ._training import (
    check_run_folder,
    own_device,
    show,
    show_estimate,
    show_step,
    stopping_on_signal,
    together,
)
from .train import train_steps

if TYPE_CHECKING:
    from lcm_cli.documents.shares import Share
    from lcm_cli.training.distillation.distill import Lesson
    from lcm_cli.training.recipes.space import SpaceRecipe
    from lcm_cli.training.trainers.concept_model import ModelTrainer

EPILOG = """\
lcm distill recipe.toml

lcm distill recipe.toml --set distill.hidden=1.0 --resume

lcm distill recipe.toml --set distill.capture=data/teacher --capture
"""
SCORES = ("parameters", "l2", "par", "ca", "to_teacher", "own", "prediction")
SPACE_SCORES = ("parameters", "autoencoding", "noisy", "translation", "xsim")


def main(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe with a [distill] table, in TOML.")
    ],
    changes: shared.Changes = None,
    output: shared.RunFolder = None,
    resume: shared.Resume = False,
    max_minutes: shared.MaxMinutes = float("inf"),
    capture: Annotated[
        bool,
        typer.Option("--capture", help="Only write the teacher's predictions, to distill.capture."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="With --capture: write share I (from 0) of N."
            "  [default: the task of a Slurm array, the rank of torchrun, or all]",
            show_default=False,
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only estimate memory, disk and time (for the encoder of a space)."
        ),
    ] = False,
    force: Force = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a small model, or the small encoder of a space, to imitate a large one.

    The two are compared at the end, together with a copy of the small model that is trained without
    a teacher.
    """
    from lcm_cli.training.recipes.load import load_recipe
    from lcm_cli.training.recipes.model import ModelRecipe
    from lcm_cli.training.recipes.space import SpaceRecipe

    loaded = load_recipe(recipe, changes or ())
    if not isinstance(loaded, ModelRecipe | SpaceRecipe):
        raise UsageError(
            f'{recipe} is of kind "{loaded.kind}": only models and spaces can be distilled'
        )
    folder = output or Path("runs") / loaded.name
    if isinstance(loaded, SpaceRecipe):
        if capture:
            raise UsageError("--capture works only for models", "leave it out")
        command = shared.resume_command("distill", recipe, folder, changes or ())
        _distill_space(loaded, folder, own_device(device), resume, max_minutes, dry, json, command)
        return
    if dry:
        hint = "estimate the student alone: remove [distill], and run lcm train --dry-run"
        raise UsageError("--dry-run works only for the encoder of a space", hint)
    if shard is not None and not capture:
        raise UsageError("--shard needs --capture", "add --capture, or leave --shard out")
    if not capture:
        check_run_folder(folder, resume, loaded.kind)

    from lcm_cli.models.checkpoint import load_model
    from lcm_cli.space import pick_device
    from lcm_cli.training.distillation.distill import ALONE, Lesson

    chosen = pick_device(own_device(device))
    lesson = Lesson(loaded, chosen)
    if capture:
        _capture(lesson, shard, force, json)
        return
    if not lesson.world.leads:  # other processes report only errors
        console.configure(quiet=True)
    command = shared.resume_command("distill", recipe, folder, changes or ())
    with shared.at_work(folder, loaded, resume):
        trainers: dict[str, Any] = {"student": (lesson.student, folder)}
        trainers |= {ALONE: (lesson.alone, folder / ALONE)} if lesson.twin else {}
        ends = time.monotonic() + 60 * max_minutes
        for name, (make, place) in trainers.items():
            place.mkdir(parents=True, exist_ok=True)
            trainer = make()
            console.info(f"{name}: {trainer.summary}, on {lesson.world.size} x {chosen}")
            if not _train(name, trainer, place, (ends - time.monotonic()) / 60, resume, json):
                console.info(f"{name} stopped at step {trainer.step}; continue with: {command}")
                return
        if not lesson.world.leads:
            return
        models: dict[str, Any] = {
            name: load_model(place / loaded.kind, device=str(chosen))
            for name, (_, place) in trainers.items()
        }
        report = lesson.report(models, folder)
        console.emit({"report": report}) if json else _show_report(report)
        console.info(f"done: {folder / loaded.kind}")


def _capture(lesson: "Lesson", shard: str | None, force: bool, json: bool) -> None:
    done = lesson.capture(_own_share(shard), force=force, progress=console.progress)
    count = done.shards + done.missing
    console.info(f"predictions for {counted(done.documents, 'document')}")
    if done.missing:
        console.info(f"{done.shards} of {counted(count, 'shard')}: the others are still missing")
    path = lesson.options.capture
    console.emit({"path": path} | done._asdict()) if json else console.out(path)


def _own_share(shard: str | None) -> "Share":
    """Return the share that `shard` names or, without it, that of this process."""
    from lcm_cli.documents.shares import Share

    if shard is not None:
        return Share.parse(shard)
    if (found := Share.of_process(os.environ)) is None:
        return Share(0, 1)
    console.info(f"{found[0]}, from {found[1]}; for all of them, add --shard 0/1")
    return found[0]


def _distill_space(
    recipe: "SpaceRecipe",
    folder: Path,
    device: str,
    resume: bool,
    max_minutes: float,
    dry: bool,
    json: bool,
    command: str,
) -> None:
    from lcm_cli.space import pick_device
    from lcm_cli.training.trainers.space_student import StudentTrainer, options

    options(recipe)
    chosen = pick_device(device)
    if dry:
        from lcm_cli.training.dry_run import dry_run

        (console.emit if json else show_estimate)(dry_run(recipe, chosen))
        return
    check_run_folder(folder, resume, recipe.kind)
    with shared.at_work(folder, recipe, resume):
        trainer = train_steps(recipe, folder, chosen, resume, max_minutes, json, command)
        if isinstance(trainer, StudentTrainer):
            report = trainer.report(folder)
            console.emit({"report": report}) if json else _show_report(report, SPACE_SCORES)


def _train(
    name: str, trainer: "ModelTrainer", folder: Path, minutes: float, resume: bool, json: bool
) -> bool:
    from lcm_cli.training.curves import tensorboard
    from lcm_cli.training.loop import Run
    from lcm_cli.training.states import states

    tell = (lambda record: console.emit({"model": name} | record)) if json else show
    shown = [tell, tensorboard(folder)] if trainer.world.leads else []
    run = Run(trainer, folder, max(minutes, 0), together(shown), show_step)
    if resume and states(folder):
        run.resume()
    with stopping_on_signal(run):
        return run.train()


def _show_report(report: dict[str, dict[str, float]], columns: tuple[str, ...] = SCORES) -> None:
    columns = tuple(key for key in columns if any(key in scores for scores in report.values()))
    rows = [
        [name, f"{scores['parameters'] / 1e6:.2f} M"]
        + [f"{scores[key]:.4f}" if key in scores else "-" for key in columns[1:]]
        for name, scores in report.items()
    ]
    console.table("Student and teacher", ["", *columns], rows)
