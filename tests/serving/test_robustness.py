"""Bad, large, slow, foreign and unauthorized requests, and a server that loads or stops."""

import json
import socket
import threading
import time

import pytest
from starlette.datastructures import Headers

from lcm_cli import console
from lcm_cli.serving.batching import SharedSpace
from lcm_cli.serving.gate import Gate
from lcm_cli.serving.requests import RefusedError
from lcm_cli.serving.service import load_service, public_name

httpx = pytest.importorskip("httpx")

CAT = {"q": "The cat sleeps.", "source": "en", "target": "de"}


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/translate", {}, 400, "'target' is missing"),
        ("/translate", {"target": "de"}, 400, "'q' is missing"),
        ("/translate", CAT | {"q": 3}, 400, "'q' must be a string"),
        ("/translate", CAT | {"source": "xx"}, 400, "unknown language 'xx'"),
        ("/translate", CAT | {"target": "ja"}, 400, "no Japanese"),
        ("/translate", CAT | {"format": "pdf"}, 400, "text, html, document"),
        ("/translate", CAT | {"alternatives": 99}, 400, "from 0 to 9"),
        ("/translate", CAT | {"q": "\ud800"}, 400, "not valid Unicode"),
        ("/detect", {"q": None}, 400, "'q' is missing"),
        ("/summarize", {"text": "  "}, 400, "the text is empty"),
        ("/summarize", {"text": "A cat.", "length": "many"}, 400, "many"),
        ("/summarize", {"text": "A cat.", "size": 3}, 400, "unknown field 'size'"),
        ("/summarize", {"text": "A cat.", "cite": "yes"}, 400, "'cite' must be true or false"),
        ("/decode", {"concepts": [[1.0, 2.0]], "to": "fr"}, 422, "2 numbers each"),
        ("/decode", {"concepts": [[1.0], [1.0, 2.0]], "to": "fr"}, 400, "list of lists"),
        ("/decode", {"concepts": [[1e300] * 384], "to": "fr"}, 400, "too large"),
        ("/decode", {"concepts": [[0.0] * 384]}, 400, "'to' is missing"),
        ("/decode", {"concepts": [[0.0] * 384], "to": "fr", "beam": 1000}, 400, "1 to 20"),
        ("/decode", {"concepts": [[0.0] * 384], "to": "fr", "beam": True}, 400, "a number"),
    ],
)
def test_bad_values(client, path, body, status, message):
    content = json.dumps(body)
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"] and "--" not in answer.json()["error"]


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b'{"q": NaN}', b"[" * 100_000, b""])
def test_bad_json(client, body):
    answer = client.post("/translate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "JSON" in answer.json()["error"]


def test_bad_paths_methods_and_kinds(client):
    assert client.get("/nowhere").status_code == 404
    wrong = client.get("/translate")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert client.options("/translate").status_code == 405
    assert client.put("/").headers["allow"] == "GET, HEAD"
    assert client.head("/").status_code == 200
    assert client.post("/translate", files={"q": b"x"}).status_code == 415
    error = client.get("/v1/nowhere").json()["error"]
    assert error["message"] == "there is no such path" and error["type"] == "invalid_request_error"


def test_limits_on_bodies_and_sentences(serve):
    with serve(body=1000, sentences=3) as server, httpx.Client(base_url=server.url) as client:
        large = CAT | {"q": "x" * 1000}
        assert client.post("/translate", json=large).status_code == 413

        def chunks():  # without a Content-Length
            yield b"{" + b" " * 600
            yield b" " * 600

        assert client.post("/translate", content=chunks()).status_code == 413
        many = client.post("/translate", json=CAT | {"q": ["A cat. A dog.", "A bird. A man."]})
        assert many.status_code == 413 and "4 sentences" in many.json()["error"]
        assert client.post("/v1/embeddings", json={"input": ["x"] * 4}).status_code == 413
        assert client.post("/translate", json=CAT).status_code == 200


def test_too_many_requests(serve):
    with serve(requests=2) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        long = json.dumps({"input": [f"The cat number {n} sleeps." for n in range(200)]})
        codes = []

        def post():
            answer = client.post("/v1/embeddings", content=long)
            codes.append((answer.status_code, answer.headers.get("retry-after")))

        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) == {(200, None), (429, "2")}
        assert client.post("/translate", json=CAT).status_code == 200


@pytest.mark.slow
def test_the_time_limit(serve):
    with serve(seconds=0.3) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        text = " ".join(f"The cat number {n} sleeps in the garden." for n in range(300))
        slow = client.post("/translate", json=CAT | {"q": text})
        assert slow.status_code == 504 and "0.3 seconds" in slow.json()["error"]
        body = CAT | {"q": text, "format": "document", "stream": True}
        assert "event: error" in client.post("/translate", json=body).text
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            head = "POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            half.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
            assert b" 408 " in half.recv(1000)


def test_the_api_key(serve):
    with serve(key="päss") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        good = {"Authorization": "Bearer päss".encode()}
        for path in ("/", "/static/page.js", "/health", "/languages"):
            assert client.get(path).status_code == 200
        for path in ("/metrics", "/v1/models"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=good).status_code == 200
        for wrong in ({}, {"Authorization": "Bearer pass"}, {"Authorization": "päss".encode()}):
            refused = client.post("/v1/embeddings", json={"input": "x"}, headers=wrong)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert client.post("/translate", json=CAT, headers=wrong).status_code == 401
        assert client.post("/translate", json=CAT, headers=good).status_code == 200
        assert client.post("/translate", json=CAT | {"api_key": "päss"}).status_code == 200
        assert client.post("/translate", data=CAT | {"api_key": "päss"}).status_code == 200
        assert client.post("/translate", json=CAT | {"api_key": "x"}).status_code == 401
        libre = pytest.importorskip("libretranslatepy").LibreTranslateAPI(server.url, "päss")
        assert libre.translate("It is cold.", "en", "de") == "Es ist kalt."
        assert libre.languages()


def test_other_sites_are_refused(client, server):
    def status(**headers):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post("/translate", json=CAT, headers=given).status_code

    assert status(Host="evil.example") == status(Host=f"evil.example:{server.port}") == 421
    assert status(Host=f"localhost:{server.port}") == status(Host="[::1]") == 200
    assert status(Origin="https://evil.example") == status(Origin="null") == 403
    assert status(Origin=server.url) == 200
    assert status(Sec_Fetch_Site="cross-site") == status(Sec_Fetch_Site="same-site") == 403
    assert status(Sec_Fetch_Site="same-origin", Origin="https://proxy.example") == 200
    answer = client.get("/")
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_server_on_all_addresses_answers_for_any_host():
    gate = Gate("0.0.0.0")
    gate.check_origin(Headers({"host": "server.example:8000"}))
    with pytest.raises(RefusedError):
        gate.check_origin(Headers({"host": "a.example", "origin": "http://b.example"}))


def test_unexpected_errors_tell_nothing_but_an_id(serve, capsys, monkeypatch):
    console.configure()
    with serve() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        # A damaged file, as it might be found while a request is answered.
        path = "/".join(["", "secret", "encoder.safetensors"])

        def broken(self, jobs):
            raise OSError(5, "damaged", path)

        with monkeypatch.context() as patch:
            patch.setattr(SharedSpace, "_encoded", broken)
            answer = client.post("/translate", json=CAT)
        assert answer.status_code == 500
        message = answer.json()["error"]
        log = capsys.readouterr().err
        assert message.startswith("internal error ") and message.split()[-1] in log
        assert "OSError" in log and "secret" not in answer.text
        assert "The cat" not in log and "/secret" not in log
        assert client.post("/translate", json=CAT).status_code == 200


def test_the_log_has_a_line_for_each_request(client, capsys):
    console.configure()
    capsys.readouterr()
    client.post("/translate?q=hidden", json=CAT)
    client.get("/a%0Ab%1b")
    log = capsys.readouterr().err.splitlines()
    assert log[0].startswith("POST /translate 200 ") and log[0].endswith(" ms")
    assert log[1].startswith("GET /a\\nb\\x1b 404 ") and len(log) == 2


def test_a_client_that_leaves(server, client):
    body = json.dumps(CAT | {"q": "The cat sleeps. " * 200, "format": "document", "stream": True})
    with client.stream("POST", "/translate", content=body) as answer:
        next(answer.iter_lines())
    end = time.monotonic() + 60
    while server.gate.active and time.monotonic() < end:
        time.sleep(0.05)
    assert server.gate.active == 0
    assert client.post("/translate", json=CAT).status_code == 200


@pytest.mark.slow
def test_a_server_that_loads_and_stops(space, running):
    may_load = threading.Event()

    def load(gate):
        may_load.wait()
        return load_service(space, "extractive", metrics=gate.metrics)

    with running(load) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.get("/health")
        assert answer.status_code == 503 and answer.json() == {"status": "loading"}
        answer = client.post("/translate", json=CAT)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        assert client.get("/").status_code == 200
        may_load.set()
        while client.get("/health").status_code != 200:
            time.sleep(0.05)
        results = []
        text = " ".join(f"The cat number {n} sleeps." for n in range(60))
        accepted = threading.Thread(
            target=lambda: results.append(
                httpx.post(f"{server.url}/translate", json=CAT | {"q": text}, timeout=60)
            )
        )
        while server.gate.active:  # the last answer has arrived, but its request may not be over
            time.sleep(0.01)
        accepted.start()
        while server.gate.active == 0:
            time.sleep(0.01)
        server.runner.stop()
        late = client.post("/translate", json=CAT)
        assert late.status_code == 503 and late.headers["connection"] == "close"
        accepted.join()
        assert results[0].status_code == 200
        server.thread.join(30)
        assert not server.thread.is_alive()
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


def test_names_have_no_folders(tmp_path):
    assert public_name(str(tmp_path / "model")) == "model" and public_name("org/repo") == "org/repo"
