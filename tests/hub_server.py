"""A Hugging Face Hub on loopback, for look-ups, downloads and uploads by the real client.

Repositories have commits, branches and tags. As on the Hub, large files are behind a redirect,
with the headers X-Repo-Commit, X-Linked-ETag and X-Linked-Size. Tests can inject faults, and every
request is recorded with the number of bytes sent.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

LFS_FROM = 4096  # bytes; smaller files are stored in git itself
BLOCK = 1 << 14  # bytes per write
SILENCE = 10.0  # maximum length of a silence, in seconds


@dataclass
class Fault:
    """The fault of one request; after `cut` bytes of the body the connection closes."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    length: int | None = None  # a false Content-Length
    body: bytes | None = None  # sent instead of the file
    pause: float = 0.0  # before each block of the body, in seconds
    silent_at: int | None = None  # stop sending after so many bytes but keep the connection open


@dataclass
class Asked:
    """A request, and the number of bytes of a file sent in answer."""

    method: str
    path: str
    range: str = ""
    sent: int = 0


@dataclass
class Repo:
    """A repository: its files by commit, and the commit of each branch and tag."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit to a branch; return its name."""
        name = hashlib.sha1(repr(sorted(files.items())).encode() + bytes([len(self.commits)]))
        self.commits[name.hexdigest()] = dict(files)
        self.refs[ref] = name.hexdigest()
        return name.hexdigest()

    def files(self, ref: str) -> dict[str, bytes] | None:
        """Return the files at a branch, tag or commit; None if it does not exist."""
        return self.commits.get(self.refs.get(ref, ref))


class HubServer(http.server.ThreadingHTTPServer):
    """The server. `faults` lists the method, a part of the path and the fault of later requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[tuple[str, str, Fault]] = []
        self.requests: list[Asked] = []
        self.token = ""  # required for uploads
        self.lock = threading.Lock()
        self.over = threading.Event()  # ends every silence

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, repo: str, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Commit `files` to a repository, created if missing; return the commit."""
        for content in files.values():
            self.blobs[hashlib.sha256(content).hexdigest()] = content
        return self.repos.setdefault(repo, Repo()).commit(files, ref)

    def fail(self, part: str, *faults: Fault, method: str = "GET") -> None:
        """Answer the next requests whose path contains `part` with one of these faults each."""
        self.faults += [(method, part, fault) for fault in faults]

    def fault(self, method: str, path: str) -> Fault:
        with self.lock:
            for one in self.faults:
                if one[0] == method and one[1] in path:
                    self.faults.remove(one)
                    return one[2]
        return Fault()

    def sent(self, part: str = "") -> int:
        """Return the number of bytes of files sent for paths that contain `part`."""
        return sum(one.sent for one in self.requests if part in one.path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, which the tests provoke."""


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(name: str, content: bytes) -> bool:
    return len(content) >= LFS_FROM or name.endswith((".safetensors", ".bin"))


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        self.path = urllib.parse.unquote(self.path.partition("?")[0])
        self.asked = Asked(self.command, self.path, self.headers.get("Range", ""))
        self.server.requests.append(self.asked)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.met = self.server.fault(self.command, self.path)
        if self.met.status:
            return self._status(self.met.status, self.met.headers)
        for pattern, answer in _ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {self.path}"):
                return answer(self, **found.groupdict())
        return self._status(404, {})

    # Requests of downloads

    def _info(self, repo: str, ref: str | None = None) -> None:
        known = self.server.repos.get(repo)
        if known is None:
            return self._status(404, {"X-Error-Code": "RepoNotFound"})
        files = known.files(ref or "main")
        if files is None:
            return self._status(404, {"X-Error-Code": "RevisionNotFound"})
        commit = known.refs.get(ref or "main", ref)
        about = {"id": repo, "sha": commit, "private": known.private, "xetEnabled": False}
        about |= {"tags": [], "downloads": 0, "disabled": False, "gated": False}
        about["cardData"] = _front_matter(files.get("README.md", b""))
        about["siblings"] = [_sibling(name, content) for name, content in files.items()]
        self._json(about)

    def _resolve(self, repo: str, ref: str, name: str) -> None:
        known = self.server.repos.get(repo, Repo())
        files = known.files(ref) or {}
        if name not in files:
            return self._status(404, {"X-Error-Code": "EntryNotFound"})
        content, commit = files[name], known.refs.get(ref, ref)
        headers = {"X-Repo-Commit": commit}
        if not is_lfs(name, content):
            return self._file(content, headers | {"ETag": f'"{git_oid(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        elsewhere = self.server.url.replace("127.0.0.1", "localhost")  # another host, as on the Hub
        self._status(302, headers | {"Location": f"{elsewhere}/lfs/{digest}"})

    def _lfs(self, digest: str) -> None:
        self._file(self.server.blobs[digest], {"ETag": f'"{digest}"'})

    def _file(self, content: bytes, headers: Mapping[str, str]) -> None:
        content = content if self.met.body is None else self.met.body
        start = int(re.sub(r"bytes=(\d+)-.*", r"\1", self.asked.range) or 0)
        if start and start >= len(content):
            return self._status(416, {"Content-Range": f"bytes */{len(content)}"})
        rest = content[start:]
        self.send_response(206 if start else 200)
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        for name, value in {**headers, **self.met.headers}.items():
            self.send_header(name, value)
        length = len(rest) if self.met.length is None else self.met.length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "GET":
            self._send(rest)

    def _send(self, body: bytes) -> None:
        end = len(body) if self.met.cut is None else min(self.met.cut, len(body))
        for start in range(0, end, BLOCK):
            time.sleep(self.met.pause)
            block = body[start : min(start + BLOCK, end)]
            self.wfile.write(block)
            self.asked.sent += len(block)
            if self.met.silent_at is not None and self.asked.sent >= self.met.silent_at:
                self.server.over.wait(SILENCE)
                self.close_connection = True
                return
        if self.met.cut is not None or self.met.length is not None:
            self.close_connection = True

    # Requests of uploads

    def _create(self) -> None:
        if not self._allowed():
            return
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if repo in self.server.repos:
            return self._json({"url": f"{self.server.url}/{repo}"}, 409)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.repos[repo] = Repo(private=bool(private))
        self.server.repos[repo].commit({".gitattributes": b""})
        self._json({"url": f"{self.server.url}/{repo}"})

    def _validate(self) -> None:
        metadata = _front_matter(json.loads(self.body)["content"].encode())
        errors = [] if metadata and metadata.get("license") else [{"message": "no license"}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, repo: str, ref: str) -> None:
        if not self._allowed():
            return
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if is_lfs(one["path"], b" " * one["size"]) else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(self.body)["files"]
        ]
        self._json({"files": modes})

    def _batch(self, repo: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            if one["oid"] not in self.server.blobs:
                href = f"{self.server.url}/upload/{one['oid']}"
                one["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(one)
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self._status(400, {})
        self.server.blobs[digest] = self.body
        self._status(200, {})

    def _commit(self, repo: str, ref: str) -> None:
        if not self._allowed():
            return
        known = self.server.repos[repo]
        files = dict(known.files(ref) or {})
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        commit = known.commit(files, ref)
        self._json({"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit})

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server.token}":
            return True
        self._status(401, {})
        return False

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        end = len(body) if self.met.cut is None else self.met.cut
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:end])
        self.close_connection = self.met.cut is not None

    def _status(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REF = r"(?P<ref>[^/]+)"
_ROUTES = {
    rf"GET /api/models/{_REPO}(/revision/{_REF})?": _Handler._info,
    rf"(GET|HEAD) /{_REPO}/resolve/{_REF}/(?P<name>.+)": _Handler._resolve,
    r"(GET|HEAD) /lfs/(?P<digest>\w+)": _Handler._lfs,
    rf"GET /api/datasets/{_REPO}/revision/(?P<ref>.+)": _Handler._info,
    rf"(GET|HEAD) /datasets/{_REPO}/resolve/{_REF}/(?P<name>.+)": _Handler._resolve,
    r"POST /api/repos/create": _Handler._create,
    r"POST /api/validate-yaml": _Handler._validate,
    rf"POST /api/models/{_REPO}/preupload/{_REF}": _Handler._preupload,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": _Handler._batch,
    r"PUT /upload/(?P<digest>\w+)": _Handler._upload,
    rf"POST /api/models/{_REPO}/commit/{_REF}": _Handler._commit,
}


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    """Describe a file as the Hub does: an LFS file by its SHA-256, others by git's own digest."""
    about: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_oid(content)}
    if is_lfs(name, content):
        digest = hashlib.sha256(content).hexdigest()
        about["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
    return about


def _front_matter(card: bytes) -> dict[str, Any] | None:
    parts = card.decode().split("---\n")
    return yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
