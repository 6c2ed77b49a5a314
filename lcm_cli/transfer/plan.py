"""What pulling a checkpoint would mean: what is missing, where it is, how big, which licence."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub import cards, locate
from lcm_cli.hub.cards import Card, Origin
from lcm_cli.hub.http import offline, remote_size
from lcm_cli.hub.layouts import (
    OFFICIAL_CARD,
    OURS,
    Layout,
    layout_of,
    licence_in,
    needed,
    read_json,
    weight_files,
)
from lcm_cli.hub.snapshot import (
    Remote,
    describe_remote,
    fetch,
    is_commit,
    local_commit,
    local_snapshot,
    repository_folder,
)

PORT_TOKENIZER = "sentencepiece.bpe.model"
ORIGIN = "origin.json"  # beside a converted model: what it was made from
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
class PullPlan:
    """What pulling one checkpoint means. `ready`: it is on this machine, at `path`, already.

    `path` is where it will be; one of the Hub in our own layout stays in the Hub's cache. `notes`:
    what a person should hear about it, such as a tag that has moved.
    """

    name: str
    summary: str
    licence: str
    licence_note: str
    path: Path
    command: str
    ready: bool = False
    parts: tuple[Part, ...] = ()
    card: Card | None = field(default=None, repr=False)
    kind: str = "space"
    layout: Layout = "space"
    revision: str = "main"
    notes: tuple[str, ...] = ()

    @property
    def must_be_accepted(self) -> bool:
        """Whether the licence is one that people are asked about."""
        return cards.must_be_accepted(self.licence)


def make_plan(source: str, *, revision: str = "", force: bool = False) -> PullPlan:
    """Find out what pulling `source` would do: a card's name or path, ORG/REPO, or ORG/REPO@REV.

    `revision`: a branch, tag or commit instead of the card's own. Asks servers for sizes where the
    network may be used; fetches no weights. `force` plans to fetch everything again. Raises
    NotFoundError, UsageError for a folder or a name that is taken.
    """
    command = f"lcm pull {source}" + f" --revision {revision}" * bool(revision)
    if source and source not in cards.cards() and Path(source).is_dir():
        layout = layout_of(Path(source))
        option = "--space" if layout == "space" else "--model"
        raise UsageError(f"{source} is here already", f"use it: {option} {source}")
    if locate.is_repository(source):
        repo, named = locate.repository(source)
        return _plan_repository(repo, revision or named, command, force)
    card = _at(cards.card(source), revision)
    place: Callable[[str], Path] = (
        cards.space_folder if card.kind == "space" else cards.model_folder
    )
    plan = PullPlan(
        *(card.name, card.summary, card.licence, card.licence_note, place(card.name), command),
        card=card,
        kind=card.kind,
    )
    if card.files:
        return replace(plan, path=cards.card_path(source), ready=True)
    _check_card(source, card)
    if not force and card.name in cards.pulled(card.kind):
        _check_origin(plan, card)
        return replace(plan, ready=True)
    if card.kind == "model":
        return _plan_model(plan, card.source["model"])
    return replace(
        plan, parts=tuple(_plan_part(card, role, command, force) for role in cards.ROLES)
    )


def _at(card: Card, revision: str) -> Card:
    """Return a card whose one repository is at another revision."""
    if not revision:
        return card
    repos = {source.repo for source in card.source.values()}
    if len(repos) != 1 or "" in repos:
        message = f"--revision: {card.name} does not come from one repository of the Hub"
        raise UsageError(message, f"pull it as it is: lcm pull {card.name}")
    sources = {role: replace(one, revision=revision) for role, one in card.source.items()}
    return replace(card, source=sources)


def address(source: Origin, role: str) -> str:
    """Return where a part comes from: a repository, or a URL (sonar-space's own goes first)."""
    from lcm_cli.space import sonar_package  # lazily, like everything that brings torch

    asset = sonar_package.asset(source.asset) if source.asset else None
    if asset is None:
        return source.repo or source.url
    return asset.tokenizer_url if role == "tokenizer" else asset.url


def choose_port(role: str, names: Sequence[str]) -> list[str]:
    """Pick the files of an M2M-100 repository that one part of a space needs."""
    if role == "tokenizer":
        return [name for name in names if name == PORT_TOKENIZER]
    weights = weight_files(names)
    return [name for name in _PORT_SETTINGS if name in names] + weights if weights else []


def _check_card(source: str, card: Card) -> None:
    """Refuse an incomplete card, and one that would take the place of a card of lcm's own."""
    known = cards.cards().get(card.name)
    if source.endswith(".toml") and known and cards.card(source) != known:
        message = f"{source}: {card.name!r} is the name of a checkpoint that lcm knows"
        raise UsageError(message, "give it another name")
    if missing := set(card.parts) - set(card.source):
        message = f"the card {card.name} does not say where to get: {', '.join(sorted(missing))}"
        raise IntegrityError(message, "add [source.ROLE] with url or repo")


def _check_origin(plan: PullPlan, card: Card) -> None:
    made_of = origin(plan.path, card.kind)
    for role, source in card.source.items():
        before = made_of.get(role, {}).get("from")
        if before not in (address(source, role), source.url):
            message = f"{plan.path} was made from {before}, not from {address(source, role)}"
            raise UsageError(message, f"replace it: {plan.command} --force")
        asked, got = source.revision, made_of[role].get("asked", "main")
        if source.repo and asked not in (got, made_of[role].get("revision")):
            message = f"{plan.path} was made from {before} at {got}, not at {asked}"
            raise UsageError(message, f"replace it: {plan.command} --force")


def origin(folder: Path, kind: str) -> dict[str, Any]:
    """Return what a pulled checkpoint was made from, by part; empty if that is not on record."""
    name = "config.json" if kind == "space" else ORIGIN
    found = read_json(folder / name).get("source", {})
    return found if isinstance(found, dict) else {}


def _plan_part(card: Card, role: str, command: str, force: bool) -> Part:
    from lcm_cli.space import sonar_package

    source = card.source[role]
    part = Part(role, address(source, role))
    if not force and (made := _converted(card, role, part.address)):
        return replace(part, here=made)
    if source.repo:
        return _plan_port(part, source, command)
    if not force and (cached := sonar_package.cached(part.address)):
        return replace(part, here=cached)
    size = source.bytes or remote_size(part.address)
    return replace(part, bytes=size or source.about_bytes, exact=size is not None)


def _plan_port(part: Part, source: Origin, command: str) -> Part:
    if Path(source.repo).is_dir():
        return replace(part, here=Path(source.repo))
    if offline():
        first = PORT_TOKENIZER if part.role == "tokenizer" else "config.json"
        return replace(part, here=local_snapshot(source.repo, source.revision, [first]), bytes=None)
    remote = describe_remote(source.repo, source.revision, command)
    names = choose_port(part.role, [file.name for file in remote.files])
    return replace(part, remote=remote, bytes=_missing(remote, names))


def _missing(remote: Remote, names: Sequence[str]) -> int:
    """Return how many bytes of the named files are not in huggingface_hub's cache yet."""
    blobs = repository_folder(remote.repo) / "blobs"
    wanted = (file for file in remote.files if file.name in names)
    return sum(
        file.bytes or 0
        for file in wanted
        if not (blobs / file.etag).is_file()
        and local_snapshot(remote.repo, remote.commit, [file.name]) is None
    )


def _converted(card: Card, role: str, origin: str) -> Path | None:
    """Find a part in another space that came from the same source, as two of `sonar-robust` do."""
    known = card.source[role].sha256
    for name in cards.pulled():
        with suppress(LcmError):  # a damaged one is no reason to stop
            other = locate.read_space(cards.space_folder(name))
            made_of = other.config.get("source", {}).get(role, {})
            same = made_of.get("from") == origin and made_of.get("sha256") == (
                known or made_of.get("sha256")
            )
            if same and other.config.get(role) == getattr(card, role, None):
                path: Path = getattr(other, role)
                return path
    return None


def _plan_model(plan: PullPlan, source: Origin) -> PullPlan:
    """Plan a model that is one repository in a foreign layout, to be converted."""
    part = Part("model", source.repo)
    if Path(source.repo).is_dir():
        layout = layout_of(Path(source.repo))
        return replace(plan, layout=layout, parts=(replace(part, here=Path(source.repo)),))
    if offline():
        here = local_snapshot(source.repo, source.revision, ["config.json"])
        layout = layout_of(here) if here else "sonar-llm"
        return replace(plan, layout=layout, parts=(replace(part, here=here, bytes=None),))
    remote = describe_remote(source.repo, source.revision, plan.command)
    layout, names = _look(remote, plan.command)
    part = replace(part, remote=remote, bytes=_missing(remote, names))
    if plan.licence == cards.UNKNOWN_LICENCE and remote.licence:
        note = "as its repository says"
        plan = replace(plan, licence=remote.licence, licence_note=note)
    return replace(plan, layout=layout, parts=(part,), revision=source.revision)


def _look(remote: Remote, command: str) -> tuple[Layout, list[str]]:
    """Return the layout of a repository and the files to fetch, after a look at its config."""
    names = [file.name for file in remote.files]
    settings = [name for name in ("config.json", OFFICIAL_CARD) if name in names]
    try:
        layout = layout_of(fetch(remote, lambda _: settings, command))
    except NotFoundError as error:
        raise NotFoundError(
            f"{remote.repo} holds no checkpoint that lcm can read", error.hint
        ) from error
    if layout == "m2m-100":
        raise NotFoundError(
            f"{remote.repo} is not a space in lcm's layout but in that of M2M-100",
            "it needs a card that names encoder, decoder and tokenizer: see lcm pull sonar-hub",
        )
    return layout, needed(layout, names, remote.repo)


def _plan_repository(repo: str, revision: str, command: str, force: bool) -> PullPlan:
    """Plan a checkpoint from the Hub: in our own layout, or one that can be converted."""
    plan = PullPlan(repo, "", "", "", Path(), command, revision=revision)
    if offline() or is_commit(revision):
        if (here := _here(plan)) and not (force and not offline()):
            return here
        if offline():
            message = f"{repo}@{revision} is not on this machine and lcm is offline"
            raise NotFoundError(message, f"run {command} without --offline and HF_HUB_OFFLINE")
    remote = describe_remote(repo, revision, command)
    notes = _moved(repo, revision, remote.commit)
    here = None if force or notes else _here(plan)
    return here or replace(_plan_remote(plan, remote), notes=notes)


def _plan_remote(plan: PullPlan, remote: Remote) -> PullPlan:
    layout, names = _look(remote, plan.command)
    folder = repository_folder(remote.repo) / "snapshots" / remote.commit
    address = f"{remote.repo}@{remote.commit}"
    part = Part(_kind(layout), address, _missing(remote, names), remote=remote)
    licence = read_json(folder / "config.json").get("licence") or remote.licence
    if layout not in OURS:
        folder = cards.model_folder(remote.repo)
    return replace(_found(plan, layout, folder, licence), parts=(part,))


def _found(plan: PullPlan, layout: Layout, folder: Path, licence: str) -> PullPlan:
    """Return the plan of a repository of which it is known what it holds."""
    kind = _kind(layout)
    summary = f"a {kind} from https://huggingface.co/{plan.name}"
    return replace(plan, kind=kind, layout=layout, path=folder, licence=licence, summary=summary)


def _kind(layout: Layout) -> str:
    return "space" if layout == "space" else "model"


def _moved(repo: str, revision: str, commit: str) -> tuple[str, ...]:
    before = local_commit(repo, revision)
    if before in ("", commit):
        return ()
    return (f"{repo}@{revision} has moved: it was {before[:12]} and is {commit[:12]} now",)


def _here(plan: PullPlan) -> PullPlan | None:
    """Return the plan of a repository that is here, whole, at the plan's revision; or None."""
    commit = local_commit(plan.name, plan.revision)
    if not commit:
        return None
    converted = cards.model_folder(plan.name)
    if origin(converted, "model").get("model", {}).get("revision") == commit:
        return replace(_found(plan, "model", converted, licence_in(converted)), ready=True)
    folder = local_snapshot(plan.name, commit, ["config.json"])
    layout = layout_of(folder) if folder else None
    if folder is None or layout not in OURS:
        return None
    try:
        names = needed(layout, [path.name for path in folder.iterdir()], plan.name)
    except NotFoundError:  # a pull that was killed
        return None
    if local_snapshot(plan.name, commit, names) is None:
        return None
    return replace(_found(plan, layout, folder, licence_in(folder)), ready=True)
