"""lcm embed: documents to concepts, in a file or a pipe."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, cast

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.schema import counted

from . import _options as options

if TYPE_CHECKING:
    from lcm_cli.documents import ConceptWriter, SpaceInfo

EPILOG = """\
lcm embed story.txt -o story.safetensors

lcm embed corpus.jsonl texts/ -o corpus/ --from eng

lcm embed story.txt -o - | lcm decode - --to nld
"""
Dtype = Literal["float16", "float32"]


def main(
    inputs: options.Inputs = None,
    source: options.From = "auto",
    output: options.Output = None,
    json: options.Json = False,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Number format of the concepts on disk.")
    ] = "float16",
    force: options.Force = False,
    one_per_line: options.OnePerLine = False,
    space: options.Space = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Turn documents into concepts, one vector a sentence.

    The name after -o chooses the format: .parquet, .arrow, .jsonl, .safetensors (one document), a
    folder (shards of Parquet), or - for a pipe (Arrow IPC stream). A folder that was not finished
    goes on after its last shard when the same command is given again.
    """
    from lcm_cli.documents.sources import identify
    from lcm_cli.pipeline import space_info

    from ._place import Place
    from ._road import Road

    target = None if json and output in (None, "-") else output
    _check(target, json, force)
    place = Place(space)
    road = Road(inputs, place, source, one_per_line)
    loaded = place.load(device, precision, batch_tokens)
    run = {"inputs": identify(inputs or ["-"]), "from": source, "one_per_line": one_per_line}
    run["precision"] = precision
    documents = sentences = 0
    start = time.perf_counter()
    with (
        _writer(target, space_info(loaded), dtype, force, run) as writer,
        console.progress("embedding (sentences)") as advance,
    ):
        if writer.done:
            console.info(f"going on after the {counted(writer.done, 'document')} that were done")
            road.skip(writer.done, writer.last)
        for window in road.embedded(loaded, advance, ends=writer.fills):
            for each in window:
                writer.write(each.document)
                documents += 1
                sentences += each.size
    seconds = time.perf_counter() - start
    console.info(
        f"embedded {counted(sentences, 'sentence')} of {counted(documents, 'document')}"
        f" in {seconds:.1f} s"
        f" ({sentences / seconds:.1f} sentences/s)"
    )
    road.finish()


def _check(target: str | None, json: bool, force: bool) -> None:
    from lcm_cli.documents import check_target

    if target is None and not json:
        raise UsageError("no place for the concepts", "name a file: -o FILE, or add --json")
    if json and target is not None and not target.endswith(".jsonl"):
        raise UsageError(f"--json does not fit {target}", "name a file that ends in .jsonl")
    if target == "-":
        console.out_bytes(())  # a terminal is refused before any work
    elif target is not None:
        check_target(target, force=force)


@contextmanager
def _writer(
    target: str | None, info: "SpaceInfo", dtype: Dtype, force: bool, run: dict[str, Any]
) -> Iterator["ConceptWriter"]:
    """Yield what takes the documents with their concepts; no target means JSON Lines to stdout."""
    from lcm_cli.documents import ConceptWriter, open_writer, to_json

    from ._result import Pipe

    if target is None:
        yield ConceptWriter(info, dtype, lambda document: console.emit(to_json(document)))
        return
    pipe = cast(BinaryIO, Pipe())
    with open_writer(target, info, dtype=dtype, force=force, stdout=pipe, run=run) as writer:
        yield writer
