"""lcm checkpoints convert: a concept model of another program, in the layout of lcm."""

from pathlib import Path
from typing import Annotated

import typer

from lcm_cli import console

from ._options import Force

EPILOG = """\
lcm checkpoints convert checkpoints/step_250000 -o my-lcm

lcm checkpoints convert model.pt -o my-lcm      # with model_card.yaml or config.json beside it

lcm checkpoints convert sonar-llm-900m/ -o sonar-llm-900m-lcm
"""


def main(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A folder, or a file of weights with its config beside it.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the new checkpoint.")
    ],
    force: Force = False,
) -> None:
    """Convert a concept model of another program into one of lcm.

    Reads checkpoints of facebookresearch/large_concept_model (model.pt or model.safetensors, with
    model_card.yaml or config.json) and folders of SONAR-LLM (config.json, pytorch_model.bin). Only
    tensors are read; no code in them is run. Prints the new folder.
    """
    from lcm_cli.models.foreign import convert_model

    config = convert_model(source, output, force=force)
    space = config.space.name or "not known: concepts go in, and concepts come out"
    console.info(f"{config.architecture}, concepts of width {config.concept_dim}, space: {space}")
    console.out(str(output))
