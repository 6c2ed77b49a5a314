"""lcm pull: bring a checkpoint to this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from lcm_cli import console, settings
from lcm_cli.errors import UsageError

from ._options import Force
from ._pull import planned, pull_planned, total

if TYPE_CHECKING:
    from lcm_cli.transfer.plan import Part, PullPlan

EPILOG = """\
lcm pull sonar --set-default

lcm pull sonar-robust --dry-run

lcm pull sonar --accept-licence --quiet      # in a script

lcm pull org/model@v1.0                      # a branch, tag or commit of the Hugging Face Hub

lcm pull my-card.toml                        # weights of your own, see checkpoints/sonar-hub.toml
"""


def main(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A checkpoint, the path of a card, or ORG/REPO.")
    ],
    revision: Annotated[
        str,
        typer.Option(metavar="REV", help="A branch, tag or commit, also as ORG/REPO@REV."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be downloaded, and stop.")
    ] = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence unasked, whatever it is.")
    ] = False,
    set_default: Annotated[
        bool, typer.Option("--set-default", help="Use this space wherever none is named.")
    ] = False,
    force: Force = False,
) -> None:
    """Download a checkpoint once, check it, and make it ready for use.

    Prints the path alone on standard output. What was downloaded before is not downloaded again.
    """
    plan = planned(name, revision, force)
    if set_default and plan.kind != "space":
        raise UsageError(f"--set-default: {name} is a {plan.kind}, not a space")
    if dry_run:
        return _show(plan)
    path = pull_planned(plan, accept_licence, force).path
    if set_default:
        space = plan.name if plan.revision == "main" else f"{plan.name}@{plan.revision}"
        config = settings.set_user_default("space", space)
        console.info(f"default space: {space} (in {config})")
    console.out(str(path))


def _show(plan: "PullPlan") -> None:
    if plan.ready:
        return console.info(f"on this machine already: {plan.path}")
    rows = [(part.role, part.address, _bytes(part), part.here or "") for part in plan.parts]
    console.table("", ["part", "from", "bytes", "already here"], rows)
    console.info(f"to download: {total(plan)}")


def _bytes(part: "Part") -> str:
    if part.bytes is None:
        return "unknown"
    return f"{part.bytes}" if part.exact else f"about {part.bytes}"
