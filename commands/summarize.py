"""lcm summarize: what a text says, shorter, in its own language and in others."""

from typing import Annotated

import typer

from lcm_cli import console

from . import _answers as shared
from . import _options as options

EPILOG = """\
lcm summarize story.txt

lcm summarize story.txt --to fra --to German --to es --cite

cat story.txt | lcm summarize --model extractive --length 20% --to all

lcm summarize articles/*.txt --length 120w --json > summaries.jsonl
"""


def main(
    ctx: typer.Context,
    inputs: options.Inputs = None,
    to: options.To = None,
    source: options.From = "auto",
    length: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="3 (sentences), 20% (of the sentences) or 120w (words).  "
            "[default: 3, or what the model finds right]",
            show_default=False,
        ),
    ] = None,
    model: options.Model = "auto",
    strict: shared.Strict = False,
    cite: shared.Cite = False,
    seed: options.Seed = 0,
    json: options.Json = False,
    output: options.Output = None,
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    space: options.Space = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Summarize documents, in any language of the space.

    A concept model that learned it writes the summary (--model), if the space has one. Else, with
    --model extractive, and where the model's answer is no good, the sentences that stand best for
    the document are chosen by their concepts: quoted in its own language, decoded in others.
    """
    from lcm_cli.text.length import Length
    from lcm_cli.writing.summarize import summarize_all

    from ._result import result
    from ._road import Road
    from ._space import LocatedSpace

    wanted = None if length is None else Length.parse(length)
    with result(output, force) as out:
        located = LocatedSpace(space)
        requested = shared.RequestedModel(ctx, model, "summarize")
        codes = located.targets(to)
        road = Road(inputs, located, source, one_per_line, ahead=1 if json else 2)
        loaded = located.load(device, precision, batch_tokens)
        chosen = requested.load(loaded)
        shown = shared.Answers(out, road, "summaries", json=json, cite=cite, strict=strict)
        with console.progress("summarizing (sentences)") as advance:
            for window in road.embedded(loaded, advance):
                answers = summarize_all(
                    window, loaded, codes, wanted, chosen, cite=cite or json, seed=seed
                )
                shown.show(window, answers, loaded, seed)
    road.finish()
