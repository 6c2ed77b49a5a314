"""Installation of fetched checkpoints, which are converted once and moved into place.

A checkpoint is built in a folder beside its place, which is then renamed: it is complete or absent.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.files import atomic_path, replace_folder, sha256
from lcm_cli.hub import cards, locate
from lcm_cli.hub.cards import Card
from lcm_cli.hub.http import Notice
from lcm_cli.hub.layouts import SPACE_FILES
from lcm_cli.text.languages import SONAR
from lcm_cli.transfer.converters.sonar import check_tokenizer, convert_half
from lcm_cli.transfer.fetch import FetchedPart, naming_source
from lcm_cli.transfer.plan import ORIGIN, PORT_TOKENIZER, PullPlan, read_origin

Parts = Mapping[str, FetchedPart]


def is_installed(plan: PullPlan) -> bool:
    """Return whether another process has installed what was missing when the plan was made."""
    if plan.in_place:
        return False
    if plan.card:
        return plan.card.name in cards.list_pulled(plan.kind)
    remote = plan.parts[0].remote
    before = read_origin(plan.path, "model").get("model", {}).get("revision")
    return remote is not None and before == remote.commit


def install(plan: PullPlan, fetched: Parts, notice: Notice) -> None:
    """Convert the fetched parts and put the result in place; one in lcm's own layout is checked.

    Raises IntegrityError, with the address of the source, for parts that are damaged or do not fit.
    """
    if plan.in_place:
        return _check_in_place(plan, notice)
    with _new_folder(plan.path) as new:
        if plan.card and plan.kind == "space":
            _assemble_space(plan, plan.card, fetched, new, notice)
        elif plan.card and plan.kind == "speech":
            _convert_speech(plan, plan.card, fetched["speech"], new, notice)
        else:
            _convert_model(plan, fetched["model"], new, notice)


def check_weights(kind: str, folder: Path) -> None:
    """Raise IntegrityError unless the weights in a folder are those that its config requires.

    Only the headers of the files are read. The base of an adapter need not be on this machine.
    """
    if adapter := locate.read_adapter(folder):
        from lcm_cli.space.adapters import check_base, read_updates

        read_updates(adapter)
        files = _located(kind, folder)
        if files and files.adapter:
            check_base(files.adapter)
    elif kind == "space":
        locate.read_space(folder)
    elif kind == "speech":
        from lcm_cli.speech.speech import open_speech

        open_speech(locate.locate_speech(str(folder)))
    else:
        from lcm_cli.models.checkpoint import open_model

        open_model(locate.locate_model(str(folder)))


def _located(kind: str, folder: Path) -> locate.SpaceFiles | locate.ModelFiles | None:
    """Return the files of the adapter in a folder, None if its base is missing."""
    try:
        if kind == "space":
            return locate.read_space(folder)
        return locate.locate_model(str(folder))
    except NotFoundError:
        return None


def _check_in_place(plan: PullPlan, notice: Notice) -> None:
    adapter = locate.read_adapter(plan.path)
    if adapter and _located(plan.kind, plan.path) is None:
        base = adapter.config.base
        notice(f"{plan.name} is an adapter of {base}, which it needs: lcm pull {base}")
    if adapter or plan.kind != "space":
        return check_weights(plan.kind, plan.path)
    for role, expected in locate.read_space(plan.path).config.get("sha256", {}).items():
        path = plan.path / SPACE_FILES[role]
        if sha256(path) != expected:
            raise IntegrityError(f"{path} does not have the sha256 in config.json")


@contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """Yield a new folder that then takes the place of `place`; on an error it is deleted."""
    for leftover in place.parent.glob(f".{place.name}.*.new"):  # of a pull that was killed
        shutil.rmtree(leftover)
    new = place.with_name(f".{place.name}.{os.getpid()}.new")
    new.mkdir()
    try:
        yield new
        replace_folder(new, place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _convert_model(plan: PullPlan, source: FetchedPart, new: Path, notice: Notice) -> None:
    """Write a foreign model in lcm's layout; its tensors are mapped, never all in memory."""
    from lcm_cli.models.checkpoint import write
    from lcm_cli.transfer.converters.foreign import read_model

    notice(f"{plan.name}: converting")
    with naming_source(plan, source.path, source.origin["from"]):
        write(*read_model(source.path), new)
    record = {
        "name": plan.name,
        "licence": plan.licence,
        "source": {"model": source.origin, "converted": _today()},
        "sha256": {path.name: sha256(path) for path in sorted(new.iterdir())},
    }
    _write_json(new / ORIGIN, record)


def _convert_speech(
    plan: PullPlan, card: Card, source: FetchedPart, new: Path, notice: Notice
) -> None:
    """Write an official speech encoder in lcm's layout; its tensors are mapped, not in memory."""
    from lcm_cli.speech.speech import write
    from lcm_cli.transfer.converters.speech import config_of, read_speech

    notice(f"{plan.name}: converting")
    config = config_of(card, {"speech": dict(source.origin), "converted": _today()})
    with naming_source(plan, source.path, source.origin["from"]):
        write(config, read_speech(source.path, config.encoder), new)


def _assemble_space(plan: PullPlan, card: Card, fetched: Parts, new: Path, notice: Notice) -> None:
    """Convert encoder and decoder, copy the tokenizer, and write config.json."""
    languages = _languages(card)
    tokenizer = _source_file("tokenizer", fetched["tokenizer"])
    with naming_source(plan, tokenizer, fetched["tokenizer"].origin["from"]):
        check_tokenizer(tokenizer, card.encoder["vocabulary"], len(languages))
    digests: dict[str, str] = {}
    for role, part in fetched.items():
        source, target = _source_file(role, part), new / SPACE_FILES[role]
        if part.converted:
            _link(source, target)
            digests[role] = part.converted
        elif role == "tokenizer":
            digests[role] = _copy(source, target)
        else:
            notice(f"{role}: converting")
            with naming_source(plan, source, part.origin["from"]):
                digests[role] = convert_half(role, source, target, getattr(card, role), languages)
    config = {
        "kind": "space",
        "name": card.name,
        "licence": card.licence,
        "languages": list(languages),
        "encoder": card.encoder,
        "decoder": card.decoder,
        "sha256": digests,
        "source": {**{role: p.origin for role, p in fetched.items()}, "converted": _today()},
    }
    _write_json(new / "config.json", config)


def _source_file(role: str, part: FetchedPart) -> Path:
    """Return the file or folder to convert; a tokenizer may lie in the folder of a port."""
    in_folder = role == "tokenizer" and part.path.is_dir()
    return part.path / PORT_TOKENIZER if in_folder else part.path


def _languages(card: Card) -> Sequence[str]:
    """Return the languages in id order: the card's own list, else SONAR's."""
    from lcm_cli.space import sonar_package

    if not isinstance(card.languages, int):
        return card.languages
    asset = sonar_package.asset(card.source["encoder"].asset)
    languages = asset.languages if asset else SONAR
    if len(languages) != card.languages:
        message = f"{card.name}: {len(languages)} languages, but its card says {card.languages}"
        raise IntegrityError(message)
    return languages


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> str:
    with atomic_path(target) as path:
        shutil.copyfile(source, path)
    return sha256(target)
