"""lcm expand: longer texts on the same subject."""

from typing import Annotated

import typer

from lcm_cli import console

from . import _answers as shared
from . import _options as options

WINDOW = 64  # sentences that are expanded together: each becomes many

EPILOG = """\
lcm expand idea.txt

echo "The lost dog." | lcm expand --from en --length 8 --to fra --cite

lcm expand titles.jsonl --model runs/mine/model --json > stories.jsonl
"""


def main(
    ctx: typer.Context,
    inputs: options.Inputs = None,
    to: options.To = None,
    source: options.From = "auto",
    format: options.Format = None,
    column: options.Column = None,
    length: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="8 (sentences), 300% (of the sentences) or 120w (words).  "
            "[default: the model's choice]",
            show_default=False,
        ),
    ] = None,
    model: options.Model = "auto",
    strict: shared.Strict = False,
    cite: shared.Cite = False,
    seed: options.Seed = 0,
    json: options.Json = False,
    output: options.Outputs = None,
    output_template: options.Template = None,
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    split: options.Split = "auto",
    space: options.Space = None,
    speech: options.Speech = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Expand summaries or titles into longer texts, in any language of the space.

    This needs a concept model trained to expand (--model). If its answer is refused, the document
    itself replaces it.
    """
    from lcm_cli.text.length import Length
    from lcm_cli.writing.expand import expand_all, no_model

    from ._result import open_results
    from ._road import Road
    from ._space import LocatedSpace

    wanted = None if length is None else Length.parse(length, shorter=False)
    with open_results(output, force, output_template, as_json=json) as out:
        located = LocatedSpace(space)
        requested = shared.RequestedModel(ctx, model, "expand")
        codes = located.targets(to)
        reading = options.read_options(format, column)
        road = Road(
            inputs,
            located,
            source,
            one_per_line,
            ahead=1 if json else 2,
            reading=reading,
            split=split,
            speech=speech,
        )
        loaded = located.load(device, precision, batch_tokens)
        chosen = requested.load(loaded)
        if chosen is None:
            raise no_model(located.name)
        printer = shared.AnswerPrinter(out, road, "expansions", json=json, cite=cite, strict=strict)
        with console.progress("expanding (sentences)") as advance:
            for window in road.embedded(loaded, lambda n: None, WINDOW):
                answers = expand_all(
                    window, loaded, codes, wanted, chosen, seed=seed, progress=advance
                )
                printer.show(window, answers, loaded, seed)
    road.finish()
