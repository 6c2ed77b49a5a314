"""lcm checkpoints convert: convert foreign models, merge adapters, or change number formats."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lcm_cli import console

from ._options import Force, Json

if TYPE_CHECKING:
    from lcm_cli.transfer.convert import Converted, Cost

EPILOG = """\
lcm checkpoints convert checkpoints/step_250000 -o my-lcm

lcm checkpoints convert model.pt -o my-lcm      # with model_card.yaml or config.json beside it

lcm checkpoints convert sonar-llm-900m/ -o sonar-llm-900m-lcm

lcm checkpoints convert tiny-hf -o tiny-again   # from lcm checkpoints export

lcm checkpoints convert sonar -o sonar-int8 --store int8

lcm checkpoints convert my-adapter -o merged    # an adapter with its base
"""


def main(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder, a file of weights with its config beside it, or a name.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the new checkpoint.")
    ],
    store: Annotated[
        Literal["float32", "float16", "int8"] | None,
        typer.Option(help="Format of the numbers.  [default: as in SRC]", show_default=False),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Convert foreign models, merge adapters, change number formats.

    Reads checkpoints of facebookresearch/large_concept_model (model.pt or model.safetensors, with
    model_card.yaml or config.json), folders of SONAR-LLM (config.json, pytorch_model.bin), and
    spaces in the M2M-100 layout, as lcm checkpoints export writes them. Only tensors are read, and
    no code is run. With --store, SRC may also be a space or model of lcm: int8 has one scale per
    row of a matrix and takes half the bytes of float16. An adapter is merged into its base. Prints
    the new folder.
    """
    from lcm_cli.transfer.convert import convert

    done = convert(source, output, store, force=force)
    space = done.space or "unknown: the model reads and writes concepts only"
    console.info(f"{done.architecture or done.kind}, concepts of width {done.dim}, space: {space}")
    if done.cost:
        console.info(_describe(done.cost))
    if done.cost and done.cost.decodes_worse:
        console.warn(
            "the decoder has lost much; to keep its quality, finetune the space with "
            'train.store = "int8" (docs/training.md)'
        )
    if not done.same_concepts:
        console.info("concepts made with the source do not fit this space: embed the texts again")
    if json:
        console.emit(_facts(output, done, store))
    else:
        console.out(str(output))


def _facts(folder: Path, done: "Converted", store: str | None) -> dict[str, Any]:
    from lcm_cli.transfer.convert import Cost
    from lcm_cli.transfer.inventory import count_by_type, find_any

    counts = count_by_type(find_any(str(folder.resolve())))
    unchanged = dict.fromkeys(field.name for field in fields(Cost))
    return {
        "path": str(folder),
        "kind": done.kind,
        "architecture": done.architecture or None,
        "dim": done.dim,
        "space": done.space or None,
        "store": store,
        "parameters": sum(counts.values()),
        "numbers": counts,
        **(asdict(done.cost) if done.cost else unchanged),
    }


def _describe(cost: "Cost") -> str:
    before, after = console.size(cost.bytes_before), console.size(cost.bytes_after)
    sizes = f"{before} of weights before, {after} now"
    if not cost.relative_error:
        return f"{sizes}; no number has changed"
    error = f"{sizes}; relative error {cost.relative_error:.2%}"
    if cost.cosine is None:
        return error
    losses = f"{cost.loss_before:.3f} before, {cost.loss_after:.3f} now"
    return f"{error}, mean cosine of concepts {cost.cosine:.5f}, decoding loss {losses}"
