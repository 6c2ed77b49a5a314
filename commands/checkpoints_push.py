"""lcm checkpoints push: publish a checkpoint on the Hugging Face Hub."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lcm_cli import console

from ._options import Json

EPILOG = """\
lcm checkpoints push runs/stories/model me/stories-lcm --licence CC-BY-4.0

lcm checkpoints push my-space me/my-space --private

lcm checkpoints push my-model me/my-model --results results.json --revision v2
"""


def main(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder, or the name of a checkpoint.")
    ],
    repo: Annotated[str, typer.Argument(metavar="ORG/REPO", help="The repository.")],
    licence: Annotated[
        str,
        typer.Option(metavar="SPDX", help="Licence of the weights.  [default: the recorded one]"),
    ] = "",
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository.")
    ] = False,
    revision: Annotated[
        str, typer.Option(metavar="BRANCH", help="The branch; created if it does not exist.")
    ] = "main",
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Results for the model card, in JSON.", show_default=False
        ),
    ] = None,
    with_state: Annotated[
        bool, typer.Option("--with-state", help="Also upload the last state of the training run.")
    ] = False,
    json: Json = False,
) -> None:
    """Upload config, weights and a model card in one commit. Prints its address.

    Log in first (hf auth login), or set HF_TOKEN. A README.md in the folder is kept, and missing
    metadata is added to it. Weights over 5 GB are split into several files.
    """
    from lcm_cli.transfer.push import push, read_results

    pushed = push(
        source,
        repo,
        licence=licence,
        private=private,
        revision=revision,
        results=read_results(results) if results else None,
        with_state=with_state,
        notice=console.info,
    )
    console.info(f"published; to download it elsewhere: lcm pull {repo}")
    if json:
        console.emit({"repo": repo, "revision": revision, **asdict(pushed)})
    else:
        console.out(pushed.url)
