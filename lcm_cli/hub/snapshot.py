"""Files of Hugging Face repositories, through huggingface_hub's client and cache.

Works with both the client's 0.3x versions (to which sonar-space is limited) and its newest. Every
file is compared with the digest that the Hub announces, and a branch or tag is recorded as fetched
only after all of its files are complete. Errors of the client are translated into lcm's own.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError
from lcm_cli.files import atomic_path, disk_error, sha256
from lcm_cli.hub.http import Notice, offline, retry_after
from lcm_cli.paths import hf_home
from lcm_cli.progress import ignore

Choose = Callable[[Sequence[str]], Sequence[str]]
T = TypeVar("T")

TRIES = 4  # of one request
PAUSE = 1.0  # seconds before the second try; doubles
LONGEST_WAIT = 120.0  # a server that asks for a longer wait is an error
# The client retries after server errors in downloads, but in no other request.
_BUSY = (408, 416, 429)
_FAILING = (*_BUSY, 500, 502, 503, 504)
_PLAIN = re.compile(r"\w[\w.-]*")  # a file at the top level of a repository
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    `sha256` is empty for small files, which lie in git itself: these have git's digest, `oid`.
    """

    name: str
    bytes: int | None
    sha256: str
    oid: str = ""

    @property
    def etag(self) -> str:
        """The Hub's etag of this version of the file, and the name of its blob in the cache."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Remote:
    """A repository on the Hub at one commit: its licence and its files."""

    repo: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]

    def file(self, name: str) -> RemoteFile | None:
        """Return the file called `name`, or None."""
        return next((file for file in self.files if file.name == name), None)


def hub_cache() -> Path:
    """Return huggingface_hub's cache folder."""
    return Path(os.environ.get("HF_HUB_CACHE") or hf_home() / "hub").expanduser()


def endpoint() -> str | None:
    """Return the address of the Hub's mirror (HF_ENDPOINT), None for the Hub itself."""
    return os.environ.get("HF_ENDPOINT") or None


def repository_folder(repo: str) -> Path:
    """Return the folder of a repository in huggingface_hub's cache."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def is_commit(revision: str) -> bool:
    """Return whether a revision is a commit hash, which cannot move."""
    return bool(_COMMIT.fullmatch(revision))


def local_commit(repo: str, revision: str) -> str:
    """Return the commit of a branch or tag at its last fetch, "" if it was never fetched."""
    if is_commit(revision):
        return revision
    with suppress(OSError):
        commit = (repository_folder(repo) / "refs" / revision).read_text(encoding="utf-8").strip()
        return commit if is_commit(commit) else ""
    return ""


def local_snapshot(repo: str, revision: str, names: Sequence[str]) -> Path | None:
    """Return the cached folder that has all of `names`, or None. Does not use the network.

    Raises IntegrityError for a file that is a link out of the repository's folder.
    """
    from huggingface_hub import try_to_load_from_cache

    folder = None
    for name in names:
        found = try_to_load_from_cache(repo, name, cache_dir=hub_cache(), revision=revision)
        if not isinstance(found, str):
            return None
        confine(Path(found), repository_folder(repo))
        folder = Path(found).parent
    return folder


def confine(path: Path, folder: Path) -> None:
    """Raise IntegrityError if `path`, with links resolved, is not inside `folder`."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise IntegrityError(
            f"{path} is a link to {path.resolve()}, outside {folder}: refused",
            f"if you did not create it, remove it: rm {path}",
        )


def describe_remote(repo: str, revision: str, command: str, notice: Notice = ignore) -> Remote:
    """Ask the Hub for the contents of a repository. Raises as `fetch_snapshot` does."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), library_name="lcm")
    retries = _Retries(repo, revision, command, notice)
    info = retries.run(
        lambda: api.model_info(repo, revision=revision, files_metadata=True), transient=_FAILING
    )
    files = tuple(
        RemoteFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else "", s.blob_id or "")
        for s in info.siblings or ()
    )
    licence = (info.card_data.get("license") if info.card_data else None) or ""
    return Remote(repo, info.sha or revision, str(licence), files)


def fetch_snapshot(remote: Remote, choose: Choose, command: str, notice: Notice = ignore) -> Path:
    """Fetch the files that `choose` picks by name; return their folder in the cache.

    Files are requested by commit, so that a branch that moves meanwhile cannot mix two versions,
    and compared with the Hub's digests. Cached files are not fetched again. Call `record_revision`
    once they have been checked. Raises NotFoundError (no such repository or file, or offline),
    AuthError (gated or private), IntegrityError (bytes that differ from the Hub's digest), LcmError
    (no network, a Hub that keeps failing, disk full).
    """
    retries = _Retries(remote.repo, remote.commit, command, notice)
    folder = Path()
    for name in choose([file.name for file in remote.files if _PLAIN.fullmatch(file.name)]):
        expected = remote.file(name)
        assert expected is not None  # `choose` picks from these names
        folder = _fetch_file(remote, expected, retries).parent
    return folder


def record_revision(remote: Remote, revision: str) -> None:
    """Record in the client's cache that a branch or tag is at the commit of `remote`.

    Only to be called once all needed files of the commit are complete and verified.
    """
    if is_commit(revision):
        return
    path = repository_folder(remote.repo) / "refs" / revision
    confine(path, repository_folder(remote.repo))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(remote.commit, encoding="utf-8")


def _fetch_file(remote: Remote, expected: RemoteFile, retries: "_Retries") -> Path:
    from huggingface_hub import hf_hub_download

    blob = repository_folder(remote.repo) / "blobs" / expected.etag

    def download() -> Path:
        _drop_overlong(blob.with_name(f"{blob.name}.incomplete"), expected)
        path = hf_hub_download(
            remote.repo,
            expected.name,
            revision=remote.commit,
            cache_dir=hub_cache(),
            endpoint=endpoint(),
            library_name="lcm",
        )
        return Path(path)

    here = _local_file(remote, expected.name)
    if here is not None and not matches(here, expected):  # damaged since its download
        _forget(here)
    path = retries.run(download)
    confine(path, repository_folder(remote.repo))
    if not matches(path, expected):
        _forget(path)
        message = f"{remote.repo}: {expected.name} differs from the digest that the Hub announces"
        raise IntegrityError(message, f"it was deleted; run {retries.command} again")
    return path


def _local_file(remote: Remote, name: str) -> Path | None:
    folder = local_snapshot(remote.repo, remote.commit, [name])
    return None if folder is None else folder / name


def _forget(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)  # the link's target, a blob
    path.unlink(missing_ok=True)


def matches(path: Path, expected: RemoteFile) -> bool:
    """Return whether a file has the size and the digest that the Hub announces."""
    if expected.bytes not in (None, path.stat().st_size):
        return False
    if expected.sha256:
        return sha256(path) == expected.sha256
    return not expected.oid or git_oid(path.read_bytes()) == expected.oid


def git_oid(content: bytes) -> str:
    """Return git's digest of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _drop_overlong(incomplete: Path, expected: RemoteFile) -> None:
    """Delete a partial download with more bytes than the file, which could never be completed."""
    with suppress(FileNotFoundError):
        if expected.bytes is not None and incomplete.stat().st_size > expected.bytes:
            incomplete.unlink()


@dataclass(frozen=True)
class _Retries:
    """Requests to the Hub about one repository, repeated after transient failures."""

    repo: str
    revision: str
    command: str
    notice: Notice

    def run(self, request: Callable[[], T], transient: Container[int] = _BUSY) -> T:
        """Return the result of `request`, with retries; raises lcm's errors.

        `transient` are the HTTP statuses after which a retry may help.
        """
        for left in reversed(range(TRIES)):
            try:
                with translated(self.repo, self.revision, self.command):
                    return request()
            except LcmError as error:
                wait = _wait(error.__cause__, TRIES - left, transient)
                if wait is None or not left:
                    raise
                self.notice(f"{error.message}; next try in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _wait(error: BaseException | None, tries: int, transient: Container[int]) -> float | None:
    """Return how many seconds to wait before a retry, None if a retry would not help."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    pause = PAUSE * 2.0 ** (tries - 1)
    if status in transient:
        asked = retry_after(response.headers) if response is not None else None
        wait = pause if asked is None else asked
        return wait if wait <= LONGEST_WAIT else None
    if status is not None or getattr(error, "errno", None) is not None:
        return None
    # The connection broke in the middle of a file, or the announced length was wrong.
    broken = ("ChunkedEncodingError", "RemoteProtocolError", "ReadError", "ReadTimeout")
    names = {kind.__name__ for kind in type(error).__mro__} if error else set()
    told = any(words in str(error) for words in ("Connection aborted", "Consistency check"))
    return pause if told or names & set(broken) else None


@contextmanager
def translated(repo: str, revision: str, command: str) -> Iterator[None]:
    """Translate the client's exceptions into lcm's errors. Raises NotFoundError when offline."""
    if offline():
        message = f"{repo} is not on this machine and lcm is offline"
        raise NotFoundError(message, f"run {command} without --offline and HF_HUB_OFFLINE")
    try:
        yield
    except LcmError:
        raise
    except Exception as error:  # the base classes differ between versions of the client
        cause = _cause(error)
        raise _translate(cause, repo, revision, command) from cause


def _cause(error: Exception) -> Exception:
    """Return the error behind the client's "not in the cache, and the Hub cannot be reached"."""
    from huggingface_hub import errors

    cause = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(cause, Exception):
        return cause
    return error


def _translate(error: Exception, repo: str, revision: str, command: str) -> LcmError:
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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_error(error, hub_cache())
    if status is not None:
        return _status_error(status, response, error, repo, command)
    if "Consistency check" in str(error):
        message = f"{repo}: the received file differs in length from what the Hub announces"
        return IntegrityError(message, f"run {command} again")
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return LcmError(f"{repo}: {' '.join(str(error).split())}")
    message = f"no network: cannot reach the Hub for {repo} ({_first_line(error)})"
    return LcmError(message, f"run {command} when there is a connection")


def _status_error(
    status: int, response: Any, error: Exception, repo: str, command: str
) -> LcmError:
    """Return the error of an HTTP status."""
    if status in (401, 403):
        return AuthError(f"{repo}: access denied ({status})", "log in first: hf auth login")
    if status == 429:
        wait = response.headers.get("Retry-After", "some time")
        message = f"the Hub asks to slow down (429, retry after {wait})"
        return LcmError(message, f"run {command} later")
    if status == 404:
        return NotFoundError(f"{repo}: {_first_line(error)}")
    return LcmError(f"the Hub answers {status} for {repo}", f"run {command} again later")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
