"""Writing of reports: metrics.json, examples.jsonl, report.html, and the plots as images."""

import json
from pathlib import Path
from typing import Any

from lcm_cli.errors import UsageError
from lcm_cli.evaluation.run import Evaluation
from lcm_cli.files import atomic_path

METRICS, EXAMPLES, PAGE, WORK = "metrics.json", "examples.jsonl", "report.html", ".work.jsonl"


def check_report_folder(folder: Path, force: bool) -> None:
    """Create the folder of a report. Raises UsageError if it holds a finished one."""
    if (folder / METRICS).exists() and not force:
        raise UsageError(
            f"{folder} already holds a report", "choose another folder, or add --force"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "name a folder for the report")
    folder.mkdir(parents=True, exist_ok=True)


def work_path(folder: Path) -> Path:
    """Return the path of the file that keeps the results of an unfinished run."""
    return folder / WORK


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write all files of a report, metrics.json last: it marks the report as complete."""
    from lcm_cli.evaluation.report.page import render
    from lcm_cli.evaluation.report.plots import draw

    pictures = draw(evaluation)
    for picture in pictures:
        with atomic_path(folder / f"{picture.name}.png", force=True) as temporary:
            temporary.write_bytes(picture.png)
    lines = (json.dumps(_without_plot_data(r), ensure_ascii=False) for r in evaluation.records)
    _write(folder / EXAMPLES, "".join(f"{line}\n" for line in lines))
    _write(folder / PAGE, render(evaluation, pictures))
    _write(folder / METRICS, json.dumps(evaluation.as_json(), indent=1, ensure_ascii=False) + "\n")
    work_path(folder).unlink(missing_ok=True)


def _without_plot_data(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("map", "similarity")}


def _write(path: Path, text: str) -> None:
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
