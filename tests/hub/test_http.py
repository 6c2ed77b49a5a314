"""Downloads over bad connections: the right file or a clear error, never a wrong file."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub.http import Patience, Wanted, download, remote_size

BODY = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(tries=3, pause=0.01, timeout=2)
COMMAND = "lcm pull some"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "file.bin"


@pytest.fixture
def url(server):
    server.files["/file.bin"] = BODY
    return server.url("/file.bin")


def get(url, target, **known):
    return download(Wanted(url, command=COMMAND, **known), target, patience=QUICK)


def test_download_returns_size_and_digests(url, target):
    got = get(url, target, bytes=len(BODY), sha256=DIGEST)
    assert target.read_bytes() == BODY
    assert (got.path, got.bytes, got.sha256) == (target, len(BODY), DIGEST)
    assert got.etag
    assert sorted(p.name for p in target.parent.iterdir()) == ["file.bin", "file.bin.lock"]


def test_second_call_sends_no_request(server, url, target):
    get(url, target)
    server.requests.clear()
    assert get(url, target).sha256 == DIGEST
    assert server.requests == []


def test_file_url(tmp_path, target):
    source = tmp_path / "with space.bin"
    source.write_bytes(BODY)
    assert get(source.as_uri(), target).sha256 == DIGEST


def test_missing_file_url(tmp_path, target):
    with pytest.raises(NotFoundError, match="cannot read"):
        get((tmp_path / "none").as_uri(), target)


@pytest.mark.parametrize("cut", [0, 1, 16_384, 100_000, len(BODY) - 1])
def test_broken_connection_resumes(server, url, target, cut):
    server.fail("/file.bin", {"cut": cut})
    assert get(url, target).sha256 == DIGEST
    assert server.sent["/file.bin"] == len(BODY)


def test_many_breaks_with_progress_succeed(server, url, target):
    server.fail("/file.bin", *[{"cut": 30_000}] * 9)
    gained = []
    wanted = Wanted(url, command=COMMAND)
    assert download(wanted, target, patience=QUICK, advance=gained.append).sha256 == DIGEST
    assert sum(gained) == len(BODY)
    assert server.sent["/file.bin"] == len(BODY)


def test_truncated_chunked_response_is_noticed(server, url, target):
    server.chunked = True
    server.fail("/file.bin", {"cut": 50_000})
    assert get(url, target).sha256 == DIGEST


def test_server_that_ignores_ranges_starts_afresh(server, url, target):
    server.ranges = False
    server.fail("/file.bin", {"cut": 50_000})
    gained = []
    download(Wanted(url, command=COMMAND), target, patience=QUICK, advance=gained.append)
    assert target.read_bytes() == BODY
    assert sum(gained) == len(BODY)
    assert min(gained) < 0


def test_without_an_etag_nothing_is_resumed(server, url, target):
    server.etag = lambda body: ""
    server.fail("/file.bin", {"cut": 50_000})
    assert get(url, target).sha256 == DIGEST
    assert [r for _, _, r in server.requests] == ["", ""]


def test_changed_file_is_fetched_from_the_start(server, url, target):
    server.fail("/file.bin", *[{"cut": 50_000}] + [{"status": 503}] * 3)
    with pytest.raises(LcmError):
        get(url, target)
    server.files["/file.bin"] = new = bytes(reversed(BODY))
    assert get(url, target).sha256 == hashlib.sha256(new).hexdigest()


def test_part_of_another_url_is_not_resumed(server, url, target):
    server.fail("/file.bin", *[{"cut": 50_000}] + [{"status": 503}] * 3)
    with pytest.raises(LcmError):
        get(url, target)
    server.files["/other.bin"] = other = bytes(reversed(BODY))
    assert get(server.url("/other.bin"), target).path.read_bytes() == other


def test_complete_part_is_renamed_without_a_transfer(server, url, target):
    get(url, target)
    memo = {"url": url, "validator": server.etag(BODY)}
    target.rename(target.with_name("file.bin.part"))
    target.with_name("file.bin.part.json").write_text(json.dumps(memo))
    server.sent.clear()
    assert get(url, target).sha256 == DIGEST
    assert server.sent == {}


def test_server_errors_are_retried(server, url, target):
    server.fail("/file.bin", {"status": 503}, {"status": 500})
    assert get(url, target).sha256 == DIGEST


def test_server_that_keeps_failing(server, url, target):
    server.fail("/file.bin", *[{"status": 502}] * 9)
    with pytest.raises(LcmError, match=r"502 Bad Gateway \(tried 3 times\)") as caught:
        get(url, target)
    assert COMMAND in caught.value.hint
    assert not target.exists()


def test_too_many_requests_waits_as_requested(server, url, target):
    server.fail("/file.bin", {"status": 429, "headers": {"Retry-After": "1"}})
    started = time.monotonic()
    assert get(url, target).sha256 == DIGEST
    assert time.monotonic() - started >= 1


def test_too_many_requests_for_too_long(server, url, target):
    server.fail("/file.bin", {"status": 429, "headers": {"Retry-After": "4000"}})
    with pytest.raises(LcmError, match="asks to wait 4000 s"):
        get(url, target)


def test_retry_after_as_a_date(server, url, target):
    server.fail(
        "/file.bin", {"status": 503, "headers": {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}}
    )
    assert get(url, target).sha256 == DIGEST


def test_silent_server_times_out(server, url, target):
    server.fail("/file.bin", *[{"pause": 1.0}] * 3)
    with pytest.raises(LcmError, match=r"no data|no answer"):
        download(Wanted(url, command=COMMAND), target, patience=Patience(2, 0.01, 0.2))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFoundError), (410, NotFoundError), (403, AuthError), (401, AuthError)],
)
def test_final_errors_are_not_retried(server, url, target, status, kind):
    server.fail("/file.bin", {"status": status})
    with pytest.raises(kind, match=str(status)):
        get(url, target)
    assert len(server.requests) == 1


def test_wrong_checksum(server, url, target):
    with pytest.raises(IntegrityError, match=DIGEST):
        get(url, target, sha256="0" * 64)
    assert [p.name for p in target.parent.glob("file.bin*")] == ["file.bin.lock"]


def test_wrong_size_is_known_before_the_transfer(server, url, target):
    server.fail("/file.bin", {"pause": 0.1})
    with pytest.raises(IntegrityError, match="300000 bytes on the server, expected 12 bytes"):
        get(url, target, bytes=12)
    assert server.sent.get("/file.bin", 0) < len(BODY)


def test_announced_length_is_too_large(server, url, target):
    server.ranges = False
    server.fail("/file.bin", *[{"length": len(BODY) + 10}] * 4)
    with pytest.raises(LcmError, match="closed after 300000 of 300010 bytes"):
        get(url, target)
    assert not target.exists()


def test_file_already_there_but_wrong_is_replaced(url, target):
    target.parent.mkdir()
    target.write_bytes(BODY[:-5])
    assert get(url, target, sha256=DIGEST).bytes == len(BODY)


def test_no_network(target):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(
        LcmError, match=rf"no network: cannot reach 127.0.0.1:{port} for w.pt"
    ) as caught:
        get(f"http://127.0.0.1:{port}/w.pt", target)
    assert COMMAND in caught.value.hint


def test_offline(monkeypatch, url, target, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match=r"file\.bin is not on this machine") as caught:
        get(url, target)
    assert COMMAND in caught.value.hint
    local = tmp_path / "local"
    local.write_bytes(BODY)
    assert get(local.as_uri(), target).sha256 == DIGEST


def test_other_schemes_are_refused(target):
    with pytest.raises(UsageError, match="ftp://"):
        get("ftp://example.org/x", target)


def test_unsafe_redirect_is_refused(server, url, target):
    server.fail("/file.bin", {"status": 302, "headers": {"Location": "ftp://example.org/file.bin"}})
    with pytest.raises(LcmError, match="not safe"):
        get(url, target)


def test_redirect_keeps_the_range(server, url, target):
    server.files["/mirror.bin"] = BODY
    there = {"status": 302, "headers": {"Location": server.url("/mirror.bin")}}
    server.fail("/file.bin", there, there)
    server.fail("/mirror.bin", {"cut": 50_000})
    assert get(url, target).sha256 == DIGEST
    assert server.sent["/mirror.bin"] == len(BODY)


def test_remote_size(server, url, monkeypatch):
    assert remote_size(url) == len(BODY)
    assert remote_size(server.url("/none")) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert remote_size(url) is None


CHILD = """
import sys
from pathlib import Path
from lcm_cli.hub.http import Wanted, download
download(Wanted(sys.argv[1]), Path(sys.argv[2]))
"""


def child(url: str, target: Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(target)],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="kills as Unix does")
def test_killed_download_resumes(server, url, target):
    server.fail("/file.bin", {"pause": 0.1})
    process = child(url, target)
    part = target.with_name("file.bin.part")
    while not (part.exists() and part.stat().st_size >= 50_000):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    kept = part.stat().st_size
    assert get(url, target).sha256 == DIGEST
    assert [wanted for _, _, wanted in server.requests] == ["", f"bytes={kept}-"]


def test_three_processes_at_once_transfer_one_file(server, url, target):
    server.fail("/file.bin", {"pause": 0.02})
    processes = [child(url, target) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert target.read_bytes() == BODY
    assert server.sent["/file.bin"] == len(BODY)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
def test_full_disk(server, url, target):
    limit = 100_000

    def small_files():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = child(url, target, preexec_fn=small_files)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert os.strerror(errno.EFBIG) in errors
    assert not target.exists()
    assert get(url, target).sha256 == DIGEST  # with enough space


def test_lack_of_space_is_noticed_before_the_transfer(server, url, target, monkeypatch):
    usage = type(shutil.disk_usage("."))(10, 10, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LcmError, match=r"needs 300000 bytes, .* has 1000"):
        get(url, target)
