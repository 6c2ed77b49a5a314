"""Resolution of checkpoint names to their sources, and the plan of a pull from each.

This is the one place that decides what a name stands for: a bundled checkpoint, a card whose files
have to be pulled, or a repository of the Hugging Face Hub.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub import cards, locate
from lcm_cli.hub.cards import Card, DownloadSource
from lcm_cli.hub.http import offline, remote_size
from lcm_cli.hub.layouts import (
    OFFICIAL_CARD,
    OURS,
    Layout,
    detect_layout,
    needed_files,
    read_json,
    read_licence,
)
from lcm_cli.hub.snapshot import (
    Remote,
    describe_remote,
    fetch_snapshot,
    is_commit,
    local_commit,
    local_snapshot,
    repository_folder,
)
from lcm_cli.transfer.plan import PORT_TOKENIZER, Part, PullPlan, choose_port_files, read_origin


def resolve(name: str, *, revision: str = "") -> "Bundled | Carded | HubRepo":
    """Return the source of a checkpoint, by a card's name or path, ORG/REPO or ORG/REPO@REV.

    `revision` is a branch, tag or commit instead of the card's own. Raises NotFoundError for an
    unknown name, UsageError for a folder or a name that is taken, IntegrityError for a card that
    is malformed or incomplete.
    """
    command = f"lcm pull {name}" + f" --revision {revision}" * bool(revision)
    if name and name not in cards.cards() and Path(name).is_dir():
        option = "--space" if detect_layout(Path(name)) == "space" else "--model"
        raise UsageError(f"{name} is already on this machine", f"use it: {option} {name}")
    if locate.is_repository(name):
        repo, named = locate.split_repository(name)
        return HubRepo(repo, revision or named, command)
    card = _at_revision(cards.card(name), revision)
    if card.files:
        return Bundled(card, cards.card_path(name), command)
    _check_card(name, card)
    return Carded(card, command)


@dataclass(frozen=True)
class Bundled:
    """A checkpoint that comes with lcm."""

    card: Card
    path: Path
    command: str

    def plan(self, *, force: bool = False) -> PullPlan:
        """Return a plan with nothing to do."""
        return replace(_plan_card(self.card, self.path, self.command), ready=True)


@dataclass(frozen=True)
class Carded:
    """A checkpoint with a card, whose parts have to be fetched and converted once."""

    card: Card
    command: str

    def plan(self, *, force: bool = False) -> PullPlan:
        """Return a plan to fetch what is missing, or everything with `force`. Fetches no weights.

        Raises UsageError if the checkpoint was pulled from other sources than its card names.
        """
        card = self.card
        plan = _plan_card(card, cards.folder_of(card.kind, card.name), self.command)
        if not force and card.name in cards.list_pulled(card.kind):
            _check_origin(plan, card)
            return replace(plan, ready=True)
        if card.kind == "model":
            return _plan_model(plan, card.source["model"])
        parts = (_plan_part(card, role, self.command, force) for role in card.parts)
        return replace(plan, parts=tuple(parts))


@dataclass(frozen=True)
class HubRepo:
    """A repository of the Hub at one revision, in lcm's own layout or in one that is converted."""

    repo: str
    revision: str
    command: str

    def plan(self, *, force: bool = False) -> PullPlan:
        """Return a plan to fetch what is missing, or everything with `force`. Fetches no weights.

        Raises as snapshot.describe_remote does.
        """
        repo, revision = self.repo, self.revision
        if (offline() or is_commit(revision)) and (offline() or not force):
            if here := self._plan_local():
                return here
            if offline():
                message = f"{repo}@{revision} is not on this machine and lcm is offline"
                hint = f"run {self.command} without --offline and HF_HUB_OFFLINE"
                raise NotFoundError(message, hint)
        remote = describe_remote(repo, revision, self.command)
        notes = _moved(repo, revision, remote.commit)
        here = None if force or notes else self._plan_local()
        return here or replace(self._plan_remote(remote), notes=notes)

    def _plan_remote(self, remote: Remote) -> PullPlan:
        layout, names = _inspect(remote, self.command)
        folder = repository_folder(remote.repo) / "snapshots" / remote.commit
        licence = read_json(folder / "config.json").get("licence") or remote.licence
        source = DownloadSource(repo=self.repo, revision=self.revision)
        address = f"{self.repo}@{remote.commit}"
        part = Part(_kind(layout), address, source, _missing(remote, names), remote=remote)
        if layout not in OURS:
            folder = cards.model_folder(remote.repo)
        return replace(self._plan(layout, folder, licence), parts=(part,))

    def _plan_local(self) -> PullPlan | None:
        """Return the plan of a repository that is complete on this machine; else None."""
        commit = local_commit(self.repo, self.revision)
        if not commit:
            return None
        converted = cards.model_folder(self.repo)
        if read_origin(converted, "model").get("model", {}).get("revision") == commit:
            plan = self._plan("model", converted, read_licence(converted))
            return replace(plan, in_place=False, ready=True)
        folder = local_snapshot(self.repo, commit, ["config.json"])
        layout = detect_layout(folder) if folder else None
        if folder is None or layout not in OURS:
            return None
        try:
            names = needed_files(layout, [path.name for path in folder.iterdir()], self.repo)
        except NotFoundError:  # a pull that was killed
            return None
        if local_snapshot(self.repo, commit, names) is None:
            return None
        return replace(self._plan(layout, folder, read_licence(folder)), ready=True)

    def _plan(self, layout: Layout, folder: Path, licence: str) -> PullPlan:
        kind = _kind(layout)
        what = "speech encoder" if kind == "speech" else kind
        summary = f"a {what} from https://huggingface.co/{self.repo}"
        return PullPlan(
            *(self.repo, kind, summary, licence, "", folder, self.command),
            layout=layout,
            in_place=layout in OURS,
            revision=self.revision,
        )


def _at_revision(card: Card, revision: str) -> Card:
    """Return `card` with its only repository at another revision."""
    if not revision:
        return card
    repos = {source.repo for source in card.source.values()}
    if len(repos) != 1 or "" in repos:
        message = f"--revision: {card.name} does not come from one repository of the Hub"
        raise UsageError(message, f"leave it out: lcm pull {card.name}")
    sources = {role: replace(one, revision=revision) for role, one in card.source.items()}
    return replace(card, source=sources)


def _check_card(name: str, card: Card) -> None:
    """Refuse an incomplete card, and one that would replace a bundled card."""
    known = cards.cards().get(card.name)
    if name.endswith(".toml") and known and cards.card(name) != known:
        message = f"{name}: {card.name!r} is the name of a checkpoint that comes with lcm"
        raise UsageError(message, "give it another name")
    if missing := set(card.parts) - set(card.source):
        message = f"the card {card.name} does not say where to get: {', '.join(sorted(missing))}"
        raise IntegrityError(message, "add [source.ROLE] with url or repo")
    if card.kind == "speech" and card.source["speech"].repo:
        message = f"the card {card.name} gets a speech encoder from a repository"
        hint = "give the url of a file in SONAR's layout; pull ORG/REPO in lcm's layout by its name"
        raise IntegrityError(message, hint)


def _plan_card(card: Card, path: Path, command: str) -> PullPlan:
    about = (card.name, card.kind, card.summary, card.licence, card.licence_note)
    return PullPlan(*about, path, command, card=card)


def _check_origin(plan: PullPlan, card: Card) -> None:
    made_of = read_origin(plan.path, card.kind)
    for role, source in card.source.items():
        before = made_of.get(role, {}).get("from")
        if before not in (find_address(source, role), source.url):
            message = f"{plan.path} was made from {before}, not from {find_address(source, role)}"
            raise UsageError(message, f"replace it: {plan.command} --force")
        asked, got = source.revision, made_of[role].get("asked", "main")
        if source.repo and asked not in (got, made_of[role].get("revision")):
            message = f"{plan.path} was made from {before} at {got}, not at {asked}"
            raise UsageError(message, f"replace it: {plan.command} --force")


def find_address(source: DownloadSource, role: str) -> str:
    """Return where a part comes from: a repository, or a URL (sonar-space's own takes priority)."""
    from lcm_cli.space import sonar_package  # lazily, like everything that imports torch

    asset = sonar_package.asset(source.asset) if source.asset else None
    if asset is None:
        return source.repo or source.url
    return asset.tokenizer_url if role == "tokenizer" else asset.url


def _plan_part(card: Card, role: str, command: str, force: bool) -> Part:
    from lcm_cli.space import sonar_package

    source = card.source[role]
    part = Part(role, find_address(source, role), source)
    if not force and (made := _find_converted(card, role, part.address)):
        return replace(part, here=made)
    if source.repo:
        return _plan_port(part, command)
    if not force and (cached := sonar_package.cached(part.address)):
        return replace(part, here=cached)
    size = source.bytes or remote_size(part.address)
    return replace(part, bytes=size or source.about_bytes, exact=size is not None)


def _plan_port(part: Part, command: str) -> Part:
    first = PORT_TOKENIZER if part.role == "tokenizer" else "config.json"
    part = _look_up(part, first, command)
    if part.remote is None:
        return part
    names = choose_port_files(part.role, [file.name for file in part.remote.files])
    return replace(part, bytes=_missing(part.remote, names))


def _plan_model(plan: PullPlan, source: DownloadSource) -> PullPlan:
    """Plan a model that is one repository, or local folder, in a foreign layout."""
    part = _look_up(Part("model", source.repo, source), "config.json", plan.command)
    if part.remote is None:
        layout = detect_layout(part.here) if part.here else "sonar-llm"
        return replace(plan, layout=layout, parts=(part,))
    layout, names = _inspect(part.remote, plan.command)
    if plan.licence == cards.UNKNOWN_LICENCE and part.remote.licence:
        note = "according to its repository"
        plan = replace(plan, licence=part.remote.licence, licence_note=note)
    part = replace(part, bytes=_missing(part.remote, names))
    return replace(plan, layout=layout, parts=(part,))


def _look_up(part: Part, first: str, command: str) -> Part:
    """Find the folder or repository of a part; `first` is the file that a pull fetches first."""
    repo, revision = part.source.repo, part.source.revision
    if Path(repo).is_dir():
        return replace(part, here=Path(repo))
    if offline():
        return replace(part, here=local_snapshot(repo, revision, [first]), bytes=None)
    return replace(part, remote=describe_remote(repo, revision, command))


def _missing(remote: Remote, names: Sequence[str]) -> int:
    """Return how many bytes of the named files are not yet in huggingface_hub's cache."""
    blobs = repository_folder(remote.repo) / "blobs"
    wanted = (file for file in remote.files if file.name in names)
    return sum(
        file.bytes or 0
        for file in wanted
        if not (blobs / file.etag).is_file()
        and local_snapshot(remote.repo, remote.commit, [file.name]) is None
    )


def _find_converted(card: Card, role: str, origin: str) -> Path | None:
    """Return the file of a part that another pulled space took from the same source, or None."""
    known = card.source[role].sha256
    for name in cards.list_pulled():
        with suppress(LcmError):  # a damaged space is skipped
            other = locate.read_space(cards.space_folder(name))
            made_of = other.config.get("source", {}).get(role, {})
            same = made_of.get("from") == origin and made_of.get("sha256") == (
                known or made_of.get("sha256")
            )
            if same and other.config.get(role) == getattr(card, role, None):
                path: Path = getattr(other, role)
                return path
    return None


def _inspect(remote: Remote, command: str) -> tuple[Layout, list[str]]:
    """Return the layout of a repository, by its config, and the names of the files to fetch."""
    names = [file.name for file in remote.files]
    settings = [name for name in ("config.json", OFFICIAL_CARD) if name in names]
    try:
        layout = detect_layout(fetch_snapshot(remote, lambda _: settings, command))
    except NotFoundError as error:
        raise NotFoundError(
            f"{remote.repo} holds no checkpoint that lcm can read", error.hint
        ) from error
    if layout == "m2m-100":
        raise NotFoundError(
            f"{remote.repo} is not a space in lcm's layout but in that of M2M-100",
            "it needs a card that names encoder, decoder and tokenizer: see lcm pull sonar-hub",
        )
    return layout, needed_files(layout, names, remote.repo)


def _kind(layout: Layout) -> str:
    return layout if layout in OURS else "model"


def _moved(repo: str, revision: str, commit: str) -> tuple[str, ...]:
    before = local_commit(repo, revision)
    if before in ("", commit):
        return ()
    return (f"{repo}@{revision} has moved: it was {before[:12]} and is {commit[:12]} now",)
