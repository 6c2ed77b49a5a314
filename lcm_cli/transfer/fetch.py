"""Fetching of the parts of a planned checkpoint: from URLs, the Hub, or this machine.

Downloads stay until the checkpoint is installed, so a killed pull resumes where it stopped.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.hub import cards, locate, snapshot
from lcm_cli.hub.http import Notice, Wanted, download
from lcm_cli.hub.layouts import MODEL_CARD
from lcm_cli.hub.pins import Pin, check_pin, pin_file
from lcm_cli.paths import cache_dir
from lcm_cli.progress import StartJob
from lcm_cli.transfer.plan import Part, PullPlan


@dataclass(frozen=True)
class FetchedPart:
    """The source of one part on this machine: a file, or a folder in some layout.

    `origin` is the record of its source for the config, `pins` are those of its files by address,
    and `bytes` is the size of the download. `converted` is the sha256 of a part that is taken from
    another space and needs no conversion, else empty.
    """

    path: Path
    origin: Mapping[str, Any]
    pins: Mapping[str, Pin] = field(default_factory=dict)
    bytes: int = 0
    converted: str = ""


def fetch(
    plan: PullPlan, force: bool, progress: StartJob, notice: Notice
) -> dict[str, FetchedPart]:
    """Fetch the missing parts, compare them with their pins unless `force`, and return all by role.

    Raises IntegrityError for wrong bytes, NotFoundError for a missing part when offline, and what
    http.download and snapshot.fetch_snapshot raise.
    """
    return {part.role: _fetch_part(plan, part, force, progress, notice) for part in plan.parts}


def download_folder(plan: PullPlan) -> Path:
    """Return the folder of the files that a plan downloads from URLs."""
    return cache_dir() / "downloads" / plan.path.name


@contextmanager
def naming_source(plan: PullPlan, path: Path, address: str) -> Iterator[None]:
    """Replace `path` by its `address` in errors about the file at `path`.

    A bad download is deleted, so that the next pull fetches it again.
    """
    try:
        yield
    except IntegrityError as error:
        hint = error.hint
        if path.is_relative_to(download_folder(plan)):
            path.unlink()
        elif path.is_file():
            hint = f"{path} was not downloaded by lcm; to download it again: {plan.command} --force"
        raise IntegrityError(error.message.replace(str(path), address), hint) from error


def _fetch_part(
    plan: PullPlan, part: Part, force: bool, progress: StartJob, notice: Notice
) -> FetchedPart:
    if plan.kind == "space" and part.here and part.here.is_relative_to(plan.path.parent):
        config = locate.read_space(part.here.parent).config  # another pulled space's
        made_of = config["source"][part.role]
        return FetchedPart(part.here, made_of, converted=config["sha256"][part.role])
    if "://" in part.address:
        fetched = _fetch_url(plan, part, progress, notice)
    else:
        fetched = _fetch_repository(plan, part, notice)
    if not force:
        with naming_source(plan, fetched.path, part.address):
            for address, pin in fetched.pins.items():
                check_pin(cache_dir(), address, pin)
    return fetched


def _fetch_url(plan: PullPlan, part: Part, progress: StartJob, notice: Notice) -> FetchedPart:
    if part.here:
        notice(f"{part.role}: using {part.here}, which fairseq2 downloaded")
        path, pin = part.here, pin_file(part.here)
    else:
        wanted = Wanted(part.address, part.source.bytes, part.source.sha256, plan.command)
        digest = hashlib.sha256(part.address.encode()).hexdigest()[:12]
        path = download_folder(plan) / f"{part.role}-{digest}{Path(wanted.name).suffix}"
        with progress(f"{part.role} ({wanted.name})", part.bytes) as advance:
            got = download(wanted, path, advance=advance, notice=notice)
        pin = Pin(got.bytes, got.sha256, got.etag)
    made_of = {"from": part.address, "bytes": pin.bytes, "sha256": pin.sha256}
    return FetchedPart(path, made_of, {part.address: pin}, 0 if part.here else pin.bytes)


def _fetch_repository(plan: PullPlan, part: Part, notice: Notice) -> FetchedPart:
    folder, made_of = part.here, {"from": part.source.repo}
    if part.remote is not None:
        label = part.role if part.role in cards.ROLES else plan.name
        notice(f"{label}: fetching {part.remote.repo} through huggingface_hub")
        pick = partial(plan.choose_files, part.role)
        folder = snapshot.fetch_snapshot(part.remote, pick, plan.command, notice)
        made_of |= {"revision": part.remote.commit, "asked": part.source.revision}
        if part.role in cards.ROLES:  # the other parts may still fail: this one is complete
            snapshot.record_revision(part.remote, part.source.revision)
    if folder is None:
        message = f"{part.address} is not on this machine and lcm is offline"
        raise NotFoundError(message, f"run {plan.command} without --offline")
    found = {name: pin_file(folder / name) for name in _names(plan, part, folder)}
    digests = {name: pin.sha256 for name, pin in found.items()}
    addresses = {f"{part.address}/{name}": pin for name, pin in found.items()}
    size = (part.bytes or 0) if part.remote else 0
    return FetchedPart(folder, {**made_of, "sha256": digests}, addresses, size)


def _names(plan: PullPlan, part: Part, folder: Path) -> Sequence[str]:
    names = plan.choose_files(part.role, [path.name for path in folder.iterdir()])
    # A README may change without harm to what is made from the other files.
    return names if plan.in_place else [name for name in names if name != MODEL_CARD]
