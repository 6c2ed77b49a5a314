"""lcm checkpoints verify: compare the digests of files with the card or the record of the pull."""

from typing import Annotated

import typer

from lcm_cli import console
from lcm_cli.errors import IntegrityError

from ._options import Json

EPILOG = """\
lcm checkpoints verify            # all checkpoints on this machine

lcm checkpoints verify sonar --json

lcm checkpoints verify runs/mine/model
"""


def main(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The name of a checkpoint, or a folder.", show_default=False
        ),
    ] = "",
    json: Json = False,
) -> None:
    """Compare the files of checkpoints with the sha256 in their card or the record of their pull.

    Also shows the number format of weights. The exit code is 5 if a file differs or is missing.
    """
    from lcm_cli.headers import main_type
    from lcm_cli.transfer.inventory import count_by_type, find_any, list_checkpoints, verify

    known, wrong = 0, []
    for one in [find_any(name)] if name else [one for one in list_checkpoints() if one.path]:
        stored = main_type(count_by_type(one))
        for check in verify(one):
            kept = stored if check.file.suffix == ".safetensors" else ""
            known += check.status != "no record"
            if check.status in ("differs", "missing"):
                wrong.append((one, check.file))
            if json:
                found = {"name": one.name, "file": str(check.file), "status": check.status}
                console.emit(found | {"numbers": kept or None})
            else:
                console.out(f"{check.status:9}  {one.name}  {check.file}  {kept}".rstrip())
    if name and not known:
        console.warn(f"no sha256 is recorded here; to examine the files: lcm inspect {name}")
    if wrong:
        again = (
            "copy it again" if one.where == "folder" else f"run: lcm pull {one.name} --force"
            for one, _ in wrong
        )
        raise IntegrityError(
            f"{len(wrong)} files are damaged or missing; the first is {wrong[0][1]}",
            "; ".join(dict.fromkeys(again)),
        )
