"""Web pages as documents, downloaded by http or https."""

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from lcm_cli.documents.kinds import Kind, sniff
from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError
from lcm_cli.version import __version__

LARGEST = 50 << 20  # bytes
TIMEOUT = 30.0  # seconds without data
_TYPES: dict[str, Kind] = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/markdown": "markdown",
    "text/vtt": "vtt",
    "text/csv": "csv",
    "application/json": "jsonl",
}


def is_address(path: str) -> bool:
    """Return whether `path` is the address of a page rather than a file."""
    return bool(re.match(r"https?://", path, re.IGNORECASE))


def page_id(url: str) -> str:
    """Return the id of a page's document: the last component of its address, or its host."""
    parts = urlsplit(url)
    return PurePosixPath(unquote(parts.path)).name or parts.netloc


def fetch_page(url: str) -> tuple[bytes, Kind]:
    """Return the content at `url` and its format.

    Raises NotFoundError (404, or offline), AuthError (401, 403), IntegrityError for content over
    50 MiB or in an unsupported format, LcmError if there is no answer.
    """
    import http.client
    import urllib.error
    import urllib.request

    from lcm_cli.hub.http import offline, trusted

    if offline():
        hint = "run it without --offline and HF_HUB_OFFLINE"
        raise NotFoundError(f"{url} cannot be read offline", hint)
    headers = {"User-Agent": f"lcm/{__version__}", "Accept": "text/html,*/*;q=0.5"}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT, context=trusted()) as response:
            data: bytes = response.read(LARGEST + 1)
            if len(data) <= LARGEST and response.length:  # read(n) does not report a short body
                raise http.client.IncompleteRead(data, response.length)
            declared = response.headers.get_content_type()
            charset = response.headers.get_content_charset()
            suffix = PurePosixPath(urlsplit(response.url).path).suffix
    except urllib.error.HTTPError as error:
        error.close()
        kinds = {404: NotFoundError, 410: NotFoundError, 401: AuthError, 403: AuthError}
        raise kinds.get(error.code, LcmError)(f"{url}: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise LcmError(f"{url} cannot be read: {reason}", "check the address") from error
    if len(data) > LARGEST:
        raise IntegrityError(f"{url} is larger than {LARGEST >> 20} MiB", "download it first")
    kind = _TYPES.get(declared) or sniff(data[:4096], url, suffix)
    if charset and kind == "html":
        data = _as_utf8(data, charset)
    return data, kind


def _as_utf8(data: bytes, charset: str) -> bytes:
    """Return a page in UTF-8, unless it names its own encoding."""
    from lcm_cli.documents.formats import html

    try:
        return data if html.declares_encoding(data) else data.decode(charset).encode()
    except (LookupError, ValueError):
        return data
