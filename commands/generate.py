"""lcm generate: a concept model continues documents."""

from typing import Annotated, Any, Literal

import typer

from . import _options as options

EPILOG = """\
lcm generate story.txt --model my-lcm --max-concepts 5

lcm generate story.txt --model my-lcm --to fra --to deu --seed 7 --json

lcm generate story.txt --model my-lcm --candidates 8 --judge roundtrip

lcm generate story.txt --model my-lcm --max-concepts 1 --trace

lcm generate prompt.safetensors --model my-lcm --concepts-out more.safetensors
"""


def main(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A model by name, a folder, or ORG/REPO.")
    ],
    inputs: options.Inputs = None,
    to: options.To = None,
    source: options.From = "auto",
    max_concepts: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Most concepts to add; breaks and plans count, too."),
    ] = 32,
    min_concepts: Annotated[
        int, typer.Option(min=1, metavar="N", help="Do not stop before the N-th concept.")
    ] = 1,
    seed: options.Seed = 0,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, metavar="T", help="How far to stray: see docs/generate.md."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="S", help="Denoising steps of a diffusion model.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, metavar="G", help="How closely to follow the context.")
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Make N, and give the best.")
    ] = 1,
    rerank: Annotated[
        Literal["document", "step"], typer.Option(help="What the candidates are of.")
    ] = "document",
    judge: Annotated[
        Literal["likelihood", "roundtrip"], typer.Option(help="What finds the best candidate.")
    ] = "likelihood",
    trace: Annotated[
        bool, typer.Option("--trace", help="Show what each denoising step would have said.")
    ] = False,
    concepts_out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the new concepts as well.", show_default=False),
    ] = None,
    json: options.Json = False,
    output: options.Output = None,
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="SPACE", help="The space of the concepts.  [default: the model's own]"
        ),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Continue documents with a concept model, in any language of its space.

    Takes text, or concepts in any format that lcm reads, and prints each sentence as soon as it is
    made. Without a known space a model takes concepts and writes them to --concepts-out.
    """
    from lcm_cli.hub.locate import locate_model

    from ._generation import Request, carry_out

    # What a config file names is the space of other commands: a model has its own.
    given = ctx.get_parameter_source("space")
    named = space if given is not None and given.name == "COMMANDLINE" else None
    stops: dict[str, Any] = {"max_concepts": max_concepts, "min_concepts": min_concepts}
    choice = {"candidates": candidates, "rerank": rerank, "judge": judge, "seed": seed}
    request = Request(
        inputs=inputs,
        model=model,
        files=locate_model(model),
        space=named,
        to=to,
        source=source,
        one_per_line=one_per_line,
        common=stops | choice,
        own={"temperature": temperature, "steps": steps, "guidance": guidance},
        trace=trace,
        json=json,
        output=output,
        concepts_out=concepts_out,
        force=force,
        device=device,
        precision=precision,
        batch_tokens=batch_tokens,
    )
    carry_out(request)
