"""Options, output and signal handling shared by `lcm train` and `lcm distill`."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.app import Stopped, on_signals
from lcm_cli.errors import UsageError

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe. Repeatable."),
]
RunFolder = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Folder of the run.  [default: runs/NAME]"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue where the run stopped.")]
MaxMinutes = Annotated[
    float,
    typer.Option(
        "--max-minutes", min=0, metavar="M", help="Save and stop after this many minutes."
    ),
]
Report = Callable[[dict[str, Any]], None]

# What the line of a log record shows, in this order: key, and format.
_SHOWN = (
    ("loss", "loss {:.4g}"),
    *((part, part + " {:.4g}") for part in ("own", "prediction", "hidden")),
    ("align", "align {:.3f}"),
    ("contrast", "contrast {:.3f}"),
    ("lr", "lr {:.1e}"),
    ("concepts_per_second", "{:.0f} concepts/s"),
    ("sentences_per_second", "{:.0f} sentences/s"),
    ("utterances_per_second", "{:.0f} utterances/s"),
    ("mfu", "MFU {:.1%}"),
)


def line(record: dict[str, Any]) -> str:
    """Format a log record as one line."""
    parts = [f"step {record['step']}"]
    parts += [words.format(record[key]) for key, words in _SHOWN if key in record]
    if record.get("skipped"):
        parts.append(f"{record['skipped']:.0f} batches skipped")
    if "eta_minutes" in record:
        parts.append(f"{duration(record['eta_minutes'])} left")
    parts += [
        f"{name} {score:.4g}"
        for name, score in record.get("eval", {}).items()
        if not name.startswith("loss_")
    ]
    return ", ".join(parts)


def duration(minutes: float) -> str:
    """Format a time span, in the unit that suits it."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"


def show(record: dict[str, Any]) -> None:
    """Write a log record, or the result of a fit, to stderr."""
    if "sample" in record:
        for name, sentences in record["sample"].items():
            console.info(f"step {record['step']}, {name}: {' '.join(sentences)}")
    elif "path" in record:
        _show_fit(record)
    else:
        console.info(line(record))


def _show_fit(record: dict[str, Any]) -> None:
    if "deviation" in record:
        console.info(f"deviation of held-out channels: {record['deviation']:.3f} (1 is perfect)")
    lost = record.get("lost", [])
    depths = [2**power for power in range(20) if 2**power < len(lost)] + [len(lost)]
    for depth in depths if lost else ():
        console.info(f"{depth} codebooks leave {lost[depth - 1]:.1%} of the variance")
    console.out(record["path"])


def show_estimate(record: dict[str, Any]) -> None:
    """Write the estimates of `--dry-run` to stdout, one per line."""
    if record["parameters"] is not None:
        frozen = record["parameters"] - record["trained"]
        more = f", {frozen:,} frozen" if frozen else ""
        console.out(f"parameters  {record['parameters']:,}{more}")
        console.out(f"state       {_size(record['state_bytes'])} (weights, gradients, optimizer)")
    if record["memory_bytes"]:
        console.out(f"memory      {_size(record['memory_bytes'])} at its peak, measured")
    if record["disk_bytes"]:
        console.out(f"disk        {_size(record['disk_bytes'])}")
    epochs = f", {_epochs(record['epochs'])}" if record["epochs"] else ""
    console.out(f"steps       {record['steps']:,}{epochs}")
    console.out(f"a step      {record['per_step']:,.0f} {record['unit']}")
    if record["seconds_per_step"] is not None:
        console.out(f"time        {record['seconds_per_step']:.3g} s a step, measured")
        console.out(f"in all      {duration(record['minutes'])}, without evaluations")
    for line in record["not_known"]:
        console.warn(f"not known: {line}")


def _epochs(count: float) -> str:
    number = f"{count:,.0f}" if count >= 100 else f"{count:.3g}"
    return f"{number} epoch{'s' * (number != '1')}"


def _size(count: float) -> str:
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 1000:
        count, unit = count / 1000, next(units)
    return f"{count:.3g} {unit}"


def check_run_folder(folder: Path, resume: bool, kind: str) -> None:
    """Raise UsageError for an existing run without `resume`, or a missing one with it."""
    from lcm_cli.training.states import states

    begun = bool(states(folder)) or (folder / kind).exists()
    if begun and not resume:
        other = "choose another folder with -o"
        hint = f"continue with --resume, or {other}" if states(folder) else other
        raise UsageError(f"there is a run in {folder}", hint)
    if resume and not states(folder):
        raise UsageError(f"nothing to resume: no state in {folder}", "run without --resume")


@contextmanager
def at_work(folder: Path, recipe: Any, resume: bool) -> Iterator[None]:
    """Lock the folder of a run and write the recipe there; warn if the recipe has changed."""
    from lcm_cli.training.run_folder import changes, hold, keeping, leads

    with hold(folder):
        if not leads():
            yield
            return
        if resume and (found := changes(folder, recipe)):
            console.warn(f"the recipe has changed since the run began: {'; '.join(found)}")
        with keeping(folder, recipe):
            yield


def resume_command(name: str, recipe: Path, folder: Path, changes: Sequence[str]) -> str:
    """Return the command that resumes a run, with the changes to its recipe."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = ["lcm"]
    if processes != "1":
        start = ["torchrun", "--nproc-per-node", processes, "-m", "lcm_cli"]
    parts = [*start, name, str(recipe), *(part for each in changes for part in ("--set", each))]
    return shlex.join([*parts, "-o", str(folder), "--resume"])


def own_device(device: str) -> str:
    """Return the device of this process; each process that torchrun started has its own GPU."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda"):
        return device
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else "cpu"


def together(reports: Sequence[Report | None]) -> Report:
    """Return a report that passes records on to all of `reports` but None."""

    def tell(record: dict[str, Any]) -> None:
        for report in reports:
            if report is not None:
                report(record)

    return tell


def show_step(record: dict[str, Any]) -> None:
    """Show a record in the status line of the terminal."""
    console.status(line(record))


@contextmanager
def stopping_on_signal(run: Any) -> Iterator[None]:
    """Let SIGTERM, SIGHUP and Ctrl-C stop the run after the current step; a second one at once."""

    def stop(number: int) -> None:
        if run.stop:
            raise Stopped(number)
        run.stop = True

    with on_signals(stop, "SIGTERM", "SIGHUP", "SIGINT"):
        yield
