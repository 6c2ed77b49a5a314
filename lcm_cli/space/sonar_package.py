"""The bridge to sonar-space, the official SONAR package: its registry, its cache, its code.

Only `import_sonar` imports it (five seconds, and not possible everywhere). The registry is a folder
of YAML files inside the installed package, which is read without importing anything.
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
    """One text card of sonar-space: the addresses and the languages in id order."""

    name: str
    url: str
    tokenizer_url: str
    languages: tuple[str, ...]


def import_sonar() -> ModuleType:
    """Import sonar-space. Raises LcmError saying why it cannot be used on this machine."""
    _preload_libsndfile()
    try:
        return import_module("sonar")
    except Exception as error:  # fairseq2 raises its own kinds when its binary does not fit torch
        raise LcmError(
            f"sonar-space cannot be imported: {type(error).__name__}: {_first_line(error)}",
            "install it with the torch version it was built for: pip install sonar-space "
            "(Linux and macOS only); everything but this works without it",
        ) from error


def asset(name: str) -> Asset | None:
    """Read one of sonar-space's own text cards, without importing it; None if not installed."""
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
        raise IntegrityError(f"{path} is not a card this lcm can read: {error!r}") from error
    if fields.get("model_arch") != "basic":
        raise IntegrityError(f"{path}: model_arch is {fields.get('model_arch')!r}, not 'basic'")
    return found


def cached(url: str) -> Path | None:
    """Return the file that fairseq2 downloaded from `url` earlier, if it is there and looks whole.

    fairseq2 keeps what a killed download left, under the final name; `is_whole` tells them apart.
    """
    digest = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()[:24]
    path = _fairseq2_cache() / digest / url.rsplit("/", 1)[-1]
    return path if path.is_file() and is_whole(path) else None


def is_whole(path: Path) -> bool:
    """Return whether the structure of a torch or sentencepiece file says that it is complete."""
    if path.suffix == ".pt":
        return zipfile.is_zipfile(path)  # looks for the directory at the very end
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
    """Load the libsndfile that the soundfile wheel carries.

    fairseq2 asks the system for libsndfile.so.1 and refuses to be imported without it. A library
    loaded earlier under that name satisfies it, so nothing has to be installed with root rights.
    """
    import ctypes

    for folder in _package_folders("_soundfile_data"):
        for library in sorted(Path(folder).glob("libsndfile*")):
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError:  # of another machine type; fairseq2 says what it misses
                continue


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
