"""Models in foreign layouts: fetched from the Hub, converted once, and recorded what from."""

import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.files import atomic_path, sha256, swap
from lcm_cli.hub import pins
from lcm_cli.hub.http import Notice
from lcm_cli.hub.layouts import CARD, needed
from lcm_cli.hub.snapshot import fetch, keep
from lcm_cli.paths import cache_dir
from lcm_cli.transfer.plan import ORIGIN, Part, PullPlan, origin


def pull_model(plan: PullPlan, force: bool, notice: Notice) -> Path:
    """Fetch and convert a model; returns its folder, at once if another process was quicker."""
    part = plan.parts[0]
    commit = part.remote.commit if part.remote else ""
    before = origin(plan.path, "model").get("model", {}).get("revision")
    if not force and before is not None and (plan.card is not None or before == commit):
        return plan.path
    source = _fetched(plan, part, notice)
    names = needed(plan.layout, [path.name for path in source.iterdir()], plan.name)
    found = {name: pins.of_file(source / name) for name in names if name != CARD}
    addresses = {f"{_pinned(plan, part)}/{name}": pin for name, pin in found.items()}
    for address, pin in addresses.items():
        if not force:
            pins.check(cache_dir(), address, pin)
    notice(f"{plan.name}: converting")
    made_of: dict[str, Any] = {"from": part.address.partition("@")[0]}
    if commit:
        made_of |= {"revision": commit, "asked": plan.revision}
    made_of["sha256"] = {name: pin.sha256 for name, pin in found.items()}
    _convert(plan, source, made_of)
    pins.record_pins(cache_dir(), addresses)
    if part.remote:
        keep(part.remote, plan.revision)
    return plan.path


def check_model(folder: Path) -> None:
    """Raise IntegrityError unless the weights in a folder are exactly those that its config wants.

    Only the headers of the files are read.
    """
    from lcm_cli.hub.locate import locate_model
    from lcm_cli.models.checkpoint import open_model

    open_model(locate_model(str(folder)))


def _fetched(plan: PullPlan, part: Part, notice: Notice) -> Path:
    if part.remote is None:
        if part.here is None:
            message = f"{part.address} is not on this machine and lcm is offline"
            raise NotFoundError(message, f"run {plan.command} without --offline")
        return part.here

    def choose(names: Sequence[str]) -> list[str]:
        return needed(plan.layout, names, plan.name)

    notice(f"{plan.name}: fetching {part.remote.repo} through huggingface_hub")
    return fetch(part.remote, choose, plan.command, notice)


def _pinned(plan: PullPlan, part: Part) -> str:
    """Return under which name the files are on record: a card's must never change."""
    if plan.card is not None or part.remote is None:
        return part.address
    return f"{part.remote.repo}@{part.remote.commit}"


def _convert(plan: PullPlan, source: Path, made_of: dict[str, Any]) -> None:
    place = plan.path
    for leftover in place.parent.glob(f".{place.name}.*.new"):  # of a pull that was killed
        shutil.rmtree(leftover)
    new = place.with_name(f".{place.name}.{os.getpid()}.new")
    new.mkdir()
    try:
        try:
            _write_model(source, new)
        except IntegrityError as error:
            message = error.message.replace(str(source), made_of["from"])
            raise IntegrityError(message, error.hint) from error
        _write_origin(new, plan, made_of)
        swap(new, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_model(source: Path, target: Path) -> None:
    """Write a foreign checkpoint in our layout; its tensors are mapped, never all in memory."""
    from lcm_cli.models.checkpoint import write
    from lcm_cli.transfer.converters.foreign import read_model

    write(*read_model(source), target)


def _write_origin(folder: Path, plan: PullPlan, made_of: dict[str, Any]) -> None:
    record = {
        "name": plan.name,
        "licence": plan.licence,
        "source": {"model": made_of, "converted": datetime.now(UTC).date().isoformat()},
        "sha256": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }
    with atomic_path(folder / ORIGIN) as path:
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
