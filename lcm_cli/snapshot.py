"""Files of a Hugging Face repository, through huggingface_hub's own cache and client.

Works with the client's 0.3x line (which sonar-space holds back) and its newest. Its errors become
ours, each in its own words.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lcm_cli.download import offline
from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError
from lcm_cli.files import disk_error, sha256
from lcm_cli.paths import hf_home

Choose = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository. `sha256` is empty for small files, which git keeps itself."""

    name: str
    bytes: int | None
    sha256: str


@dataclass(frozen=True)
class Remote:
    """What the Hub says of a repository at one revision."""

    repo: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]


def hub_cache() -> Path:
    """Return the folder of huggingface_hub's own downloads."""
    return Path(os.environ.get("HF_HUB_CACHE") or hf_home() / "hub").expanduser()


def local_snapshot(repo: str, revision: str, names: Sequence[str]) -> Path | None:
    """Return the folder of huggingface_hub's cache that has all of `names`, or None. No network."""
    from huggingface_hub import try_to_load_from_cache

    folder = None
    for name in names:
        found = try_to_load_from_cache(repo, name, cache_dir=hub_cache(), revision=revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return folder


def describe(repo: str, revision: str, command: str) -> Remote:
    """Ask the Hub what is in a repository. Raises as `fetch` does."""
    from huggingface_hub import HfApi

    with _translated(repo, revision, command):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="lcm")
        info = api.model_info(repo, revision=revision, files_metadata=True)
    files = tuple(
        RemoteFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()
    )
    licence = (info.card_data.get("license") if info.card_data else None) or ""
    return Remote(repo, info.sha or revision, str(licence), files)


def fetch(remote: Remote, revision: str, choose: Choose, command: str) -> Path:
    """Bring the files that `choose` picks by name, and compare them with the Hub's sha256.

    Returns their folder. Raises NotFoundError (no such repository or file, or offline), AuthError
    (gated or private), IntegrityError (other bytes than the Hub announces), LcmError (no network).
    """
    from huggingface_hub import hf_hub_download

    known = {file.name: file for file in remote.files}
    folder = Path()
    for name in choose([name for name in known if "/" not in name and "\\" not in name]):
        with _translated(remote.repo, revision, command):
            path = Path(
                hf_hub_download(
                    remote.repo,
                    name,
                    revision=revision,
                    cache_dir=hub_cache(),
                    endpoint=os.environ.get("HF_ENDPOINT"),
                    library_name="lcm",
                )
            )
        _verify(path, known[name], remote.repo)
        folder = path.parent
    return folder


def _verify(path: Path, expected: RemoteFile, repo: str) -> None:
    if expected.sha256 and sha256(path) != expected.sha256:
        path.resolve().unlink()  # the cache has a link to a blob: neither may stay
        path.unlink(missing_ok=True)
        message = f"{repo}: {expected.name} has not the sha256 that the Hub announces"
        raise IntegrityError(message, "it was removed; pull again")


@contextmanager
def _translated(repo: str, revision: str, command: str) -> Iterator[None]:
    """Turn what the client raises into our errors. Its base classes differ between versions."""
    if offline():
        message = f"{repo} is not on this machine and lcm is offline"
        raise NotFoundError(message, f"run {command} without --offline and HF_HUB_OFFLINE")
    try:
        yield
    except LcmError:
        raise
    except Exception as error:
        raise _ours(error, repo, revision, command) from error


def _ours(error: Exception, repo: str, revision: str, command: str) -> LcmError:
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        hint = f"ask for access at https://huggingface.co/{repo}, then: hf auth login"
        return AuthError(f"{repo} is gated", hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(f"{repo} has no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "check the spelling; if it is private, log in first: hf auth login"
        return NotFoundError(f"there is no repository {repo} on the Hub", hint)
    if isinstance(error, errors.HFValidationError):
        return NotFoundError(
            f"{repo!r} is not the name of a repository", "it has the form ORG/REPO"
        )
    if status in (401, 403):
        return AuthError(f"{repo}: access denied ({status})", "log in first: hf auth login")
    if status == 429:
        wait = response.headers.get("Retry-After", "some time") if response is not None else ""
        return LcmError(
            f"the Hub asks to slow down (429, retry after {wait})", f"run {command} later"
        )
    if status == 404:
        return NotFoundError(f"{repo}: {_first_line(error)}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_error(error, hub_cache())
    if status is not None:
        return LcmError(f"the Hub answers {status} for {repo}", f"run {command} again later")
    message = f"no network: cannot reach the Hub for {repo} ({_first_line(error)})"
    return LcmError(message, f"run {command} when there is a connection")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
