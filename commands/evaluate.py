"""lcm evaluate: compare models, spaces and baselines on files or public data sets."""

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options

EPILOG = """\
lcm evaluate extractive lead-3 random-3 --task summarize --data examples/eval.jsonl -o report

lcm evaluate tiny --task roundtrip --task translate --data examples/eval.jsonl --to French

lcm evaluate copy-last mean --task next-concept --data stories.parquet --limit 1000

lcm evaluate extractive-10% --task summarize --data articles.jsonl --target-column highlights --json
"""

TASKS = ("next-concept", "roundtrip", "summarize", "expand", "translate", "speech")


def _tasks(incomplete: str) -> list[str]:
    return [task for task in TASKS if task.startswith(incomplete)]


def main(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Concept models, spaces, speech encoders, or baselines: extractive, lead-3, "
            "random-3, copy-last, mean, hf:ORG/NAME.",
        ),
    ],
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="TASK",
            help="next-concept, roundtrip, summarize, expand, translate or speech; repeatable.",
            autocompletion=_tasks,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="A file (JSON Lines, Parquet, Arrow) or a data set on the Hugging Face Hub "
            "(ORG/NAME:CONFIG:SPLIT).",
        ),
    ],
    source_column: Annotated[
        str, typer.Option(metavar="NAME", help="The column with the text.", show_default=False)
    ] = "",
    target_column: Annotated[
        str, typer.Option(metavar="NAME", help="The column with the reference.", show_default=False)
    ] = "",
    to: options.To = None,
    source: options.From = "auto",
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Take only the first N rows.", show_default=False),
    ] = None,
    length: Annotated[
        str, typer.Option(metavar="LENGTH", help="Length of summaries, as for lcm summarize.")
    ] = "3",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL]",
            help="Add the score of a model: cola, seahorse_q4, seahorse_q5, momentum, perplexity, "
            "bertscore, blaser_ref, blaser_qe; repeatable.",
            show_default=False,
        ),
    ] = None,
    lm: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Language model for the metric MI of next-concept.",
            show_default=False,
        ),
    ] = "",
    seed: options.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write a report to this folder."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
    space: options.Space = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Evaluate models and baselines side by side.

    Prints a table for each task; with -o also writes a report with plots and every prediction.
    To resume a run with -o that was stopped, repeat the command.
    """
    from ._evaluation import Request, run_evaluation

    run_evaluation(
        Request(
            models=models,
            tasks=tuple(dict.fromkeys(task)),
            data=data,
            columns=(source_column, target_column),
            to=to or [],
            source=source,
            limit=limit,
            length=length,
            judges=judge or [],
            lm=lm,
            seed=seed,
            output=output,
            force=force,
        ),
        space,
        lambda place: place.load(device, precision, batch_tokens),
        json,
    )
