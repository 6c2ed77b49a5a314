"""lcm embed: concepts of documents, in a file or a pipe."""

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.schema import counted

from . import _options as options

if TYPE_CHECKING:
    from ._road import Road

EPILOG = """\
lcm embed story.txt -o story.safetensors

lcm embed corpus.jsonl texts/ -o corpus/ --from eng

lcm embed corpus.jsonl -o corpus/ --fragility

lcm embed story.txt -o - | lcm decode - --to nld
"""
EMBEDDING, LISTENING = "embedding (sentences)", "embedding (seconds of audio)"
SCORING = "scoring (sentences with noise)"
Dtype = Literal["float16", "float32"]


def main(
    inputs: options.Inputs = None,
    source: options.From = "auto",
    format: options.Format = None,
    column: options.Column = None,
    output: options.Output = None,
    json: options.Json = False,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Number format of the stored concepts.")
    ] = "float16",
    fragility: Annotated[
        bool,
        typer.Option(
            "--fragility",
            help="Score the sensitivity of each sentence to noise, for training (slow).",
        ),
    ] = False,
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    split: options.Split = "auto",
    space: options.Space = None,
    speech: options.Speech = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Turn documents into concepts, one vector per sentence.

    The name after -o selects the format: .parquet, .arrow, .jsonl, .safetensors (one document), a
    folder (Parquet shards), or - for a pipe (Arrow IPC stream). The same command resumes an
    unfinished folder and repeats at most a few minutes of work.
    """
    from lcm_cli.documents.sources import identify
    from lcm_cli.pipeline import space_info
    from lcm_cli.space.fragility import SAMPLE, channel_statistics, score

    from ._result import concept_writer
    from ._road import Road
    from ._space import LocatedSpace

    target = None if json and output in (None, "-") else output
    _check(target, json, force, fragility)
    located = LocatedSpace(space)
    reading = options.read_options(format, column)
    road = Road(inputs, located, source, one_per_line, reading=reading, split=split, speech=speech)
    loaded = located.load(device, precision, batch_tokens)
    run = {"inputs": identify(inputs or ["-"]), "from": source, "one_per_line": one_per_line}
    run |= {"precision": precision, "fragility": fragility}
    run |= {"format": format, "column": column, "split": split, "speech": speech}
    known = channel_statistics(road.beginning(SAMPLE), loaded) if fragility else None
    documents = sentences = 0
    start = time.perf_counter()
    with (
        concept_writer(target, space_info(loaded), dtype, force, run) as writer,
        console.progress(_activity(road, scoring=known is not None)) as advance,
    ):
        if writer.done:
            console.info(f"resuming after {counted(writer.done, 'finished document')}")
            road.skip(writer.done, writer.last, writer.open)
        for window in road.embedded(loaded, advance if known is None else None, ends=writer.fills):
            if known is not None:
                score([each.document for each in window], loaded, known, advance)
            for each in window:
                writer.write(each.document)
                documents += 1
                sentences += each.size
            writer.save()
    seconds = time.perf_counter() - start
    console.info(
        f"embedded {counted(sentences, 'sentence')} of {counted(documents, 'document')}"
        f" in {seconds:.1f} s"
        f" ({sentences / seconds:.1f} sentences/s)"
    )
    road.finish()


def _activity(road: "Road", *, scoring: bool) -> str:
    if scoring:
        return SCORING
    return LISTENING if road.spoken else EMBEDDING


def _check(target: str | None, json: bool, force: bool, fragility: bool) -> None:
    from lcm_cli.documents import check_target

    if target is None and not json:
        raise UsageError("no output for the concepts", "name a file: -o FILE, or add --json")
    if json and target is not None and not target.endswith(".jsonl"):
        raise UsageError(f"--json does not fit {target}", "choose a name that ends in .jsonl")
    if fragility and (target is None or target.endswith((".jsonl", ".safetensors"))):
        raise UsageError("--fragility needs a table format", "write to a folder or NAME.parquet")
    if target == "-":
        console.out_bytes(())  # refuses a terminal before any work
    elif target is not None:
        check_target(target, force=force)
