"""lcm pull: download a checkpoint and install it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console, settings
from lcm_cli.errors import UsageError

from ._options import Force, Json
from ._pull import download_size, make_plan, pull_planned

if TYPE_CHECKING:
    from lcm_cli.transfer.plan import Part, PullPlan
    from lcm_cli.transfer.pull import Pulled

EPILOG = """\
lcm pull sonar --set-default

lcm pull sonar-robust --dry-run

lcm pull sonar --accept-licence --quiet      # in a script

lcm pull org/model@v1.0                      # a branch, tag or commit of the Hugging Face Hub

lcm pull my-card.toml                        # your own weights, see checkpoints/sonar-hub.toml

lcm pull org/model --json                    # path, licence, commit, bytes
"""


def main(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A checkpoint, the path of a card, or ORG/REPO.")
    ],
    revision: Annotated[
        str,
        typer.Option(metavar="REV", help="A branch, tag or commit; also: ORG/REPO@REV."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be downloaded, and stop.")
    ] = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence without being asked.")
    ] = False,
    set_default: Annotated[
        bool, typer.Option("--set-default", help="Use this space when no other is given.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Download a checkpoint, verify it and install it.

    Prints only the path on standard output. Files already on this machine are not downloaded
    again.
    """
    plan = make_plan(name, revision, force)
    if set_default and plan.kind != "space":
        raise UsageError(f"--set-default: {name} is a {plan.kind}, not a space")
    if dry_run:
        return console.emit(_planned_facts(plan)) if json else _show(plan)
    pulled = pull_planned(plan, accept_licence, force, ask=not json)
    if set_default:
        space = plan.name if plan.revision == "main" else f"{plan.name}@{plan.revision}"
        config = settings.set_user_default("space", space)
        console.info(f"default space: {space} (in {config})")
    if json:
        console.emit(_pulled_facts(plan, pulled))
    else:
        console.out(str(pulled.path))


def _planned_facts(plan: "PullPlan") -> dict[str, Any]:
    parts = [
        {
            "role": part.role,
            "from": part.address,
            "bytes": part.bytes,
            "exact": part.exact,
            "here": str(part.here) if part.here else None,
        }
        for part in plan.parts
    ]
    return _facts(plan) | {"parts": parts}


def _pulled_facts(plan: "PullPlan", pulled: "Pulled") -> dict[str, Any]:
    from lcm_cli.transfer.plan import read_version

    revision, commit = read_version(plan)
    made_of = {"revision": revision or None, "commit": commit or None}
    return _facts(plan) | {"bytes_fetched": pulled.bytes, **made_of}


def _facts(plan: "PullPlan") -> dict[str, Any]:
    return {
        "name": plan.name,
        "kind": plan.kind,
        "path": str(plan.path),
        "already_present": plan.ready,
        "licence": plan.licence or None,
    }


def _show(plan: "PullPlan") -> None:
    if plan.ready:
        return console.info(f"already on this machine: {plan.path}")
    rows = [(part.role, part.address, _bytes(part), part.here or "") for part in plan.parts]
    console.table("", ["part", "from", "bytes", "already here"], rows)
    console.info(f"to download: {download_size(plan)}")


def _bytes(part: "Part") -> str:
    if part.bytes is None:
        return "unknown"
    return f"{part.bytes}" if part.exact else f"about {part.bytes}"
