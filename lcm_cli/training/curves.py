"""The curves of runs: read from logs, drawn side by side, or written for TensorBoard."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import atomic_path
from lcm_cli.training.run_folder import RECIPE

LOG = "metrics.jsonl"
LOG_EVERY = 20  # steps
SUFFIXES = (".png", ".svg", ".pdf")
FIRST = ("loss", "eval.loss")  # the first panels; the others follow by name
LEFT_OUT = (
    "minutes",
    "concepts",
    "sentences",
    "utterances",
    "skipped",
    "eta_minutes",
    "eval.targets",
)

Curve = tuple[list[int], list[float]]  # steps and values


def read_curves(run: Path) -> dict[str, Curve]:
    """Return every number in a run's log as a curve: "loss", "lr", "eval.l2" ...

    Raises NotFoundError if there is no run, IntegrityError if its log is empty.
    """
    path = run / LOG if run.is_dir() else run
    if (run / RECIPE).is_file() and not path.is_file():
        raise _nothing_yet(run)
    if not path.is_file():
        raise NotFoundError(
            f"no run at {run}: {path} is missing", "name the folder of a run: the -o of lcm train"
        )
    curves: dict[str, Curve] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that is being written, or was when the run was killed
        for key, value in flat(record).items():
            steps, values = curves.setdefault(key, ([], []))
            steps.append(int(record["step"]))
            values.append(value)
    if not curves:
        raise _nothing_yet(run)
    return curves


def _nothing_yet(run: Path) -> IntegrityError:
    return IntegrityError(
        f"the run {run} has no log records yet",
        f"one is written every {LOG_EVERY} steps, and after each evaluation",
    )


def flat(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers in a log record; those of tables are named like "eval.l2"."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            numbers |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
        elif isinstance(value, int | float) and key != "step":
            numbers[key] = float(value)
    return numbers


def plot(runs: Sequence[Path], target: Path, *, force: bool = False) -> list[str]:
    """Draw the curves of `runs`, one panel per metric; return the panels' names.

    Raises UsageError for a file type that cannot be drawn or an existing file, LcmError without
    matplotlib, and what `read_curves` raises.
    """
    if target.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UsageError(
            f"{target} is not a supported image file", f"choose a name that ends in one of: {known}"
        )
    found = {str(run): read_curves(run) for run in runs}
    names = {name for curves in found.values() for name in curves if name not in LEFT_OUT}
    # The losses of single noise levels, loss_0 to loss_9, would fill the figure.
    levels = {name for name in names if name.rpartition("loss_")[2].isdigit()}
    panels = [name for name in FIRST if name in names] + sorted(names - levels - set(FIRST))
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LcmError("plots need matplotlib", 'pip install "lcm-cli[plot]"') from error
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3 * rows), layout="constrained")
    for number, name in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_title(name)
        axes.set_xlabel("step")
        for run, curves in found.items():
            steps, values = curves.get(name, ([], []))
            axes.plot(steps, values, label=run, marker="." if len(steps) < 20 else "")
        if number == 1 and len(found) > 1:
            axes.legend()
    with atomic_path(target, force=force) as temporary:
        figure.savefig(temporary, format=target.suffix[1:], dpi=120)
    return panels


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None] | None:
    """Return a function that writes records to `folder`/tensorboard; None without TensorBoard."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own dependencies
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(record: dict[str, Any]) -> None:
        for name, value in flat(record).items():
            writer.add_scalar(name.replace(".", "/"), value, record["step"])
        for name, sentences in record.get("sample", {}).items():
            writer.add_text(f"sample/{name}", "\n\n".join(sentences), record["step"])
        writer.flush()

    return write
