"""lcm decode: text from concepts, in any language of their space."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError

from . import _options as options

if TYPE_CHECKING:
    from lcm_cli.pipeline import Decoded
    from lcm_cli.space import Space

EPILOG = """\
lcm decode story.safetensors --to fra --to German

lcm embed story.txt -o - | lcm decode - --to nld

lcm decode story.parquet --to eng --n-best 3 --json

lcm decode story.parquet --to eng --sample --temperature 0.7 --seed 1
"""


def main(
    inputs: options.Inputs = None,
    to: options.To = None,
    beam: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Beam width.  [default: 5]")
    ] = None,
    n_best: Annotated[
        int, typer.Option("--n-best", min=1, metavar="N", help="Number of texts for each sentence.")
    ] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Sample tokens at random.")] = False,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="T", help="With --sample: more varied above 1, less varied below."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            metavar="K",
            help="With --sample: draw only from the K likeliest tokens.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            min=0,
            max=1,
            metavar="P",
            help="With --sample: draw only from the likeliest tokens, of total probability P.",
        ),
    ] = None,
    seed: options.Seed = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="N", help="Token limit of a sentence."),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None,
        typer.Option(
            "--no-repeat-ngram", min=1, metavar="N", help="Never repeat a run of N tokens."
        ),
    ] = None,
    json: options.Json = False,
    output: options.Output = None,
    force: options.Force = False,
    space: options.Space = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Turn concepts back into text, in any language of their space."""
    from ._result import open_result
    from ._road import ConceptRoad
    from ._space import LocatedSpace

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    _check(sample, beam, sampling)
    with open_result(output, force) as out:
        located = LocatedSpace(space)
        codes = located.required_targets(to)
        road = ConceptRoad(inputs, ahead=1 if json else 2)
        loaded = located.load(device, precision, batch_tokens)
        given = sampling | {"max_tokens": max_tokens, "no_repeat_ngram": no_repeat_ngram}
        search = {key: value for key, value in given.items() if value is not None}
        search |= {"beam": beam or max(5, n_best), "n_best": n_best, "sample": sample, "seed": seed}
        with console.progress("decoding (sentences)") as advance:
            for decoded in road.decoded(loaded, codes, search, advance):
                if json:
                    out.emit(_record(decoded, loaded, seed if sample else None))
                else:
                    blocks = {code: _lines(decoded, code, n_best) for code in codes}
                    out.document(decoded.document, blocks, road.several)
    road.problems.finish()


def _check(sample: bool, beam: int | None, sampling: dict[str, float | None]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in sampling.items() if value is not None]
    if given and not sample:
        raise UsageError(f"{given[0]} is for sampling", "add --sample, or drop it")
    if sample and beam is not None:
        raise UsageError("--beam and --sample exclude each other", "choose one of them")


def _lines(decoded: "Decoded", code: str, n_best: int) -> list[str]:
    if n_best == 1:
        return [decoded.text(code)]
    return [f"{t.score:.3f}\t{t.text}" for texts in decoded.texts[code] for t in texts]


def _record(decoded: "Decoded", space: "Space", seed: int | None) -> dict[str, Any]:
    from ._result import provenance

    candidates = {
        code: [[{"text": t.text, "score": round(t.score, 4)} for t in texts] for texts in sentences]
        for code, sentences in decoded.texts.items()
    }
    return {
        "id": decoded.document.id,
        "lang": decoded.document.lang,
        "texts": {code: decoded.text(code) for code in decoded.texts},
        "candidates": candidates,
        **provenance(space, seed),
    }
