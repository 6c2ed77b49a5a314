"""The checkpoints that lcm knows or has on this machine: list, verify, remove and update them."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.files import sha256
from lcm_cli.headers import count_numbers, read_entries
from lcm_cli.hub import cards, locate, pins
from lcm_cli.hub.http import Notice, locked, remote_size
from lcm_cli.hub.layouts import (
    OURS,
    SPACE_FILES,
    Layout,
    detect_layout,
    needed_files,
    read_json,
    read_licence,
)
from lcm_cli.hub.snapshot import describe_remote, hub_cache, is_commit
from lcm_cli.paths import cache_dir
from lcm_cli.progress import ignore
from lcm_cli.schema import nearest
from lcm_cli.transfer.plan import read_origin, record_of

Where = Literal["bundled", "pulled", "hub", "folder", "absent"]
Status = Literal["ok", "differs", "missing", "no record"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and its files if it is on this machine.

    `where` is "bundled" for one that comes with lcm, "pulled" for one in lcm's cache, "hub" for one
    in the cache of the Hub's client, "folder" for a folder of the user's, or "absent". `files` are
    keyed by their names in the record of digests. `used` is the day on which they were last read,
    according to the file system.
    """

    name: str
    kind: str
    where: Where
    licence: str
    summary: str = ""
    path: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)
    bytes: int = 0
    used: str = ""
    source: str = ""
    revision: str = ""
    card: cards.Card | None = None


@dataclass(frozen=True)
class Check:
    """The result of comparing one file with the record of its digest."""

    file: Path
    status: Status


def list_checkpoints() -> list[Checkpoint]:
    """Return every checkpoint that has a card or is on this machine, without using the network."""
    carded = {name: _describe_carded(card) for name, card in cards.cards().items()}
    pulled = [(kind, name) for kind in cards.PARTS for name in cards.list_pulled(kind)]
    kept = [_describe_pulled(kind, name) for kind, name in pulled]
    others = [one for one in (*kept, *_find_in_hub_cache()) if one.name not in carded]
    return [*carded.values(), *sorted(others, key=lambda one: one.name)]


def find_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint called `name`. Raises NotFoundError with the nearest names."""
    known = {one.name: one for one in list_checkpoints()}
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else "see: lcm checkpoints list"
        raise NotFoundError(f"there is no checkpoint called {name!r} here", hint)
    return known[name]


def find_any(source: str) -> Checkpoint:
    """Return the checkpoint called `source`, or else the one in that folder.

    Raises NotFoundError if there is none.
    """
    known, folder = list_checkpoints(), Path(source)
    if not folder.is_dir() or any(one.name == source for one in known):
        return find_checkpoint(source)
    folder = locate.checkpoint_in(folder)
    for one in known:
        if one.path and one.path.resolve() == folder.resolve():
            return one
    found = _describe_folder(source, detect_layout(folder), "folder", folder)
    recorded = {name: folder / Path(name).name for name in _recorded_digests(found)}
    return replace(found, files=recorded | found.files)  # missing files included


def verify(checkpoint: Checkpoint) -> Iterator[Check]:
    """Compare the sha256 of each file with the card or the record of the pull.

    Raises NotFoundError if the checkpoint is not on this machine.
    """
    recorded = _recorded_digests(checkpoint)
    for name, path in checkpoint.files.items():
        if not path.is_file():
            yield Check(path, "missing")
        elif not recorded.get(name):
            yield Check(path, "no record")
        else:
            yield Check(path, "ok" if sha256(path) == recorded[name] else "differs")


def count_by_type(checkpoint: Checkpoint) -> dict[str, int]:
    """Return how many numbers of each type the weights have, by safetensors' type names.

    Only headers are read. Files that are missing or damaged are skipped; `verify` reports those.
    """
    entries: dict[str, Any] = {}
    for path in checkpoint.files.values():
        if path.suffix == ".safetensors":
            with suppress(LcmError, OSError):
                entries |= read_entries(path)[2]  # encoder and decoder share no names
    return count_numbers(entries)


def remove(checkpoint: Checkpoint, notice: Notice = ignore) -> int:
    """Delete a pulled checkpoint and return the number of bytes freed.

    Its pins stay, so pulling it again must give the same files. Raises UsageError for a bundled
    checkpoint, NotFoundError for one that is not on this machine.
    """
    if checkpoint.where == "bundled":
        raise UsageError(f"{checkpoint.name} comes with lcm and cannot be removed")
    if checkpoint.path is None:
        raise NotFoundError(f"{checkpoint.name} is not on this machine", "nothing to remove")
    if checkpoint.where == "hub":
        return _remove_from_hub_cache(checkpoint.revision)
    place = checkpoint.path
    with locked(place.with_name(f".{place.name}.lock"), checkpoint.name, notice):
        gone = place.with_name(f".{place.name}.old")
        shutil.rmtree(gone, ignore_errors=True)
        place.rename(gone)  # atomic: a half-deleted checkpoint must not be found under its name
        shutil.rmtree(gone)
    return checkpoint.bytes


def find_update(checkpoint: Checkpoint, command: str) -> str:
    """Ask the checkpoint's sources for a newer version; return its description, "" if none.

    Raises as snapshot.describe_remote does.
    """
    if checkpoint.where == "hub":
        repo, revision = locate.split_repository(checkpoint.name)
        return _describe_move(repo, revision, checkpoint.revision, command)
    if checkpoint.where != "pulled" or checkpoint.path is None:
        return ""
    made_of = read_origin(checkpoint.path, checkpoint.kind)
    found = [_describe_change(part, command) for part in made_of.values() if isinstance(part, dict)]
    return "; ".join(dict.fromkeys(filter(None, found)))


def _describe_change(part: dict[str, Any], command: str) -> str:
    place = str(part.get("from", ""))
    if "revision" in part:
        return _describe_move(place, part.get("asked", "main"), part["revision"], command)
    size = remote_size(place) if "://" in place else None
    return f"{place} has {size} bytes now" if size not in (None, part.get("bytes")) else ""


def _describe_move(repo: str, revision: str, commit: str, command: str) -> str:
    if is_commit(revision):
        return ""
    now = describe_remote(repo, revision, command).commit
    return f"{repo}@{revision} is {now[:12]} now" if now != commit else ""


def _describe_carded(card: cards.Card) -> Checkpoint:
    source = ", ".join(dict.fromkeys(s.repo or s.url for s in card.source.values()))
    found = Checkpoint(
        card.name, card.kind, "absent", card.licence, card.summary, source=source, card=card
    )
    if card.files:
        path = cards.card_path(card.name)
        files = {role: path.parent / file.name for role, file in card.files.items()}
        return _with_sizes(replace(found, where="bundled", path=path, files=files))
    if card.name not in cards.list_pulled(card.kind):
        return found
    kept = _describe_pulled(card.kind, card.name)
    return replace(kept, summary=card.summary, source=source, card=card)


def _describe_pulled(kind: str, name: str) -> Checkpoint:
    """Describe a checkpoint in lcm's cache."""
    folder = cards.folder_of(kind, name)
    record: dict[str, Any] = {}
    with suppress(LcmError):  # damaged checkpoints are listed too; `verify` reports the damage
        record = read_json(folder / record_of(kind))
    made_of = [part for part in record.get("source", {}).values() if isinstance(part, dict)]
    names = SPACE_FILES.values() if kind == "space" else record.get("sha256", {})
    found = Checkpoint(
        *(str(record.get("name", name)), kind, "pulled", str(record.get("licence", ""))),
        path=folder,
        files={file: folder / file for file in names},
        source=", ".join(dict.fromkeys(str(part.get("from", "")) for part in made_of)),
        revision=next((str(p["revision"]) for p in made_of if "revision" in p), ""),
    )
    return _with_sizes(found)


def _find_in_hub_cache() -> Iterator[Checkpoint]:
    """Yield the checkpoints in lcm's own layout in the cache of the Hub's client."""
    for folder in sorted(hub_cache().glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        references = (path for path in (folder / "refs").rglob("*") if path.is_file())
        names = {path.read_text(encoding="utf-8"): path for path in references}
        for snapshot in (folder / "snapshots").glob("*"):
            ref = names.get(snapshot.name)
            revision = ref.relative_to(folder / "refs").as_posix() if ref else snapshot.name
            if ref is None and not pins.find_pin(
                cache_dir(), f"{repo}@{snapshot.name}/config.json"
            ):
                continue  # an incomplete pull, or another program's download
            with suppress(LcmError):
                yield _describe_snapshot(repo, revision, snapshot)


def _describe_snapshot(repo: str, revision: str, folder: Path) -> Checkpoint:
    layout = detect_layout(folder)
    if layout not in OURS:
        raise NotFoundError(f"{repo} is not in lcm's layout")
    name = repo if revision == "main" else f"{repo}@{revision}"
    found = _describe_folder(name, layout, "hub", folder)
    return replace(found, source=f"https://huggingface.co/{repo}", revision=folder.name)


def _describe_folder(name: str, layout: Layout, where: Where, folder: Path) -> Checkpoint:
    names = needed_files(layout, [path.name for path in folder.iterdir()], name)
    files = {file: folder / file for file in names}
    return _with_sizes(
        Checkpoint(name, layout, where, read_licence(folder), path=folder, files=files)
    )


def _with_sizes(found: Checkpoint) -> Checkpoint:
    states = [path.stat() for path in found.files.values() if path.is_file()]
    used = max((state.st_atime for state in states), default=0.0)
    day = datetime.fromtimestamp(used, UTC).date().isoformat() if states else ""
    return replace(found, bytes=sum(state.st_size for state in states), used=day)


def _recorded_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the recorded sha256 of each file, by its key in `files`."""
    if checkpoint.path is None:
        raise NotFoundError(
            f"{checkpoint.name} is not on this machine", f"run: lcm pull {checkpoint.name}"
        )
    if checkpoint.where == "bundled" and checkpoint.card:
        return {role: file.sha256 for role, file in checkpoint.card.files.items()}
    if checkpoint.where in ("pulled", "folder"):
        recorded = read_json(checkpoint.path / record_of(checkpoint.kind)).get("sha256")
        known: dict[str, str] = recorded if isinstance(recorded, dict) else {}
        return {SPACE_FILES.get(role, role): digest for role, digest in known.items()}
    address = f"{locate.split_repository(checkpoint.name)[0]}@{checkpoint.revision}"
    found = {name: pins.find_pin(cache_dir(), f"{address}/{name}") for name in checkpoint.files}
    return {name: pin.sha256 for name, pin in found.items() if pin}


def _remove_from_hub_cache(commit: str) -> int:
    from huggingface_hub import scan_cache_dir

    strategy = scan_cache_dir(hub_cache()).delete_revisions(commit)
    strategy.execute()
    return strategy.expected_freed_size
