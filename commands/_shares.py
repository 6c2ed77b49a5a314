"""The share of the documents that this process embeds (lcm embed --shard)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lcm_cli import console
from lcm_cli.documents.shares import Share, check_division, is_finished, join
from lcm_cli.documents.targets import find_target
from lcm_cli.errors import UsageError

if TYPE_CHECKING:
    from lcm_cli.documents import SpaceInfo

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Run in this process, or as tasks of Ray."),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Embed share I (from 0) of N; with --engine ray, the number N of shares."
        "  [default: the task of a Slurm array, the rank of torchrun, or all]",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster: HOST:PORT, ray://HOST:PORT, or auto.  [default: this machine]",
        show_default=False,
    ),
]


def own_share(shard: str | None, target: str | None) -> Share | None:
    """Return the share of this process, None for all documents.

    Slurm or torchrun determines it if the target can be divided and `shard` is not given. Raises
    UsageError for a share of a target that is not a folder.
    """
    divisible = target is not None and find_target(target).kind == "dataset"
    if shard is not None:
        share = Share.parse(shard)
        if share.count > 1 and not divisible:
            raise UsageError("--shard needs a data set as its output", "name a folder: -o FOLDER")
        return share if share.count > 1 else None
    found = Share.of_process(os.environ) if divisible else None
    if found is None:
        return None
    console.info(f"{found[0]}, from {found[1]}; for all documents, add --shard 0/1")
    return found[0]


def check_folder(target: str | None, share: Share) -> None:
    """Raise early, before any work is done, what `begin` would raise for the folder."""
    assert target is not None  # by own_share
    check_division(Path(target), share.count)


def begin(
    target: str | None,
    share: Share,
    run: dict[str, Any],
    info: "SpaceInfo",
    dtype: str,
    force: bool,
) -> str | None:
    """Join the writing of a data set in shares; return its own folder, None if it is done."""
    assert target is not None  # by own_share
    folder = join(Path(target), share, run, info, dtype)
    if is_finished(Path(target), share.index) and not force:
        console.info(f"{folder} is finished already; to write it again, add --force")
        return None
    return str(folder)
