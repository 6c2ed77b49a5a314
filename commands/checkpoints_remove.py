"""lcm checkpoints remove: delete a pulled checkpoint."""

from typing import Annotated

import typer

from lcm_cli import console

from ._options import Json

EPILOG = """\
lcm checkpoints remove sonar-robust
"""


def main(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a checkpoint.")],
    json: Json = False,
) -> None:
    """Delete a pulled checkpoint from this machine. It can be pulled again."""
    from lcm_cli.transfer.inventory import find_checkpoint, remove

    found = find_checkpoint(name)
    freed = remove(found, console.info)
    console.info(f"removed {found.path}: {console.size(freed)}")
    if json:
        console.emit({"name": found.name, "path": str(found.path), "bytes_freed": freed})
