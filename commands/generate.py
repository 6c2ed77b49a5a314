"""lcm generate: continuations of documents by a concept model."""

from typing import Annotated, Literal

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
        str, typer.Option(metavar="MODEL", help="Concept model: a name, a folder, or ORG/REPO.")
    ],
    inputs: options.Inputs = None,
    to: options.To = None,
    source: options.From = "auto",
    max_concepts: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Maximum number of new concepts, including breaks and plans."
        ),
    ] = 32,
    min_concepts: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Minimum number of new concepts, including breaks and plans."
        ),
    ] = 0,
    seed: options.Seed = 0,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, metavar="T", help="Randomness of the concepts; see docs/generate.md."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="S", help="Denoising steps of a diffusion model.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, metavar="G", help="Guidance scale: how closely to follow the context."),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Generate N candidates and keep the best.")
    ] = 1,
    rerank: Annotated[
        Literal["document", "step"],
        typer.Option(help="Rank whole documents, or concepts at every step."),
    ] = "document",
    judge: Annotated[
        Literal["likelihood", "roundtrip"], typer.Option(help="Criterion for the best candidate.")
    ] = "likelihood",
    trace: Annotated[
        bool, typer.Option("--trace", help="Show the text of every denoising step.")
    ] = False,
    concepts_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Also write the new concepts to FILE.", show_default=False
        ),
    ] = None,
    json: options.Json = False,
    output: options.Output = None,
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    space: Annotated[
        str | None,
        typer.Option(metavar="SPACE", help="Space of the concepts.  [default: the model's own]"),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Continue documents with a concept model, in any language of its space.

    The input is text, or concepts in any format that lcm reads. Each sentence is printed as soon as
    it is generated. Without a known space a model reads concepts and writes them to --concepts-out.
    """
    from lcm_cli.hub.locate import locate_model
    from lcm_cli.models.config import read_model_config

    from . import _generation as generation
    from ._result import open_result
    from ._road import PromptRoad

    # A space in the config file is for other commands: a model has its own.
    given = ctx.get_parameter_source("space")
    named = space if given is not None and given.name == "COMMANDLINE" else None
    config = read_model_config(locate_model(model).config)
    needs_text = bool(to) or concepts_out is None
    located = generation.locate_generation_space(named, config.space.name, needs_text)
    generation.check_generation(
        model,
        located,
        to,
        json=json,
        output=output,
        concepts_out=concepts_out,
        force=force,
    )
    codes = [] if located is None else located.targets(to)
    with open_result(output, force) as out:
        plans = bool(getattr(config, "plans", False))  # a quantizer has none; loading refuses it
        road = PromptRoad(
            inputs, located, source, one_per_line, ahead=1 if json else 2, plans=plans
        )
        writer = generation.load_writer(model, located, device, precision, batch_tokens)
        from lcm_cli.models.generate import GenerateOptions  # here: it imports torch
        from lcm_cli.writing.writer import sampler

        own = sampler(writer.model, temperature=temperature, steps=steps, guidance=guidance)
        chosen = GenerateOptions(
            max_concepts,
            min_concepts,
            seed=seed,
            candidates=candidates,
            rerank=rerank,
            judge=judge,
            sampler=own,
        )
        prompts = road.prompts(writer, codes, chosen)
        # With concepts on standard output there is no place for text.
        words = not json and located is not None and concepts_out != "-"
        printer = generation.Printer(out, several=road.several, words=words)
        streaming = None if json or road.several else printer.sentence
        with generation.concepts_file(concepts_out, writer.space_info, force) as keep:
            for window in prompts:
                printer.begin(codes)
                found = writer.continue_all(
                    window, codes, chosen, trace=trace, on_sentence=streaming
                )
                for document, done in zip(window, found, strict=True):
                    if json:
                        out.emit(generation.record(done, model, writer, chosen))
                    else:
                        printer.end(document, done)
                    generation.report(document, done, words)
                    keep(done)
    road.finish()
