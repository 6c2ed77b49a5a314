"""lcm inspect: show the contents of a file, a data set or a checkpoint."""

from typing import Annotated

import typer

from lcm_cli import console

from ._options import Json
from ._reports import rows

EPILOG = """\
lcm inspect story.parquet

lcm inspect corpus/ --json

lcm inspect corpus/ --expect 16

lcm inspect tiny
"""


def main(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A file or folder of text or concepts, a space, a model, a card, or weights.",
            show_default=False,
        ),
    ],
    json: Json = False,
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect",
            metavar="N",
            min=1,
            help="Only check that the data set has all of its N shares (lcm embed --shard).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the contents of a file, a data set, a space, a model or another checkpoint."""
    from lcm_cli.inspection import inspect, inspect_shares

    report, error = (inspect(name), None) if expect is None else inspect_shares(name, expect)
    if json:
        console.emit(report)
    else:
        console.table("", ("what", "found"), rows(report))
        for problem in report.get("problems", ()):
            console.warn(problem)
    if error is not None:
        raise error
