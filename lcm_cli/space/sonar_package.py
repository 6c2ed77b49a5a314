"""The bridge to sonar-space, the official SONAR package: its cards, its download cache, its code.

Only `import_sonar` imports the package, which takes five seconds and is not possible everywhere.
Its cards are YAML files inside the installed package, read without importing it.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from lcm_cli.errors import IntegrityError, LcmError


@dataclass(frozen=True)
class Asset:
    """A text card of sonar-space: its URLs, and its languages in the order of their ids."""

    name: str
    url: str
    tokenizer_url: str
    languages: tuple[str, ...]


def import_sonar() -> ModuleType:
    """Import sonar-space. Raises LcmError with the reason if it cannot be imported."""
    _preload_libsndfile()
    try:
        return import_module("sonar")
    except Exception as error:  # fairseq2 raises its own kinds when its binary does not fit torch
        raise LcmError(
            f"sonar-space cannot be imported: {type(error).__name__}: {_first_line(error)}",
            "install it with the torch version it was built for: pip install sonar-space "
            "(Linux and macOS only); everything else works without it",
        ) from error


def asset(name: str) -> Asset | None:
    """Read a text card of sonar-space without importing it; None if there is none installed.

    Raises IntegrityError for a card in an unknown format or of another architecture than "basic".
    """
    folder = _cards()
    if folder is None or not (folder / f"{name}.yaml").is_file():
        return None
    import yaml

    path = folder / f"{name}.yaml"
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        languages = tuple(fields["tokenizer_config"]["_set_"]["langs"])
        found = Asset(name, fields["checkpoint"], fields["tokenizer"], languages)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not a card that lcm can read: {error!r}") from error
    if fields.get("model_arch") != "basic":
        raise IntegrityError(f"{path}: model_arch is {fields.get('model_arch')!r}, not 'basic'")
    return found


def cached(url: str) -> Path | None:
    """Return the file that fairseq2 downloaded from `url`, if it exists and is complete.

    An interrupted download leaves a truncated file under the final name: `is_whole` rejects it.
    """
    digest = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()[:24]
    path = _fairseq2_cache() / digest / url.rsplit("/", 1)[-1]
    return path if path.is_file() and is_whole(path) else None


def is_whole(path: Path) -> bool:
    """Return whether a torch or sentencepiece file is complete, judging by its structure."""
    if path.suffix == ".pt":
        return zipfile.is_zipfile(path)  # looks for the zip directory, at the end of the file
    try:
        from sentencepiece import SentencePieceProcessor

        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        return False
    return True


def _fairseq2_cache() -> Path:
    if chosen := os.environ.get("FAIRSEQ2_CACHE_DIR"):
        return Path(chosen)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fairseq2" / "assets"


def _cards() -> Path | None:
    folders = _package_folders("sonar")
    return next((Path(f) / "cards" for f in folders if (Path(f) / "cards").is_dir()), None)


def _package_folders(name: str) -> Iterable[str]:
    spec = find_spec(name)  # finds a top-level package without running it
    return (spec and spec.submodule_search_locations) or ()


def _preload_libsndfile() -> None:
    """Load the libsndfile bundled with the soundfile wheel.

    Importing fairseq2 fails unless the system has libsndfile.so.1. A library already loaded under
    that name serves as well, so nothing needs to be installed with root privileges.
    """
    import ctypes

    for folder in _package_folders("_soundfile_data"):
        for library in sorted(Path(folder).glob("libsndfile*")):
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError:  # built for another platform; fairseq2 will report the missing library
                continue


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
