"""lcm serve, in a process of its own."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(surroundings):
    """Start `lcm serve` on a free port; return the process and its URL."""
    processes = []

    def run(*args, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "lcm_cli", "serve", "--port", "0", *args],
            cwd=ROOT, env=surroundings | variables, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        url = None
        for line in process.stderr:
            found = re.search(r"listening on (\S+)/;", line)
            url = found[1] if found else url
            if line.startswith("ready"):
                return process, url
        raise AssertionError(f"lcm serve has ended with {process.wait()}")

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def post(url, body, **headers):
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | headers
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(start, sign):
    process, url = start(LCM_API_KEY="secret")
    body = {"q": "It is cold.", "target": "de", "api_key": "secret"}
    assert post(f"{url}/translate", body)["translatedText"] == "Es ist kalt."
    process.send_signal(sign)
    log = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and log.endswith("stopped\n")
    assert "POST /translate 200" in log and "cold" not in log and "secret" not in log


def test_a_port_in_use(lcm):
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = lcm("serve", "--port", str(other.getsockname()[1]))
    assert result.code == 2 and "cannot listen on 127.0.0.1 port" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (("--port", "70000"), 2, "65535"),
        (("--api-key", ""), 2, "the argument after --api-key is empty"),
        (("--space", "nowhere"), 3, "nowhere"),
        (("--model", "nowhere"), 3, "nowhere"),
        (("--host", "300.0.0.1", "--port", "0"), 2, "cannot listen on 300.0.0.1"),
    ],
)
def test_invalid_calls(lcm, call, code, message):
    result = lcm("serve", *call)
    assert result.code == code and message in result.stderr and result.stdout == ""


def test_the_extra_is_named(lcm, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "lcm_cli.serving.server", raising=False)
    result = lcm("serve")
    assert result.code == 2 and "pip install 'lcm-cli[serve]'" in result.stderr


def test_a_model_that_cannot_be_loaded_ends_the_server(lcm, tmp_path, random_space):
    broken = tmp_path / "space"
    broken.mkdir()
    for path in random_space.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "encoder.safetensors").write_bytes(b"damaged")
    result = lcm("serve", "--port", "0", "--space", broken)
    assert result.code == 5 and "encoder.safetensors" in result.stderr


def test_a_warning_without_a_key(lcm, tmp_path, random_space):
    broken = tmp_path / "space"
    broken.mkdir()
    for path in random_space.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "decoder.safetensors").write_bytes(b"damaged")
    call = ("serve", "--host", "0.0.0.0", "--port", "0", "--space", broken)
    assert "anyone who can reach 0.0.0.0" in lcm(*call).stderr
    assert "anyone" not in lcm(*call, "--api-key", "secret").stderr
