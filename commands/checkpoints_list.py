"""lcm checkpoints list: the known checkpoints, and which of them are on this machine."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_cli import console

from ._options import Json

if TYPE_CHECKING:
    from lcm_cli.transfer.inventory import Checkpoint

EPILOG = """\
lcm checkpoints list

lcm checkpoints list --here --json

lcm checkpoints list --updates      # the only form that uses the network
"""


def main(
    here: Annotated[
        bool, typer.Option("--here", help="List only checkpoints on this machine.")
    ] = False,
    updates: Annotated[
        bool, typer.Option("--updates", help="Ask their sources for newer versions.")
    ] = False,
    json: Json = False,
) -> None:
    """List the checkpoints: kind, size, number format, last use, licence."""
    from lcm_cli.transfer.inventory import list_checkpoints

    found = [one for one in list_checkpoints() if one.path or not here]
    news = {one.name: _update(one) for one in found} if updates else {}
    if json:
        for one in found:
            console.emit(facts(one) | ({"update": news[one.name]} if updates else {}))
        return
    columns = ["name", "kind", "here", "size", "numbers", "last used", "licence"]
    columns += ["update"] * updates
    listed = [one for one in found if not _in_family(one)]
    rows = [_row(one) + ([news[one.name]] if updates else []) for one in listed]
    console.table("", columns, rows + [row + [""] * updates for row in _families(found)])


def facts(one: "Checkpoint") -> dict[str, Any]:
    """Return the JSON description of a checkpoint."""
    from lcm_cli.transfer.inventory import count_by_type

    return {
        "name": one.name,
        "kind": one.kind,
        "summary": one.summary,
        "where": one.where,
        "path": str(one.path) if one.path else None,
        "bytes": one.bytes,
        "numbers": count_by_type(one),
        "last_used": one.used or None,
        "licence": one.licence,
        "source": one.source or None,
        "revision": one.revision or None,
        "adapter": adapter_facts(one),
    }


def adapter_facts(one: "Checkpoint") -> dict[str, Any] | None:
    """Return the base, rank and other settings of an adapter; None for other checkpoints."""
    from lcm_cli.errors import LcmError
    from lcm_cli.hub.locate import read_adapter

    try:
        adapter = read_adapter(one.path) if one.path else None
    except LcmError:  # damaged: `lcm inspect` reports it
        return None
    return asdict(adapter.config) if adapter else None


def _in_family(one: "Checkpoint") -> bool:
    """Return whether an absent checkpoint is listed with its family."""
    return one.where == "absent" and one.card is not None and bool(one.card.family)


def _families(found: Sequence["Checkpoint"]) -> list[list[str]]:
    """Return one row for the absent checkpoints of each family."""
    absent: dict[str, list[Checkpoint]] = {}
    for one in filter(_in_family, found):
        absent.setdefault(one.card.family if one.card else "", []).append(one)
    rows = []
    for family, members in absent.items():
        licences = ", ".join(dict.fromkeys(one.licence for one in members))
        name = f"{family}-... ({len(members)})"
        rows.append([name, members[0].kind, "no", "", "", "", licences])
    return rows


def _row(one: "Checkpoint") -> list[str]:
    from lcm_cli.headers import main_type
    from lcm_cli.transfer.inventory import count_by_type

    here = {"absent": "no", "hub": "pulled"}.get(one.where, one.where)
    size = console.size(one.bytes) if one.path else ""
    return [one.name, one.kind, here, size, main_type(count_by_type(one)), one.used, one.licence]


def _update(one: "Checkpoint") -> str:
    from lcm_cli.errors import LcmError
    from lcm_cli.transfer.inventory import find_update

    try:
        return find_update(one, "lcm checkpoints list --updates")
    except LcmError as error:
        console.warn(f"{one.name}: {error.message}")
        return "unknown"
