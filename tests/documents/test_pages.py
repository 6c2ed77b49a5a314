"""Pages of the web as documents, from a server on loopback."""

import pytest

from lcm_cli.documents import pages, read
from lcm_cli.documents.formats.reading import ReadOptions
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError

WHOLE = ReadOptions(whole=True)


def serve(server, path, body, kind=None):
    server.files[path] = body
    if kind:
        server.fail(path, {"headers": {"Content-Type": kind}})
    return server.url(path)


@pytest.mark.parametrize(
    ("path", "kind", "body", "suffix"),
    [
        ("/a", "text/html; charset=utf-8", "<p>Grüße.</p>".encode(), ".html"),
        ("/b.html", "text/html; charset=iso-8859-1", "<p>Grüße.</p>".encode("latin-1"), ".html"),
        ("/c.md", "text/markdown", "# Grüße.\n".encode(), ".md"),
        ("/d.srt", "application/octet-stream", b"1\n00:00:01,000 --> 00:00:02,000\nHi.\n", ".srt"),
        ("/e", None, b"<!DOCTYPE html><p>Hello.", ".html"),
        ("/f.html?x=1", "text/html", b"<p>Hello.", ".html"),
    ],
)
def test_content_types(cache, server, path, kind, body, suffix):
    address = (
        serve(server, path.partition("?")[0], body, kind)
        + path[path.find("?") :][: 4 * ("?" in path)]
    )
    (document,) = read([address], WHOLE)
    assert document.skeleton.suffix == suffix
    assert document.passages[0].text in ("Grüße.", "Hi.", "Hello.")


def test_plain_text(cache, server):
    (document,) = read([serve(server, "/notes.txt", b"Hello there.", "text/plain")], WHOLE)
    assert (document.id, document.text, document.skeleton) == ("notes.txt", "Hello there.", None)


def test_an_article_is_read_without_the_menu(cache, server):
    body = b"<nav><p>Menu</p></nav><main><p>" + b"The article says much. " * 9 + b"</p></main>"
    (document,) = read([serve(server, "/x", body, "text/html")])
    assert "Menu" not in document.text and "The article says much." in document.text


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFoundError), (410, NotFoundError), (500, LcmError)]
)
def test_a_missing_page(cache, server, status, error):
    server.files["/a"] = b"x"
    server.fail("/a", {"status": status})
    with pytest.raises(error, match=f"/a: {status}"):
        list(read([server.url("/a")]))


def test_no_server(cache):
    with pytest.raises(LcmError, match="cannot be read"):
        list(read(["http://127.0.0.1:9/a"]))


def test_offline(cache, server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match="offline"):
        list(read([serve(server, "/a", b"<html>a")]))
    assert server.requests == []


def test_a_page_that_is_too_large(cache, server, monkeypatch):
    monkeypatch.setattr(pages, "LARGEST", 1000)
    with pytest.raises(IntegrityError, match="is larger than"):
        list(read([serve(server, "/a", b"<html>" + b"a" * 1000)]))


def test_a_page_that_is_cut_off(cache, server):
    server.files["/a"] = b"<html>" + b"a" * 1000
    server.fail("/a", {"cut": 100})
    with pytest.raises(LcmError, match="cannot be read"):
        list(read([server.url("/a")]))


@pytest.mark.parametrize(
    ("address", "id"),
    [
        ("http://x.y/a/b.html?c=d#e", "b.html"),
        ("http://x.y/", "x.y"),
        ("http://x.y/a%20b/", "a b"),
        ("HTTPS://x.y/..%2F..%2Fetc%2Fpasswd", "passwd"),
    ],
)
def test_ids(address, id):
    assert pages.is_address(address) and pages.page_id(address) == id
