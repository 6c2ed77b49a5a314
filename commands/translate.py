"""lcm translate: documents in other languages, sentence by sentence through concepts."""

from pathlib import Path, PurePath
from typing import Annotated

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError

from . import _options as options

EPILOG = """\
echo "The cat sleeps." | lcm translate - --to fr

lcm translate README.md film.srt report.docx --to de,es -o out/

lcm translate letter.txt --to fr --cite --n-best 3

lcm translate lines.txt --one-per-line --from fra --to eng --glossary terms.tsv
"""


def main(
    inputs: options.Inputs = None,
    to: options.To = None,
    source: options.From = "auto",
    format: options.Format = None,
    column: options.Column = None,
    cite: Annotated[
        bool, typer.Option("--cite", help="Show the source and the similarity of each sentence.")
    ] = False,
    n_best: Annotated[
        int,
        typer.Option(
            "--n-best",
            min=1,
            metavar="N",
            help="With --cite or --json: number of texts for each sentence.",
        ),
    ] = 1,
    glossary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prefer these translations: TSV or CSV of term, translation and, optionally, "
            "language.",
            show_default=False,
        ),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None,
        typer.Option(
            "--no-repeat-ngram", min=1, metavar="N", help="Never repeat a run of N tokens."
        ),
    ] = None,
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
    """Translate documents, sentence by sentence, through concepts.

    Each translation is compared with its source: the number of doubtful sentences is reported at
    the end, and --cite marks them.
    """
    from lcm_cli.pipeline import Prepared
    from lcm_cli.writing.glossary import read_glossary
    from lcm_cli.writing.translate import TranslateOptions, threshold, translate_all

    from ._result import open_results
    from ._road import WINDOW_ROWS, Road
    from ._space import LocatedSpace
    from ._translations import (
        DoubtReport,
        cited,
        output_kind,
        record,
        rendered,
        with_captions,
    )

    if n_best > 1 and not (cite or json):
        raise UsageError("--n-best has no effect on plain text", "add --cite or --json")
    own_format = not (json or cite)
    with open_results(output, force, output_template, as_json=json, own_format=own_format) as out:
        located = LocatedSpace(space)
        codes = located.required_targets(to)
        terms = read_glossary(glossary, located.languages, located.name) if glossary else None
        wanted = TranslateOptions(n_best, no_repeat_ngram or 0, terms)
        reading = options.read_options(format, column, whole=True)
        ahead = 1 if json else 2
        road = Road(inputs, located, source, one_per_line, ahead, reading, split, speech)
        loaded = located.load(device, precision, batch_tokens)
        suffix = PurePath(output_template or output or "").suffix
        report, any_done = DoubtReport(threshold(loaded), terms), False

        def check(each: Prepared) -> None:
            if not json:
                out.check(each.document, output_kind(each, cite), codes, road.several)

        with console.progress("translating (sentences)") as advance:
            for window in road.embedded(loaded, lambda n: None, max(1, WINDOW_ROWS // len(codes))):
                captioned = [with_captions(each, suffix) for each in window]
                accepted = road.accepted(captioned, check)
                any_done |= bool(accepted)
                translations = translate_all(accepted, loaded, codes, wanted, progress=advance)
                for each, translation in zip(accepted, translations, strict=True):
                    report.add(translation)
                    if json:
                        out.emit(record(each, translation, one_per_line, loaded))
                    elif cite:
                        blocks = {code: list(cited(each, translation, code)) for code in codes}
                        out.document(each.document, blocks, road.several)
                    else:
                        files = rendered(each, translation, one_per_line)
                        out.files(each.document, output_kind(each), files, road.several)
    report.finish("they are marked" if cite or json else "--cite shows them")
    road.finish(any_done)
