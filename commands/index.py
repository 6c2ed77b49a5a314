"""lcm index: an index of concepts for fast search."""

from pathlib import Path
from typing import Annotated

import typer

from lcm_cli import console
from lcm_cli.errors import UsageError
from lcm_cli.schema import counted

from . import _options as options

EPILOG = """\
lcm index corpus/ -o corpus.index/

lcm similar "Where is my dog?" --in corpus.index/

lcm index corpus/ -o corpus.index/ --approximate --force
"""


def main(
    inputs: options.Inputs = None,
    output: Annotated[
        str | None,
        typer.Option(
            *("-o", "--output"),
            metavar="FOLDER",
            help="Write the index to this folder.",
            show_default=False,
        ),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate/--exact",
            help="Add a graph, which finds nearly all neighbours in a fraction of the time.",
        ),
    ] = False,
    force: options.Force = False,
) -> None:
    """Build an index of concepts (from lcm embed) for lcm similar.

    The index holds the sentences and their concepts in float16, and is mapped into memory for
    searches. The folder appears once it is complete.
    """
    from lcm_cli.documents import read_concepts
    from lcm_cli.errors import LcmError
    from lcm_cli.search import graph
    from lcm_cli.search.index import check_place, write_index

    from ._options import input_paths
    from ._problems import Problems

    if output is None:
        raise UsageError("no output for the index", "name a folder: -o FOLDER")
    folder = Path(output)
    check_place(folder, force=force)
    if approximate:
        graph.require_faiss()  # raises before any work
    problems = Problems()
    try:
        info, documents = read_concepts(input_paths(inputs), on_error=problems)
    except LcmError:
        problems.finish(any_done=False)  # the reason has already been shown
        raise
    manifest = write_index(
        folder, info, documents, approximate=approximate, force=force, start=console.progress
    )
    size = sum(part.bytes for part in (*manifest.shards, manifest.sentences))
    size += manifest.graph.bytes if manifest.graph else 0
    console.info(
        f"indexed {counted(manifest.rows, 'sentence')} of"
        f" {counted(manifest.documents, 'document')}, {console.size(size)}"
    )
    problems.finish()
