"""The plan of a pull: what is missing, where it is, how large it is and under which licence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcm_cli.hub import cards
from lcm_cli.hub.cards import Card, DownloadSource
from lcm_cli.hub.layouts import Layout, choose_weights, needed_files, read_json
from lcm_cli.hub.snapshot import Remote

PORT_TOKENIZER = "sentencepiece.bpe.model"
ORIGIN = "origin.json"  # beside a converted model: what it was made from
_PORT_SETTINGS = ("config.json", "tokenizer_config.json", "added_tokens.json")
_UNKNOWN = ("", cards.UNKNOWN_LICENCE)


@dataclass(frozen=True)
class Part:
    """One part of a checkpoint and its source.

    `address` is a URL, a local folder, ORG/REPO for a card's repository, or ORG/REPO@COMMIT for one
    without a card. `bytes` is the size of the download, None if unknown, and `exact` is false for
    an estimate. `here` is a local file or folder that makes a download unnecessary, `remote` the
    repository on the Hub.
    """

    role: str
    address: str
    source: DownloadSource
    bytes: int | None = 0
    exact: bool = True
    here: Path | None = None
    remote: Remote | None = None


@dataclass(frozen=True)
class PullPlan:
    """The steps to pull one checkpoint, none if it is `ready`: already on this machine.

    `path` is where the checkpoint is or will be. An `in_place` one is a repository in lcm's own
    layout, which stays in the cache of the Hub's client. `notes` are warnings for the user, such as
    a tag that has moved.
    """

    name: str
    kind: str
    summary: str
    licence: str
    licence_note: str
    path: Path
    command: str
    ready: bool = False
    parts: tuple[Part, ...] = ()
    card: Card | None = field(default=None, repr=False)
    layout: Layout = "space"
    in_place: bool = False
    revision: str = "main"
    notes: tuple[str, ...] = ()

    @property
    def must_be_accepted(self) -> bool:
        """Whether the user has to accept the licence first."""
        return cards.must_be_accepted(self.licence)

    @property
    def licence_line(self) -> str:
        """The licence with its note, for people."""
        licence = "unknown licence" if self.licence in _UNKNOWN else self.licence
        return f"{licence} ({self.licence_note})" if self.licence_note else licence

    def choose_files(self, role: str, names: Sequence[str]) -> list[str]:
        """Pick the files that one part needs. Raises NotFoundError if some are missing."""
        if role in cards.ROLES:
            return choose_port_files(role, names)
        return needed_files(self.layout, names, self.name)


def choose_port_files(role: str, names: Sequence[str]) -> list[str]:
    """Pick the files of an M2M-100 repository that one part of a space needs."""
    if role == "tokenizer":
        return [name for name in names if name == PORT_TOKENIZER]
    weights = choose_weights(names)
    return [name for name in _PORT_SETTINGS if name in names] + weights if weights else []


def record_of(kind: str) -> str:
    """Return the name of the file in which a pulled checkpoint records sources and digests."""
    return ORIGIN if kind == "model" else "config.json"


def read_origin(folder: Path, kind: str) -> dict[str, Any]:
    """Return the recorded sources of a pulled checkpoint, by part; {} if there is no record."""
    found = read_json(folder / record_of(kind)).get("source", {})
    return found if isinstance(found, dict) else {}


def read_version(plan: PullPlan) -> tuple[str, str]:
    """Return the revision that was requested for a pulled checkpoint, and its commit.

    Both are empty unless it comes from exactly one repository.
    """
    if plan.in_place:
        return plan.revision, plan.path.name  # the client names its snapshots by commit
    parts = read_origin(plan.path, plan.kind).values() if plan.path.is_dir() else ()
    made_of = [part for part in parts if isinstance(part, dict)]
    found = {(part.get("asked", ""), part.get("revision", "")) for part in made_of}
    return found.pop() if len(found) == 1 else ("", "")
