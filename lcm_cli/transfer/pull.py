"""Bringing a checkpoint to this machine: fetch what is missing, convert it once.

A space is put together in a folder beside its place and then renamed, so that it is whole or not
there. Downloads stay until the conversion is done: a killed pull goes on where it was.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from lcm_cli.errors import AuthError, IntegrityError, NotFoundError
from lcm_cli.files import atomic_path, disk_error, sha256, swap
from lcm_cli.hub import cards, locate, pins
from lcm_cli.hub.cards import Card
from lcm_cli.hub.http import Fetched, Notice, Wanted, download, locked
from lcm_cli.hub.layouts import OURS, needed
from lcm_cli.hub.snapshot import fetch, keep
from lcm_cli.paths import cache_dir
from lcm_cli.progress import StartJob, ignore, no_progress
from lcm_cli.text.languages import SONAR
from lcm_cli.transfer.converters.sonar import check_tokenizer, convert_half
from lcm_cli.transfer.plan import PORT_TOKENIZER, Part, PullPlan, choose_port
from lcm_cli.transfer.pull_model import check_model, pull_model

UNKNOWN = ("", cards.UNKNOWN_LICENCE)


def pull(
    plan: PullPlan,
    *,
    accept_licence: bool = False,
    force: bool = False,
    progress: StartJob = no_progress,
    notice: Notice = ignore,
) -> Path:
    """Carry out a plan; returns where the checkpoint is: its folder, or the card of a bundled one.

    Raises AuthError if the licence is one that must be accepted and was not, and whatever
    download.py, snapshot.py and convert.py raise. Nothing half-made is left under the name.
    """
    if plan.ready:
        return plan.path
    if plan.must_be_accepted and not accept_licence:
        raise AuthError(
            f"{plan.name} is under {licence_line(plan)}",
            f"if you agree, run: {plan.command} --accept-licence",
        )
    if plan.layout in OURS and plan.card is None:
        return _pull_repository(plan, notice)
    try:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(plan.path.with_name(f".{plan.path.name}.lock"), plan.name, notice):
            if plan.kind == "model":
                return pull_model(plan, force, notice)
            if plan.card and (force or plan.name not in cards.pulled()):
                _Assembly(plan, plan.card, force, progress, notice).run()
    except OSError as error:
        raise disk_error(error, plan.path) from error
    return locate.read_space(plan.path).encoder.parent


def licence_line(plan: PullPlan) -> str:
    """Say in a line under which licence a checkpoint is."""
    licence = "unknown licence" if plan.licence in UNKNOWN else plan.licence
    return f"{licence} ({plan.licence_note})" if plan.licence_note else licence


def _pull_repository(plan: PullPlan, notice: Notice) -> Path:
    """Bring a repository in our own layout; it is used where the Hub's client keeps it."""
    remote = plan.parts[0].remote
    assert remote is not None
    folder = fetch(
        remote, lambda names: needed(plan.layout, names, plan.name), plan.command, notice
    )
    if plan.kind == "space":
        _check_space(folder)
    else:
        check_model(folder)
    names = needed(plan.layout, [path.name for path in folder.iterdir()], plan.name)
    address = f"{remote.repo}@{remote.commit}"
    pins.record_pins(
        cache_dir(), {f"{address}/{name}": pins.of_file(folder / name) for name in names}
    )
    keep(remote, plan.revision)
    return folder


def _check_space(folder: Path) -> None:
    space = locate.read_space(folder)
    for role, expected in space.config.get("sha256", {}).items():
        if sha256(folder / locate.FILES[role]) != expected:
            raise IntegrityError(f"{folder / locate.FILES[role]} has not the sha256 in config.json")


class _Assembly:
    """The pull of one carded space, under its lock."""

    def __init__(
        self, plan: PullPlan, card: Card, force: bool, progress: StartJob, notice: Notice
    ) -> None:
        self.plan, self.card, self.force = plan, card, force
        self.progress, self.notice = progress, notice
        self.cache = cache_dir()
        self.downloads = self.cache / "downloads" / plan.path.name
        self.origins: dict[str, dict[str, Any]] = {}
        self.digests: dict[str, str] = {}
        self.found: dict[str, pins.Pin] = {}

    def run(self) -> None:
        """Fetch all parts, then build the space and give it its name."""
        sources = {part.role: self._obtain(part) for part in self.plan.parts}
        place = self.plan.path
        for leftover in place.parent.glob(f".{place.name}.*.new"):  # of a pull that was killed
            shutil.rmtree(leftover)
        new = place.with_name(f".{place.name}.{os.getpid()}.new")
        new.mkdir()
        try:
            self._build(sources, new)
            swap(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        pins.record_pins(self.cache, self.found)
        shutil.rmtree(self.downloads, ignore_errors=True)

    def _obtain(self, part: Part) -> Path:
        """Bring one part here; returns its file, or its folder in the M2M-100 layout."""
        if part.here and part.here.is_relative_to(self.plan.path.parent):  # another space's
            made_of = locate.read_space(part.here.parent).config
            self.origins[part.role] = made_of["source"][part.role]
            self.digests[part.role] = made_of["sha256"][part.role]
            return part.here
        return (self._obtain_port if self.card.source[part.role].repo else self._obtain_file)(part)

    def _obtain_file(self, part: Part) -> Path:
        source = self.card.source[part.role]
        if part.here:
            self.notice(f"{part.role}: using {part.here}, which fairseq2 downloaded")
            got = Fetched(part.here, part.here.stat().st_size, sha256(part.here))
        else:
            wanted = Wanted(part.address, source.bytes, source.sha256, self.plan.command)
            digest = hashlib.sha256(part.address.encode()).hexdigest()[:12]
            target = self.downloads / f"{part.role}-{digest}{Path(wanted.name).suffix}"
            with self.progress(f"{part.role} ({wanted.name})", part.bytes) as advance:
                got = download(wanted, target, advance=advance, notice=self.notice)
        with self._blame(got.path, part.address):
            self._pin(part.address, pins.Pin(got.bytes, got.sha256, got.etag))
        self.origins[part.role] = {"from": part.address, "bytes": got.bytes, "sha256": got.sha256}
        return got.path

    def _obtain_port(self, part: Part) -> Path:
        source = self.card.source[part.role]
        folder, origin = part.here, {"from": part.address}
        if part.remote is not None:
            self.notice(f"{part.role}: fetching {source.repo} through huggingface_hub")
            pick = partial(choose_port, part.role)
            folder = fetch(part.remote, pick, self.plan.command, self.notice)
            keep(part.remote, source.revision)
            origin |= {"revision": part.remote.commit, "asked": source.revision}
        if folder is None:
            message = f"{source.repo} is not on this machine and lcm is offline"
            raise NotFoundError(message, f"run {self.plan.command} without --offline")
        names = choose_port(part.role, [path.name for path in folder.iterdir()])
        files = {name: pins.of_file(folder / name) for name in names}
        for name, pin in files.items():
            self._pin(f"{part.address}/{name}", pin)
        digests = {name: pin.sha256 for name, pin in files.items()}
        self.origins[part.role] = {**origin, "sha256": digests}
        return folder / PORT_TOKENIZER if part.role == "tokenizer" else folder

    def _pin(self, address: str, pin: pins.Pin) -> None:
        if not self.force:
            pins.check(self.cache, address, pin)
        self.found[address] = pin

    def _build(self, sources: Mapping[str, Path], new: Path) -> None:
        languages = self._languages()
        tokenizer = sources["tokenizer"]
        with self._blame(tokenizer, self.origins["tokenizer"]["from"]):
            check_tokenizer(tokenizer, self.card.encoder["vocabulary"], len(languages))
        for role, source in sources.items():
            target = new / locate.FILES[role]
            if role in self.digests:
                _link(source, target)
            elif role == "tokenizer":
                self.digests[role] = _copy(source, target)
            else:
                self.notice(f"{role}: converting")
                shapes = getattr(self.card, role)
                with self._blame(source, self.origins[role]["from"]):
                    self.digests[role] = convert_half(role, source, target, shapes, languages)
        self._write_config(new, languages)

    @contextmanager
    def _blame(self, path: Path, address: str) -> Iterator[None]:
        """Drop a download that turned out wrong, so that the next pull fetches it anew."""
        try:
            yield
        except IntegrityError as error:
            hint = error.hint
            if path.is_relative_to(self.downloads):
                path.unlink()
            elif path.is_file():
                hint = f"{path} is not lcm's; to download it anew: {self.plan.command} --force"
            message = error.message.replace(str(path), address)
            raise IntegrityError(message, hint) from error

    def _write_config(self, new: Path, languages: Sequence[str]) -> None:
        config = {
            "kind": "space",
            "name": self.card.name,
            "licence": self.card.licence,
            "languages": list(languages),
            "encoder": self.card.encoder,
            "decoder": self.card.decoder,
            "sha256": self.digests,
            "source": {**self.origins, "converted": datetime.now(UTC).date().isoformat()},
        }
        with atomic_path(new / "config.json") as path:
            path.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")

    def _languages(self) -> tuple[str, ...]:
        """Return the languages in id order: the card's own list, else that of SONAR."""
        from lcm_cli.space import sonar_package

        if not isinstance(self.card.languages, int):
            return self.card.languages
        asset = sonar_package.asset(self.card.source["encoder"].asset)
        languages = asset.languages if asset else SONAR
        if len(languages) != self.card.languages:
            message = (
                f"{self.card.name}: {len(languages)} languages, its card says {self.card.languages}"
            )
            raise IntegrityError(message)
        return languages


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> str:
    with atomic_path(target) as path:
        shutil.copyfile(source, path)
    return sha256(target)
