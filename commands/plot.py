"""lcm plot: draw the curves of training runs."""

from pathlib import Path
from typing import Annotated

import typer

from lcm_cli import console

from ._options import Force, Json

EPILOG = """\
lcm plot runs/mine -o curves.png

lcm plot runs/base runs/two-tower -o compared.svg --force
"""


def main(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(*("-o", "--output"), metavar="FILE", help="The image: .png, .svg or .pdf."),
    ],
    force: Force = False,
    json: Json = False,
) -> None:
    """Draw the curves of training runs (losses, rates, scores), with all runs in each panel."""
    from lcm_cli.training.curves import plot

    panels = plot(runs, output, force=force)
    console.info(f"drawn: {', '.join(panels)}")
    if json:
        console.emit({"path": str(output), "panels": panels, "runs": [str(run) for run in runs]})
    else:
        console.out(str(output))
