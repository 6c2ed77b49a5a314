"""lcm checkpoints export: write a space in the layout of another program."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lcm_cli import console

from ._options import Force, Json

EPILOG = """\
lcm checkpoints export tiny --format hf -o tiny-hf

lcm checkpoints export my-space -o my-space-hf --json
"""


def main(
    source: Annotated[
        str,
        typer.Argument(metavar="SPACE", help="The name or folder of a space.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the export.")
    ],
    format: Annotated[
        Literal["hf"], typer.Option(help="hf: M2M-100, which transformers reads.")
    ] = "hf",
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a space in the layout of another program.

    hf writes encoder, decoder and tokenizer as transformers loads them, in float32, and a README.md
    for the Hub with licence, languages, results and a usage example. Prints the new folder.
    """
    from lcm_cli.transfer.export import export

    done = export(source, output, force=force)
    console.info(f"{done.name} in the M2M-100 layout, {console.size(sum(done.files.values()))}")
    if json:
        console.emit(
            {"path": str(output), "space": done.name, "format": format, "files": done.files}
        )
    else:
        console.out(str(output))
