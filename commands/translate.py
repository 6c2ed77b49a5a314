"""lcm translate: documents in other languages, sentence by sentence through concepts."""

from typing import TYPE_CHECKING, Any

from lcm_cli import console

from . import _options as options

if TYPE_CHECKING:
    from lcm_cli.pipeline import Decoded, Prepared
    from lcm_cli.space import Space

    from ._result import OutputKind

EPILOG = """\
echo "The cat sleeps." | lcm translate - --to fr

lcm translate letter.txt --to German --to es -o letters.txt

lcm translate lines.txt --one-per-line --from fra --to eng
"""


def main(
    inputs: options.Inputs = None,
    to: options.To = None,
    source: options.From = "auto",
    format: options.Format = None,
    column: options.Column = None,
    json: options.Json = False,
    output: options.Output = None,
    output_template: options.Template = None,
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    split: options.Split = "auto",
    space: options.Space = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Translate documents, sentence by sentence, through concepts."""
    from lcm_cli.pipeline import decode

    from ._result import open_result
    from ._road import WINDOW_ROWS, Road
    from ._space import LocatedSpace

    with open_result(output, force, output_template, as_json=json) as out:
        located = LocatedSpace(space)
        codes = located.required_targets(to)
        reading = options.read_options(format, column, whole=True)
        road = Road(
            inputs,
            located,
            source,
            one_per_line,
            ahead=1 if json else 2,
            reading=reading,
            split=split,
        )
        loaded = located.load(device, precision, batch_tokens)
        with console.progress("translating (sentences)") as advance:
            for window in road.embedded(loaded, lambda n: None, max(1, WINDOW_ROWS // len(codes))):
                window = road.accepted(
                    window, lambda each: out.check(each.document, _kind(each), codes, road.several)
                )
                documents = [each.document for each in window]
                texts = decode(documents, codes, loaded, progress=advance)
                for each, decoded in zip(window, texts, strict=True):
                    if json:
                        out.emit(_record(each, decoded, one_per_line, loaded))
                    elif (layout := each.layout()) is None:
                        blocks = {code: [decoded.text(code, one_per_line)] for code in codes}
                        out.document(each.document, blocks, road.several)
                    else:
                        best = {c: [t[0].text for t in decoded.texts[c]] for c in codes}
                        files = {code: each.render(layout, best[code], code) for code in codes}
                        out.files(each.document, _kind(each), files, road.several)
    road.finish()


def _kind(each: "Prepared") -> "OutputKind":
    """Return the kind of file that a document's translation is."""
    from ._result import OutputKind

    layout = each.document.layout
    if layout is None:
        return OutputKind()
    return OutputKind(layout.suffix, layout.is_text, plain=False)


def _record(
    each: "Prepared", decoded: "Decoded", one_per_line: bool, space: "Space"
) -> dict[str, Any]:
    from ._result import provenance, truncations

    return {
        "id": each.document.id,
        "lang": each.document.lang,
        "sentences": [
            {
                "index": i + 1,
                "text": text,
                "texts": {code: texts[i][0].text for code, texts in decoded.texts.items()},
            }
            for i, text in enumerate(each.document.sentences)
        ],
        "translations": {code: decoded.text(code, one_per_line) for code in decoded.texts},
        "truncated": truncations(each),
        **provenance(space),
    }
