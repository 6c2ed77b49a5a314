"""The command lcm pull."""

import io
import json
import tomllib

import pytest

from lcm_cli.app import main

FILES = {"encoder": "encoder.pt", "decoder": "decoder.pt", "tokenizer": "spm.model"}


@pytest.fixture(autouse=True)
def config_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config"


@pytest.fixture
def card(cache, official, tmp_path):
    urls = {role: {"url": (official.folder / file).as_uri()} for role, file in FILES.items()}
    return official.card(tmp_path / "small.toml", urls)


def terminal(monkeypatch, answer):
    """Make standard input and error look like a terminal where a user types `answer`."""
    typed = io.StringIO(f"{answer}\n")
    typed.isatty = lambda: True
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", typed)
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "dumb")
    return shown


def test_prints_only_the_path(cache, card, capsys):
    assert main(["pull", str(card), "--accept-licence"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{cache / 'spaces' / 'small'}\n"
    assert "licence: CC-BY-NC-4.0 (not for sale)" in shown.err
    assert "to download: 0.3 MB" in shown.err
    assert main(["pull", str(card)]) == 0  # already present: no licence to accept
    assert capsys.readouterr().out == shown.out


def test_quiet(card, capsys):
    assert main(["pull", str(card), "--accept-licence", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_without_a_terminal_the_licence_must_be_accepted(cache, card, capsys):
    assert main(["pull", str(card)]) == 4
    shown = capsys.readouterr()
    assert "error: small is under CC-BY-NC-4.0 (not for sale)" in shown.err
    assert "--accept-licence" in shown.err
    assert shown.out == ""
    assert not (cache / "spaces").exists()


def test_asks_at_a_terminal(cache, card, capsys, monkeypatch):
    shown = terminal(monkeypatch, "y")
    assert main(["pull", str(card)]) == 0
    assert shown.getvalue().count("Use small under CC-BY-NC-4.0?") == 1
    assert capsys.readouterr().out == f"{cache / 'spaces' / 'small'}\n"


def test_licence_is_refused(cache, card, monkeypatch):
    shown = terminal(monkeypatch, "n")
    assert main(["pull", str(card)]) == 4
    assert "was not accepted" in shown.getvalue()
    assert not (cache / "spaces").exists()


def test_dry_run(cache, card, official, capsys):
    assert main(["pull", str(card), "--dry-run"]) == 0
    shown = capsys.readouterr()
    for role, file in FILES.items():
        size = (official.folder / file).stat().st_size
        line = next(line for line in shown.out.splitlines() if line.startswith(role))
        assert line.split() == [role, (official.folder / file).as_uri(), str(size)]
    assert "licence: CC-BY-NC-4.0" in shown.err
    assert not cache.exists()


def test_dry_run_of_the_official_space(cache, capsys):
    assert main(["pull", "sonar", "--dry-run", "--offline"]) == 0
    shown = capsys.readouterr()
    assert "sonar_text_encoder.pt" in shown.out
    assert "about 3064365056" in shown.out
    assert "to download: about 6.53 GB" in shown.err
    assert "not for commercial" in shown.err


def test_json(cache, card, official, capsys):
    command = ["pull", str(card), "--json"]
    assert main([*command, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    sizes = {role: (official.folder / file).stat().st_size for role, file in FILES.items()}
    assert {part["role"]: part["bytes"] for part in planned.pop("parts")} == sizes
    assert planned == {
        "name": "small",
        "kind": "space",
        "path": str(cache / "spaces" / "small"),
        "already_present": False,
        "licence": "CC-BY-NC-4.0",
    }
    made_of = {"revision": None, "commit": None}
    assert main([*command, "--accept-licence"]) == 0
    fetched = {"bytes_fetched": sum(sizes.values())}
    assert json.loads(capsys.readouterr().out) == planned | fetched | made_of
    assert main(command) == 0
    present = {"already_present": True, "bytes_fetched": 0}
    assert json.loads(capsys.readouterr().out) == planned | present | made_of


def test_json_asks_nothing(cache, card, capsys, monkeypatch):
    shown = terminal(monkeypatch, "y")
    assert main(["pull", str(card), "--json"]) == 4
    assert "[y/N]" not in shown.getvalue()
    assert "--accept-licence" in shown.getvalue()
    assert capsys.readouterr().out == ""


def test_set_default(card, config_home):
    assert main(["pull", str(card), "--accept-licence", "--set-default"]) == 0
    assert tomllib.loads((config_home / "lcm" / "lcm.toml").read_text())["space"] == "small"


def test_force_replaces(cache, card):
    assert main(["pull", str(card), "--accept-licence"]) == 0
    target = cache / "spaces" / "small" / "encoder.safetensors"
    whole = target.read_bytes()
    target.write_bytes(b"")
    assert main(["pull", str(card), "--accept-licence", "--force"]) == 0
    assert target.read_bytes() == whole


def test_unknown_name(cache, capsys):
    assert main(["pull", "sonr"]) == 3
    assert "did you mean sonar" in capsys.readouterr().err


def test_offline(cache, capsys):
    assert main(["pull", "sonar", "--offline", "--accept-licence"]) == 3
    shown = capsys.readouterr().err
    assert "sonar_text_encoder.pt is not on this machine" in shown
    assert "run lcm pull sonar without --offline" in shown


def test_broken_weights(cache, card, official, tmp_path, capsys):
    (tmp_path / "cut.pt").write_bytes((official.folder / "decoder.pt").read_bytes()[:5000])
    cut = (tmp_path / "cut.pt").as_uri()
    card.write_text(card.read_text().replace((official.folder / "decoder.pt").as_uri(), cut))
    assert main(["pull", str(card), "--accept-licence"]) == 5
    assert f"{cut} is not a complete torch file" in capsys.readouterr().err


def test_name_with_a_path(card, capsys):
    card.write_text(card.read_text().replace('name = "small"', 'name = "../../x"'))
    assert main(["pull", str(card), "--accept-licence"]) == 5
    assert "Traceback" not in capsys.readouterr().err


def test_command_pulls_what_it_needs(hub_server, random_space, tmp_path, capsys):
    files = {path.name: path.read_bytes() for path in random_space.iterdir()}
    hub_server.publish("org/space", files)
    (tmp_path / "text.txt").write_text("The cat sleeps.")
    command = ["translate", "text.txt", "--from", "en", "--to", "fr", "--space", "org/space"]
    assert main(command) == 3
    assert "hint: run: lcm pull org/space" in capsys.readouterr().err
    assert main([*command, "--pull"]) == 0
    shown = capsys.readouterr()
    assert "to download:" in shown.err
    hub_server.requests.clear()
    assert main([*command, "--pull"]) == 0
    assert hub_server.requests == []  # present checkpoints need no request
    assert capsys.readouterr().out == shown.out


def test_pull_option_needs_the_licence_accepted(cache, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["translate", "text.txt", "--to", "fr", "--space", "sonar", "--pull"]) == 4
    assert "if you agree, run: lcm pull sonar --accept-licence" in capsys.readouterr().err


def test_pull_option_exists_only_with_checkpoint_options(cache, capsys):
    assert main(["languages", "--pull"]) == 2


def test_no_name(cache, capsys):
    assert main(["pull", ""]) == 2
    assert "the argument after pull is empty" in capsys.readouterr().err
