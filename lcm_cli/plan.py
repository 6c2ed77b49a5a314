"""What pulling a checkpoint would mean: what is missing, where it is, how big, which licence."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lcm_cli import hub
from lcm_cli.download import offline, remote_size
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub import Card, Source
from lcm_cli.snapshot import Remote, describe, fetch, local_snapshot

PORT_TOKENIZER = "sentencepiece.bpe.model"
_PORT_SETTINGS = ("config.json", "tokenizer_config.json", "added_tokens.json")


@dataclass(frozen=True)
class Part:
    """One part of a space and where it will come from.

    `bytes`: what has to be transferred, None if unknown; `exact` is false for an estimate. `here`:
    a file or folder that makes a transfer unnecessary. `remote`: the repository it is in, if any.
    """

    role: str
    address: str
    bytes: int | None = 0
    exact: bool = True
    here: Path | None = None
    remote: Remote | None = None


@dataclass(frozen=True)
class Plan:
    """What pulling one checkpoint means. `ready`: it is on this machine, at `path`, already."""

    name: str
    summary: str
    licence: str
    licence_note: str
    path: Path
    command: str
    ready: bool = False
    parts: tuple[Part, ...] = ()
    card: Card | None = field(default=None, repr=False)

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return hub.is_non_commercial(self.licence)


def make_plan(source: str, *, force: bool = False) -> Plan:
    """Find out what pulling `source` would do: a card's name, a card's path, or ORG/REPO.

    Asks servers for sizes where the network may be used; fetches no weights. `force` plans to
    fetch everything again. Raises NotFoundError, UsageError for a folder or a name that is taken.
    """
    command = f"lcm pull {source}"
    if source not in hub.cards() and Path(source).is_dir():
        found = hub.locate_space(source)
        raise UsageError(f"{source} is here already (space {found.name})", f"use --space {source}")
    if hub.is_repository(source):
        return _plan_repository(source, command, force)
    card = hub.card(source)
    path = hub.space_folder(card.name)
    plan = Plan(card.name, card.summary, card.licence, card.licence_note, path, command, card=card)
    if card.files:
        return replace(plan, path=hub.card_path(source), ready=True)
    _check_card(source, card)
    if not force and card.name in hub.pulled():
        _check_origin(plan, card)
        return replace(plan, ready=True)
    return replace(plan, parts=tuple(_plan_part(card, role, command, force) for role in hub.ROLES))


def address(source: Source, role: str) -> str:
    """Return where a part comes from: a repository, or a URL (sonar-space's own goes first)."""
    from lcm_cli.space import official  # lazily, like everything that brings torch

    asset = official.asset(source.asset) if source.asset else None
    if asset is None:
        return source.repo or source.url
    return asset.tokenizer_url if role == "tokenizer" else asset.url


def choose_port(role: str, names: Sequence[str]) -> list[str]:
    """Pick the files of an M2M-100 repository that one part of a space needs."""
    if role == "tokenizer":
        return [name for name in names if name == PORT_TOKENIZER]
    for kind in (
        r"model(-.*)?\.safetensors(\.index\.json)?",
        r"pytorch_model(-.*)?\.bin(\.index\.json)?",
    ):
        weights = [name for name in names if re.fullmatch(kind, name)]
        if weights:
            return [name for name in _PORT_SETTINGS if name in names] + weights
    return []


def _check_card(source: str, card: Card) -> None:
    """Refuse an incomplete card, and one that would take the place of a card of lcm's own."""
    if source.endswith(".toml") and card.name in hub.cards() and hub.card(card.name) != card:
        message = f"{source}: {card.name!r} is the name of a checkpoint that lcm knows"
        raise UsageError(message, "give it another name")
    if missing := set(hub.ROLES) - set(card.source):
        message = f"the card {card.name} does not say where to get: {', '.join(sorted(missing))}"
        raise IntegrityError(message, "add [source.ROLE] with url or repo")


def _check_origin(plan: Plan, card: Card) -> None:
    made_of = hub.read_space(plan.path).config.get("source", {})
    for role, source in card.source.items():
        before = made_of.get(role, {}).get("from")
        if before not in (address(source, role), source.url):
            message = f"{plan.path} was made from {before}, not from {address(source, role)}"
            raise UsageError(message, f"replace it: {plan.command} --force")


def _plan_part(card: Card, role: str, command: str, force: bool) -> Part:
    from lcm_cli.space import official

    source = card.source[role]
    part = Part(role, address(source, role))
    if not force and (made := _converted(card, role, part.address)):
        return replace(part, here=made)
    if source.repo:
        return _plan_port(part, source, command)
    if not force and (cached := official.cached(part.address)):
        return replace(part, here=cached)
    size = source.bytes or remote_size(part.address)
    return replace(part, bytes=size or source.about_bytes, exact=size is not None)


def _plan_port(part: Part, source: Source, command: str) -> Part:
    if Path(source.repo).is_dir():
        return replace(part, here=Path(source.repo))
    if offline():
        first = PORT_TOKENIZER if part.role == "tokenizer" else "config.json"
        return replace(part, here=local_snapshot(source.repo, source.revision, [first]), bytes=None)
    remote = describe(source.repo, source.revision, command)
    names = choose_port(part.role, [file.name for file in remote.files])
    return replace(part, remote=remote, bytes=_missing(remote, names))


def _missing(remote: Remote, names: Sequence[str]) -> int:
    """Return how many bytes of the named files are not in huggingface_hub's cache yet."""
    wanted = (file for file in remote.files if file.name in names)
    return sum(
        file.bytes or 0
        for file in wanted
        if local_snapshot(remote.repo, remote.commit, [file.name]) is None
    )


def _converted(card: Card, role: str, origin: str) -> Path | None:
    """Find a part in another space that came from the same source, as two of `sonar-robust` do."""
    known = card.source[role].sha256
    for name in hub.pulled():
        with suppress(LcmError):  # a damaged one is no reason to stop
            other = hub.read_space(hub.space_folder(name))
            made_of = other.config.get("source", {}).get(role, {})
            same = made_of.get("from") == origin and made_of.get("sha256") == (
                known or made_of.get("sha256")
            )
            if same and other.config.get(role) == getattr(card, role, None):
                path: Path = getattr(other, role)
                return path
    return None


def _plan_repository(repo: str, command: str, force: bool) -> Plan:
    """Plan a space that lies on the Hub in our own layout; it is used where the Hub's cache is."""
    names = ["config.json", *hub.FILES.values()]
    plan = Plan(repo, f"a space from https://huggingface.co/{repo}", "", "", Path(), command)
    if not force and (folder := local_snapshot(repo, "main", names)):
        licence = hub.read_space(folder).licence
        return replace(plan, path=folder, licence=licence, ready=True)
    remote = describe(repo, "main", command)
    if missing := set(names) - {file.name for file in remote.files}:
        raise NotFoundError(
            f"{repo} is not a space in lcm's layout: it has no {', '.join(sorted(missing))}",
            "weights in the M2M-100 layout need a card: see lcm pull sonar-hub",
        )
    folder = fetch(remote, "main", lambda _: ["config.json"], command)
    licence = hub.read_config(folder).get("licence") or remote.licence
    size = _missing(remote, names)
    part = Part("space", f"{repo}@{remote.commit}", size, remote=remote)
    return replace(plan, path=folder, licence=licence, parts=(part,))
