"""lcm embed: concepts of documents, in a file or a pipe."""

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.schema import counted

from . import _options as options
from . import _shares as shares

if TYPE_CHECKING:
    from lcm_cli.documents.shares import Share

    from ._road import Road

EPILOG = """\
lcm embed story.txt -o story.safetensors

lcm embed corpus.jsonl texts/ -o corpus/ --from eng

lcm embed corpus.jsonl -o corpus/ --fragility

lcm embed corpus/ -o data/ --shard 3/16

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
    shard: shares.Shard = None,
    engine: shares.Engine = "local",
    address: shares.Address = None,
) -> None:
    """Turn documents into concepts, one vector per sentence.

    The name after -o selects the format: .parquet, .arrow, .jsonl, .safetensors (one document), a
    folder (Parquet shards), or - for a pipe (Arrow IPC stream). The same command resumes an
    unfinished folder and repeats at most a few minutes of work. Several processes (--shard) or Ray
    can share the work of one folder.
    """
    call = dict(locals())
    if engine == "ray" or address is not None:
        from ._ray import embed_shares

        embed_shares(main, call)
        return
    from lcm_cli.documents.sources import identify
    from lcm_cli.pipeline import space_info
    from lcm_cli.space.fragility import SAMPLE, channel_statistics, score

    from ._result import concept_writer
    from ._road import Road
    from ._space import LocatedSpace

    target = None if json and output in (None, "-") else output
    share = shares.own_share(shard, target)
    _check(target, json, force, fragility, share)
    located = LocatedSpace(space)
    reading = options.read_options(format, column)
    read = partial(
        Road, inputs, located, source, one_per_line, reading=reading, split=split, speech=speech
    )
    road = read(share=share)
    loaded = located.load(device, precision, batch_tokens)
    run = {"inputs": identify(inputs or ["-"]), "from": source, "one_per_line": one_per_line}
    run |= {"precision": precision, "fragility": fragility}
    if share is not None and not run["inputs"]:
        road.problems.finish(any_done=False)
    run |= {"format": format, "column": column, "split": split, "speech": speech}
    if share is not None:
        target = shares.begin(target, share, run, space_info(loaded), dtype, force)
        if target is None:
            return
    # The beginning of all documents, so that the noise is the same in every share.
    sample = road if share is None or not fragility else read()
    known = channel_statistics(sample.beginning(SAMPLE), loaded) if fragility else None
    documents = sentences = 0
    start = time.perf_counter()
    with (
        concept_writer(
            target, space_info(loaded), dtype, force, run, allow_empty=share is not None
        ) as writer,
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


def _check(
    target: str | None, json: bool, force: bool, fragility: bool, share: "Share | None"
) -> None:
    from lcm_cli.documents import check_target

    if target is None and not json:
        raise UsageError("no output for the concepts", "name a file: -o FILE, or add --json")
    if json and target is not None and not target.endswith(".jsonl"):
        raise UsageError(
            f"--json cannot be written to {target}", "choose a name that ends in .jsonl"
        )
    if fragility and (target is None or target.endswith((".jsonl", ".safetensors"))):
        raise UsageError("--fragility needs a table format", "write to a folder or NAME.parquet")
    if target == "-":
        console.out_bytes(())  # refuses a terminal before any work
    elif share is not None:
        shares.check_folder(target, share)
    elif target is not None:
        check_target(target, force=force)
