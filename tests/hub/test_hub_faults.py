"""The Hub's own client against a Hub that fails: the right file or a clear error, nothing else.

docs/checkpoints.md states what is guaranteed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import Fault, git_oid

from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError
from lcm_cli.hub import snapshot

REPO = "org/files"
BIG = bytes(range(256)) * 1200  # 300 KB: an LFS file with many blocks
FILES = {"config.json": b'{"kind": "nothing"}', "model.safetensors": BIG, "README.md": b"text"}
CHUNK = 1000
LFS = "/lfs/"
CONFIG = "/config.json"


@pytest.fixture
def hub(hub_server, monkeypatch):
    hub_server.publish(REPO, FILES)
    # The client's blocks of 10 MB are larger than these files.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    return hub_server


def fetch(said=None, names=("config.json", "model.safetensors")):
    notice = (lambda _: None) if said is None else said.append
    remote = snapshot.describe_remote(REPO, "main", "lcm pull it", notice)
    folder = snapshot.fetch_snapshot(
        remote, lambda known: [n for n in known if n in names], "lcm pull it"
    )
    snapshot.record_revision(remote, "main")
    return folder


def is_right(folder):
    return all((folder / n).read_bytes() == FILES[n] for n in ("config.json", "model.safetensors"))


def nothing_wrong_is_here():
    """Return True; fail if a cached file differs from the published one."""
    for path in snapshot.hub_cache().glob("*/snapshots/*/*"):
        assert path.read_bytes() == FILES[path.name]
    return True


def test_without_a_fault(hub):
    folder = fetch()
    assert is_right(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert snapshot.local_snapshot(REPO, "main", list(FILES)[:2]) == folder
    assert hub.sent(LFS) == len(BIG)


def test_second_pull_sends_no_file(hub):
    fetch()
    hub.requests.clear()
    assert is_right(fetch())
    assert [one.path for one in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_only_what_is_missing_is_fetched_again(hub):
    folder = fetch()
    blob = (folder / "config.json").resolve()
    (folder / "config.json").unlink()
    blob.unlink()
    hub.requests.clear()
    assert is_right(fetch())
    assert hub.sent() == len(FILES["config.json"])


@pytest.mark.parametrize("cut", [0, 1, 4095, 16_384, 100_001, len(BIG) - 1])
def test_one_break(hub, cut):
    hub.fail(LFS, Fault(cut=cut))
    assert is_right(fetch())
    assert hub.sent(LFS) < len(BIG) + CHUNK  # it resumed


def test_repeated_breaks(hub):
    hub.fail(LFS, *[Fault(cut=n) for n in (10_000, 0, 50_000)])
    assert is_right(fetch())
    assert hub.sent(LFS) < len(BIG) + 3 * CHUNK


def test_permanent_break(hub):
    hub.fail(LFS, *[Fault(cut=0)] * 60)
    with pytest.raises(LcmError, match="cannot reach the Hub for org/files") as caught:
        fetch()
    assert "lcm pull it" in caught.value.hint
    assert nothing_wrong_is_here()
    hub.faults.clear()
    assert is_right(fetch())


def test_break_in_the_description(hub):
    hub.fail("/api/models", Fault(cut=20))
    said = []
    assert is_right(fetch(said))
    assert "next try" in said[0]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("part", ["/api/models", LFS, "/resolve/"])
def test_server_error_that_passes(hub, status, part):
    for method in ("GET", "HEAD"):
        hub.fail(part, Fault(status=status), method=method)
    assert is_right(fetch())


@pytest.mark.parametrize("part", ["/api/models", LFS, "/resolve/"])
def test_server_error_that_stays(hub, part):
    for method in ("GET", "HEAD"):
        hub.fail(part, *[Fault(status=503)] * 60, method=method)
    with pytest.raises(LcmError, match="the Hub answers 503 for org/files") as caught:
        fetch()
    assert caught.value.exit_code == 1
    assert nothing_wrong_is_here()


def test_too_many_requests_then_success(hub, monkeypatch):
    hub.fail("/api/models", Fault(status=429, headers={"Retry-After": "7"}))
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    assert is_right(fetch())
    assert 7 in waits


def test_too_many_requests_for_too_long(hub):
    hub.fail("/api/models", Fault(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(LcmError, match=r"slow down \(429, retry after 3600\)") as caught:
        fetch()
    assert caught.value.hint == "run lcm pull it later"
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (401, "RepoNotFound", NotFoundError, "no repository org/files on the Hub"),
        (403, "GatedRepo", AuthError, "org/files is gated"),
        (403, "", AuthError, r"access denied \(403\)"),
        (404, "RepoNotFound", NotFoundError, "no repository org/files on the Hub"),
        (404, "RevisionNotFound", NotFoundError, "no revision 'main'"),
    ],
)
def test_refused(hub, status, code, kind, words):
    hub.fail("/api/models", Fault(status=status, headers={"X-Error-Code": code}))
    with pytest.raises(kind, match=words):
        fetch()
    assert len(hub.requests) == 1  # a retry would not help


def test_access_that_ends_between_two_files(hub):
    hub.fail("/resolve/", Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), method="HEAD")
    with pytest.raises(AuthError, match="is gated"):
        fetch()
    assert nothing_wrong_is_here()


@pytest.mark.parametrize("length", [10, 1 << 20])
def test_wrong_announced_length(hub, length):
    hub.fail(LFS, Fault(length=length))
    assert is_right(fetch())


@pytest.mark.parametrize("body", [BIG[:1000], BIG + b"more", b""])
def test_file_of_another_length(hub, body):
    hub.fail(LFS, Fault(body=body))
    try:
        assert is_right(fetch())
    except LcmError:
        assert nothing_wrong_is_here()
        assert is_right(fetch())


def test_file_of_another_length_every_time(hub):
    hub.fail(LFS, *[Fault(body=BIG + b"more")] * 60)
    with pytest.raises(IntegrityError, match="differs in length from what the Hub announces"):
        fetch()
    assert nothing_wrong_is_here()


def test_other_bytes_of_the_same_length(hub):
    hub.fail(LFS, Fault(body=b"x" * len(BIG)))
    with pytest.raises(IntegrityError, match=r"differs from the digest") as caught:
        fetch()
    assert "it was deleted" in caught.value.hint
    assert nothing_wrong_is_here()
    assert is_right(fetch())


def test_other_bytes_of_a_file_that_git_keeps(hub):
    hub.fail(CONFIG, Fault(body=b'{"kind": "another"}'))
    with pytest.raises(IntegrityError, match=r"config\.json differs from the digest"):
        fetch()
    assert nothing_wrong_is_here()
    assert is_right(fetch())


def test_etag_of_another_file(hub):
    """The client stores it under the wrong name, but the bytes are right."""
    other = {"ETag": f'"{git_oid(b"another")}"'}
    hub.fail(CONFIG, Fault(headers=other), method="HEAD")
    assert is_right(fetch())


@pytest.mark.parametrize("body", [b"x" + BIG[1:], BIG[:-1], b""])
def test_damaged_cached_file_is_replaced(hub, body):
    path = (fetch() / "model.safetensors").resolve()
    path.write_bytes(body)
    hub.requests.clear()
    assert is_right(fetch())
    assert hub.sent() == len(BIG)


def test_silence_in_the_middle(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail(LFS, Fault(silent_at=100_000))
    assert is_right(fetch())


def test_slow(hub):
    hub.fail(LFS, Fault(pause=0.02))
    assert is_right(fetch())


def test_branch_that_moves_meanwhile(hub):
    """Files are requested by commit, so two versions are never mixed."""
    remote = snapshot.describe_remote(REPO, "main", "lcm pull it")
    hub.publish(REPO, {name: body + b" " for name, body in FILES.items()})
    folder = snapshot.fetch_snapshot(
        remote, lambda _: ["config.json", "model.safetensors"], "lcm pull it"
    )
    assert is_right(folder)


def test_nobody_there(cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LcmError, match="no network: cannot reach the Hub for org/files"):
        fetch()


CHILD = """
from lcm_cli.hub import snapshot
remote = snapshot.describe_remote("org/files", "main", "lcm pull it")
names = ["config.json", "model.safetensors"]
print(snapshot.fetch_snapshot(remote, lambda _: names, "lcm pull it"))
snapshot.record_revision(remote, "main")
"""


def child():
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills as Unix does")
@pytest.mark.parametrize("after", [1, 23 << 20])
def test_killed(hub, monkeypatch, after):
    """Blocks of 10 MB written before the kill are not fetched again."""
    large = os.urandom(1 << 20) * 25
    monkeypatch.setitem(FILES, "model.safetensors", large)
    hub.publish(REPO, FILES)
    hub.fail(LFS, Fault(silent_at=after))
    process = child()
    while hub.sent(LFS) < after:
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (
        snapshot.local_snapshot(REPO, "main", ["config.json"]) is None
    )  # nothing is recorded as fetched
    assert nothing_wrong_is_here()
    kept = sum(path.stat().st_size for path in snapshot.hub_cache().glob("*/blobs/*.incomplete"))
    hub.requests.clear()
    assert is_right(fetch())
    assert hub.sent(LFS) == len(large) - kept
    assert kept >= after // (10 << 20) * (10 << 20) - (10 << 20)


@pytest.mark.slow
def test_three_at_once(hub):
    hub.fail(LFS, Fault(pause=0.02))
    processes = [child() for _ in range(3)]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert is_right(Path(ends[0][0].strip()))
    assert hub.sent(LFS) == len(BIG)
