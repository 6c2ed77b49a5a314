"""lcm summarize: the sentences that say most, in the text's own language and in others."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console

from . import _options as options

if TYPE_CHECKING:
    from lcm_cli.pipeline import Embedded
    from lcm_cli.space import Space
    from lcm_cli.summary import Summary

EPILOG = """\
lcm summarize story.txt

lcm summarize story.txt --to fra --to German --to es --cite

cat story.txt | lcm summarize --length 20% --to all

lcm summarize articles/*.txt --length 120w --json > summaries.jsonl
"""


def main(
    inputs: options.Inputs = None,
    to: options.To = None,
    source: options.From = "auto",
    length: Annotated[
        str,
        typer.Option(
            metavar="LENGTH",
            help="3 (sentences), 20% (of the sentences) or 120w (words of the source).",
        ),
    ] = "3",
    cite: Annotated[
        bool, typer.Option("--cite", help="Show the source of each sentence, and how near it is.")
    ] = False,
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

    The sentences that stand best for a document are chosen by their concepts. In its own language,
    which is the default, they are quoted; in others they are decoded.
    """
    from lcm_cli.length import Length
    from lcm_cli.pipeline import find_languages
    from lcm_cli.summary import summarize_all

    from ._place import Place
    from ._result import result
    from ._road import Road

    wanted = Length.parse(length)
    with result(output, force) as out:
        place = Place(space)
        codes = find_languages(to or (), place.languages, place.name)
        road = Road(inputs, place, source, one_per_line, ahead=1 if json else 2)
        loaded = place.load(device, precision, batch_tokens)
        with console.progress("summarizing (sentences)") as advance:
            for window in road.embedded(loaded, advance):
                summaries = summarize_all(window, loaded, codes, wanted, cite=cite or json)
                for each, summary in zip(window, summaries, strict=True):
                    if json:
                        out.emit(_record(each, summary, length, loaded))
                    else:
                        blocks = {
                            code: _cited(summary, code) if cite else [text]
                            for code, text in summary.summaries.items()
                        }
                        out.document(each.document.label, blocks, road.several)
    road.finish()


def _cited(summary: "Summary", code: str) -> list[str]:
    lines = []
    for sentence in summary.sentences:
        lines.append(sentence.texts[code])
        if code == summary.lang:
            lines.append(f"    [{sentence.index}] word for word")
        else:
            lines.append(f"    [{sentence.index}] {sentence.similarity[code]:.2f}  {sentence.text}")
    return lines


def _record(each: "Embedded", summary: "Summary", length: str, space: "Space") -> dict[str, Any]:
    from ._result import provenance, truncations

    return {
        "id": summary.id,
        "lang": summary.lang,
        "method": summary.method,
        "length": length,
        "total": summary.total,
        "sentences": [
            {
                "index": sentence.index,
                "text": sentence.text,
                "similarity": {code: round(s, 4) for code, s in sentence.similarity.items()},
                "texts": sentence.texts,
            }
            for sentence in summary.sentences
        ],
        "summaries": summary.summaries,
        "truncated": truncations(each),
        **provenance(space),
    }
