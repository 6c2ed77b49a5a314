"""Downloads of single files, which end up complete and verified, or absent.

Bytes go to `NAME.part` beside the target, under a lock. A broken download resumes from the last
byte (Range, with If-Range so that a file that has changed meanwhile starts afresh). The file gets
its name only after its size and, where one is known, its checksum have been compared. The client is
the standard library's because huggingface_hub depends on requests in one version and on httpx in
the next.
"""

import email.utils
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import disk_error, sha256
from lcm_cli.progress import Progress, ignore

Notice = Callable[[str], object]

_BLOCK = 1 << 20
_LONGEST_PAUSE = 30.0
_LONGEST_WAIT = 120.0  # a server that asks for a longer wait is an error


@dataclass(frozen=True)
class Patience:
    """Limits on retries and waits; times in seconds."""

    tries: int = 5  # consecutive failures without a new byte
    pause: float = 1.0  # before the first retry; doubles each time
    timeout: float = 30.0  # without data


@dataclass(frozen=True)
class Wanted:
    """A file to download, with its size and checksum if they are known beforehand."""

    url: str
    bytes: int | None = None
    sha256: str = ""
    command: str = "the same command"  # which fetches the file, for messages

    @property
    def name(self) -> str:
        """The last component of the URL's path."""
        return urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Fetched:
    """A complete file on this machine."""

    path: Path
    bytes: int
    sha256: str
    etag: str = ""


class _Transient(Exception):
    """A failure that a retry may fix; `wait` is the delay that the server asks for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def offline() -> bool:
    """Return whether the network is forbidden (HF_HUB_OFFLINE, which --offline sets)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def download(
    wanted: Wanted,
    target: Path,
    *,
    advance: Progress = ignore,
    notice: Notice = ignore,
    patience: Patience | None = None,
) -> Fetched:
    """Download `wanted` (http, https or file) to `target`, unless it is already there.

    `advance` receives the number of bytes gained (negative if some had to be discarded), `notice` a
    line about each wait. Raises NotFoundError (404, or offline), AuthError (401, 403),
    IntegrityError (wrong size or checksum), LcmError (no network, disk full, a server that keeps
    failing). The bytes received so far stay in `target`.part, from which the next call resumes.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, wanted.name, notice):
            if target.exists() and (here := _arrived(wanted, target)):
                advance(here.bytes)
                return here
            return _Download(wanted, target, advance, notice, patience or Patience()).run()
    except OSError as error:
        raise disk_error(error, target) from error


def remote_size(url: str, timeout: float = 10.0) -> int | None:
    """Ask the server for a file's size in bytes; None if it gives no answer."""
    if offline() and not url.startswith("file:"):
        return None
    request = urllib.request.Request(url, method="HEAD", headers=_HEADERS)
    try:
        with _opener(url).open(request, timeout=timeout) as response:
            return _length(response.headers)
    except (OSError, http.client.HTTPException, LcmError):
        return None


@contextmanager
def locked(lock: Path, what: str, notice: Notice = ignore) -> Iterator[None]:
    """Hold the lock file `lock`, after a notice if another process has it; a kill releases it."""
    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        notice(f"waiting for another lcm process that is working on {what}")
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


def _locked(target: Path, what: str, notice: Notice) -> Any:
    return locked(target.with_name(target.name + ".lock"), what, notice)


def _arrived(wanted: Wanted, target: Path) -> Fetched | None:
    """Return the file at `target`; None, and delete it, if it is not the one that is wanted."""
    here = Fetched(target, target.stat().st_size, sha256(target))
    if wanted.bytes not in (None, here.bytes) or wanted.sha256 not in ("", here.sha256):
        target.unlink()
        return None
    return here


_HEADERS = {"User-Agent": "lcm", "Accept-Encoding": "identity"}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, or from http to http, only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (req.type, scheme) != ("http", "http"):
            raise LcmError(f"{req.full_url} redirects to {newurl}, which is not safe to follow")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise UsageError(
            f"cannot download {url}", "an address starts with https://, http:// or file://"
        )
    https = urllib.request.HTTPSHandler(context=trusted())
    return urllib.request.build_opener(_Redirects, https)


@cache  # reading the certificates takes some 30 ms
def trusted() -> ssl.SSLContext:
    """Return a context with the system's certificates, or certifi's if there are none."""
    context = ssl.create_default_context()
    if not context.get_ca_certs():  # python.org's macOS builds lack the system's certificates
        with suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def _length(headers: Any) -> int | None:
    value = headers.get("Content-Length")
    return int(value) if value and value.isdecimal() else None


def _validator(headers: Any) -> str:
    """Return the If-Range validator of this version of the file: a strong etag, else a date."""
    etag: str = headers.get("ETag") or ""
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""


def retry_after(headers: Any) -> float | None:
    """Return how many seconds the server asks to wait (Retry-After), None if it does not."""
    value = headers.get("Retry-After") or ""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class _Download:
    """One download in progress."""

    def __init__(
        self, wanted: Wanted, target: Path, advance: Progress, notice: Notice, patience: Patience
    ) -> None:
        self.wanted, self.target, self.patience = wanted, target, patience
        self.advance, self.notice = advance, notice
        self.part = target.with_name(target.name + ".part")
        self.memo = target.with_name(target.name + ".part.json")
        self.reported = 0
        self.etag = ""

    def run(self) -> Fetched:
        if offline() and not self.wanted.url.startswith("file:"):
            raise NotFoundError(
                f"{self.wanted.name} is not on this machine and lcm is offline ({self.wanted.url})",
                f"run {self.wanted.command} without --offline and HF_HUB_OFFLINE",
            )
        self._retry()
        fetched = self._verified()
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        self.part.replace(self.target)
        self.memo.unlink(missing_ok=True)
        return fetched

    def _retry(self) -> None:
        failures, furthest = 0, self._have()
        while True:
            try:
                return self._attempt()
            except _Transient as error:
                have = self._have()
                failures = 1 if have > furthest else failures + 1
                furthest = max(furthest, have)
                self._pause(error, failures)

    def _pause(self, error: _Transient, failures: int) -> None:
        again = f"run {self.wanted.command} again: it resumes where it stopped"
        wait = error.wait
        if wait is None:
            wait = min(self.patience.pause * 2 ** (failures - 1), _LONGEST_PAUSE)
        elif wait > _LONGEST_WAIT:
            message = f"{self.wanted.url}: {error}; the server asks to wait {wait:.0f} s"
            raise LcmError(message, f"{again}, after that time") from error
        if failures >= self.patience.tries:
            message = f"cannot download {self.wanted.url}: {error} (tried {failures} times)"
            raise LcmError(message, again) from error
        self.notice(f"{self.wanted.name}: {error}; next try in {wait:.0f} s")
        time.sleep(wait)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self) -> None:
        """Make one request and store the response; _Transient unless the file is then complete."""
        start, memo = self._resumable()
        headers = dict(_HEADERS)
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": memo["validator"]}
        try:
            response = self._open(urllib.request.Request(self.wanted.url, headers=headers))
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error, start)
        with response:
            if not (start and response.status == 206):
                start = 0
            total = self._total(response, start)
            self.etag = response.headers.get("ETag") or ""
            if not start:
                memo = {"url": self.wanted.url, "validator": _validator(response.headers)}
                self.memo.write_text(json.dumps(memo))
            self._store(response, start, total)

    def _resumable(self) -> tuple[int, dict[str, str]]:
        """Return how many bytes can be resumed from, 0 if their version of the file is unknown."""
        with suppress(OSError, ValueError):
            memo = json.loads(self.memo.read_text())
            if memo["url"] == self.wanted.url and memo["validator"]:
                return self._have(), memo
        return 0, {}

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            return _opener(request.full_url).open(request, timeout=self.patience.timeout)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason) from error
        except TimeoutError as error:
            raise _Transient(f"no answer within {self.patience.timeout:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(f"the connection broke ({type(error).__name__})") from error

    def _unreachable(self, reason: object) -> Exception:
        if self.wanted.url.startswith("file:"):
            return NotFoundError(f"cannot read {self.wanted.url}: {reason}")
        if isinstance(reason, ssl.SSLCertVerificationError):
            message = f"{self.wanted.url}: the server's certificate is not valid: {reason}"
            return LcmError(message, "set SSL_CERT_FILE if your network has its own certificates")
        if self.reported or isinstance(reason, TimeoutError | ConnectionResetError):
            return _Transient(str(reason))
        host = urllib.parse.urlsplit(self.wanted.url).netloc
        return LcmError(
            f"no network: cannot reach {host} for {self.wanted.name} ({reason})",
            f"run {self.wanted.command} when there is a connection",
        )

    def _refused(self, error: urllib.error.HTTPError, start: int) -> None:
        """Raise the error of an HTTP status, except for the one that means "already complete"."""
        url, command, code = self.wanted.url, self.wanted.command, error.code
        if code == 416:  # asked for bytes past the end
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            self._forget()
            raise _Transient("the file on the server has changed")
        if code in (404, 410):
            raise NotFoundError(
                f"{url} does not exist ({code})", "a newer lcm may know its new address"
            )
        if code in (401, 403):
            message = f"{url}: access denied ({code} {error.reason})"
            raise AuthError(message, f"the file may have moved; or run {command} again later")
        if code in (408, 429) or code >= 500:
            raise _Transient(f"{code} {error.reason}", retry_after(error.headers))
        raise LcmError(f"{url}: the server answers {code} {error.reason}")

    def _total(self, response: Any, start: int) -> int | None:
        """Return the length of the whole file. Raises IntegrityError if it is not the known one."""
        length = _length(response.headers)
        if start:
            first, _, whole = response.headers.get("Content-Range", "").partition("/")
            if not first.startswith(f"bytes {start}-") or not whole.isdecimal():
                self._forget()
                raise _Transient("the server sent another range than requested")
            length = int(whole)
        known = self.wanted.bytes
        if length is None and known is None and not getattr(response, "chunked", False):
            raise LcmError(
                f"{self.wanted.url}: the server does not announce the length of the file, "
                "so a truncated download could not be recognised"
            )
        if None not in (length, known) and length != known:
            raise self._wrong(f"{length} bytes on the server", f"{known} bytes")
        return length if known is None else known

    def _store(self, response: Any, start: int, total: int | None) -> None:
        self._report(start - self.reported)
        with self.part.open("ab" if start else "wb") as file:
            self._check_room(start, total)
            while block := self._read(response):
                file.write(block)
                self._report(len(block))
            have = file.tell()
        if total is not None and have < total:
            raise _Transient(f"the connection closed after {have} of {total} bytes")
        if total is not None and have > total:
            self._forget()
            raise _Transient(f"the server sent {have} bytes after announcing {total}")

    def _read(self, response: Any) -> bytes:
        try:
            block: bytes = response.read1(
                _BLOCK
            )  # returns what has arrived, without waiting for a full block
        except TimeoutError as error:
            raise _Transient(f"no data for {self.patience.timeout:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(f"the connection broke ({type(error).__name__})") from error
        return block

    def _report(self, gained: int) -> None:
        self.reported += gained
        self.advance(gained)

    def _check_room(self, start: int, total: int | None) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and free < total - start:
            raise LcmError(
                f"{self.wanted.name} needs {total - start} bytes, {self.part.parent} has {free}",
                "free some space, or set HF_HOME to a folder on another disk",
            )

    def _verified(self) -> Fetched:
        fetched = Fetched(self.part, self._have(), sha256(self.part), self.etag)
        known = self.wanted.bytes
        if known not in (None, fetched.bytes):
            raise self._wrong(f"{fetched.bytes} bytes", f"{known} bytes")
        if self.wanted.sha256 not in ("", fetched.sha256):
            raise self._wrong(f"sha256 {fetched.sha256}", self.wanted.sha256)
        return replace(fetched, path=self.target)

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.memo.unlink(missing_ok=True)

    def _wrong(self, found: str, expected: str) -> IntegrityError:
        self._forget()
        return IntegrityError(
            f"{self.wanted.url} is not the file it should be: {found}, expected {expected}",
            f"run {self.wanted.command} again; if that fails, the file has changed at its source",
        )
