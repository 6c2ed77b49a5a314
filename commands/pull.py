"""lcm pull: bring a checkpoint to this machine."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lcm_cli import console, settings
from lcm_cli.errors import AuthError

from ._options import Force

if TYPE_CHECKING:
    from lcm_cli.plan import Part, Plan

EPILOG = """\
lcm pull sonar --set-default

lcm pull sonar-robust --dry-run

lcm pull sonar --accept-licence --quiet      # in a script

lcm pull my-card.toml                        # weights of your own, see checkpoints/sonar-hub.toml
"""


def main(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A checkpoint, the path of a card, or ORG/REPO.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be downloaded, and stop.")
    ] = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a non-commercial licence unasked.")
    ] = False,
    set_default: Annotated[
        bool, typer.Option("--set-default", help="Use this space wherever none is named.")
    ] = False,
    force: Force = False,
) -> None:
    """Download a checkpoint once, check it, and make it ready for use.

    Prints the path alone on standard output. What was downloaded before is not downloaded again.
    """
    from lcm_cli.plan import make_plan
    from lcm_cli.pull import pull

    plan = make_plan(name, force=force)
    console.info(f"{plan.name}: {plan.summary}")
    console.info(f"licence: {plan.licence}" + f" ({plan.licence_note})" * bool(plan.licence_note))
    if dry_run:
        return _show(plan)
    if not plan.ready:
        console.info(f"to download: {_total(plan)}")
        accept_licence = accept_licence or (plan.non_commercial and _agreed(plan))
    pull(
        plan,
        accept_licence=accept_licence,
        force=force,
        progress=console.progress,
        notice=console.info,
    )
    if set_default:
        path = settings.set_user_default("space", plan.name)
        console.info(f"default space: {plan.name} (in {path})")
    console.out(str(plan.path))


def _agreed(plan: "Plan") -> bool:
    """Ask whether the licence is accepted, where there is somebody to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    # Not typer.confirm, which writes a space to stdout: that is for the path alone.
    sys.stderr.write(console.printable(f"Use {plan.name} under {plan.licence}? [y/N] "))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise AuthError(f"the licence of {plan.name} was not accepted", "nothing was downloaded")
    return True


def _show(plan: "Plan") -> None:
    if plan.ready:
        return console.info(f"on this machine already: {plan.path}")
    rows = [(part.role, part.address, _bytes(part), part.here or "") for part in plan.parts]
    console.table("", ["part", "from", "bytes", "already here"], rows)
    console.info(f"to download: {_total(plan)}")


def _bytes(part: "Part") -> str:
    if part.bytes is None:
        return "unknown"
    return f"{part.bytes}" if part.exact else f"about {part.bytes}"


def _total(plan: "Plan") -> str:
    known = sum(part.bytes or 0 for part in plan.parts)
    unsure = any(part.bytes is None or not part.exact for part in plan.parts)
    size = f"{known / 1e9:.2f} GB" if known >= 1e8 else f"{known / 1e6:.1f} MB"
    return f"about {size}" if unsure else size
