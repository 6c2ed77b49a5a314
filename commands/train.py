"""lcm train: train or finetune what a recipe describes."""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError

from ._options import Device, Json

EPILOG = """\
lcm train space.toml

lcm train space.toml --set train.steps=500 --max-minutes 10

lcm train space.toml --resume
"""


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe, or a checkpoint's card, in TOML.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: key=value. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run.  [default: runs/NAME]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    max_minutes: Annotated[
        float, typer.Option(min=0, help="Stop, saved, after so many minutes.")
    ] = float("inf"),
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train or finetune a space, as a recipe says."""
    from lcm_cli.training.recipe import load_recipe

    loaded = load_recipe(recipe, changes or ())
    folder = output or Path("runs") / loaded.name
    _check_folder(folder, resume)

    from lcm_cli.space import pick_device
    from lcm_cli.training.loop import Run
    from lcm_cli.training.space import make_trainer

    chosen = pick_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    console.info(f"reading {', '.join(loaded.data.train)}")
    trainer = make_trainer(loaded, folder, chosen)
    size = sum(p.numel() for p in trainer.parameters)
    console.info(f"{size / 1e6:.1f} M parameters on {chosen}, {len(trainer.data)} lines of text")
    if trainer.data.skipped:
        most = loaded.train.max_tokens
        console.warn(f"{trainer.data.skipped} sentences over {most} tokens are left out")
    run = Run(trainer, folder, max_minutes, console.emit if json else _show)
    if resume:
        run.resume()
    _stop_on_signal(run)
    finished = run.train()
    console.info(
        f"done: try  lcm translate - --space {folder / 'space'}"
        if finished
        else f"stopped at step {trainer.step} of {trainer.steps}; go on with --resume"
    )
    if not json:
        console.out(str(folder / "space"))


def _check_folder(folder: Path, resume: bool) -> None:
    from lcm_cli.training.loop import STATE

    if (folder / STATE).exists() and not resume:
        hint = "go on with --resume, or choose another folder with -o"
        raise UsageError(f"there is a run in {folder}", hint)
    if resume and not (folder / STATE).exists():
        raise UsageError(f"nothing to resume: no {folder / STATE}", "run without --resume to start")


def _stop_on_signal(run: Any) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        run.stop = True  # the step in hand is finished and saved
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _show(record: dict[str, Any]) -> None:
    """Write a log record as one line on stderr."""
    parts = [f"step {record['step']}", f"{record['minutes']:.1f} min"]
    if "loss" in record:
        parts += [f"loss {record['loss']:.3f}", f"align {record['align']:.3f}"]
        parts += [f"lr {record['lr']:.1e}", f"{record['sentences_per_second']:.0f} sentences/s"]
    parts += [f"{name} {score:.1f}" for name, score in record.get("eval", {}).items()]
    console.info(", ".join(parts))
