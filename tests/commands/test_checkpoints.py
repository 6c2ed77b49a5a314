"""The commands of lcm checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lcm_cli.app import main
from lcm_cli.files import sha256
from lcm_cli.models.checkpoint import build, save
from lcm_cli.models.config import preset
from lcm_cli.transfer.convert import convert


@pytest.fixture(autouse=True)
def config_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    save(build(preset("base", "nano", concept_dim=16)), tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def published(hub_server, model):
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub_server.publish("org/model", files | {"README.md": b"---\nlicense: mit\n---\n"})
    return hub_server


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_list(cache, capsys):
    assert main(["checkpoints", "list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == [
        "name",
        "kind",
        "here",
        "size",
        "numbers",
        "last",
        "used",
        "licence",
    ]
    rows = {line.split()[0]: line.split() for line in shown[1:]}
    assert rows["tiny"][1:3] == ["space", "bundled"]
    assert rows["sonar"][1:] == ["space", "no", "CC-BY-NC-4.0"]


def test_list_json_has_stable_keys(published, capsys):
    assert main(["pull", "org/model"]) == 0
    capsys.readouterr()
    assert main(["checkpoints", "list", "--here", "--json"]) == 0
    found = {one["name"]: one for one in lines(capsys)}
    keys = ["name", "kind", "summary", "where", "path", "bytes", "numbers", "last_used", "licence"]
    assert all(list(one) == [*keys, "source", "revision", "adapter"] for one in found.values())
    assert found["org/model"]["where"] == "hub"
    assert found["org/model"]["licence"] == "mit"
    assert "sonar" not in found


def test_list_asks_for_updates_only_on_request(published, capsys):
    main(["pull", "org/model"])
    published.publish("org/model", published.repos["org/model"].files("main"))
    published.requests.clear()
    main(["checkpoints", "list"])
    assert published.requests == []
    capsys.readouterr()
    assert main(["checkpoints", "list", "--here", "--updates", "--json"]) == 0
    found = {one["name"]: one["update"] for one in lines(capsys)}
    assert "org/model@main is" in found["org/model"]
    assert found["tiny"] == ""


def test_show(cache, capsys):
    assert main(["checkpoints", "show", "sonar-llm-100m"]) == 0
    shown = capsys.readouterr().out
    assert "raxtemur/sonar-llm-100m" in shown
    assert "no; to download it: lcm pull sonar-llm-100m" in shown
    assert "none published: recorded at the first pull" in shown
    assert main(["checkpoints", "show", "tiny", "--json"]) == 0
    (found,) = lines(capsys)
    assert found["card"]["files"]["encoder"]["sha256"]


def test_show_escapes_control_characters(published, capsys):
    readme = b'---\nlicense: "mit\\e[31m"\n---\n'
    files = published.repos["org/model"].files("main") | {"README.md": readme}
    published.publish("org/model", files)
    main(["pull", "org/model", "--accept-licence"])
    for command in (["list"], ["show", "org/model"], ["list", "--json"]):
        capsys.readouterr()
        assert main(["checkpoints", *command]) == 0
        shown = capsys.readouterr()
        if command != ["show", "org/model"]:  # results in pipes stay unchanged
            assert "\x1b" not in shown.out
        assert "\x1b" not in shown.err


def test_verify(published, capsys):
    main(["pull", "org/model"])
    folder = capsys.readouterr().out.strip()
    assert main(["checkpoints", "verify", "org/model"]) == 0
    assert capsys.readouterr().out.count("ok ") == 3
    weights = Path(folder, "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["checkpoints", "verify", "--json"]) == 5
    shown = capsys.readouterr()
    wrong = [one for one in map(json.loads, shown.out.splitlines()) if one["status"] != "ok"]
    assert [one["file"] for one in wrong] == [f"{folder}/model.safetensors"]
    assert "hint: run: lcm pull org/model --force" in shown.err
    assert main(["pull", "org/model", "--force"]) == 0
    assert main(["checkpoints", "verify", "org/model"]) == 0


def test_user_folders(cache, random_space, model, capsys):
    """Folders of a model, a training run and a space, with and without a record of digests."""
    run = Path("run")
    run.mkdir()
    shutil.copytree(model, run / "model")
    for folder, kind, files in ((model, "model", 2), (run, "model", 2), (random_space, "space", 4)):
        assert main(["checkpoints", "show", str(folder), "--json"]) == 0
        (found,) = lines(capsys)
        assert (found["name"], found["kind"], found["where"]) == (str(folder), kind, "folder")
        assert main(["checkpoints", "verify", str(folder)]) == 0
        shown = capsys.readouterr()
        assert shown.out.count("no record ") == files
        assert f"lcm inspect {folder}" in shown.err
    weights = model / "model.safetensors"
    (model / "origin.json").write_text(json.dumps({"sha256": {weights.name: sha256(weights)}}))
    assert main(["checkpoints", "verify", str(model)]) == 0
    assert f"ok         {model}  {weights}" in capsys.readouterr().out
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (model / "origin.json").write_text(json.dumps({"sha256": {weights.name: "0", "part": "1"}}))
    assert main(["checkpoints", "verify", str(model)]) == 5
    shown = capsys.readouterr()
    assert f"missing    {model}  {model / 'part'}" in shown.out
    assert "2 files are damaged or missing" in shown.err
    assert "hint: copy it again" in shown.err


def test_number_format_is_shown(cache, random_space, model, capsys):
    """Every command shows the number format; scales do not count as parameters."""
    for source, total in ((random_space, None), (model, None)):
        counts = {}
        for store, name in (("float32", "F32"), ("float16", "F16"), ("int8", "I8")):
            folder = f"{source.name}-{store}"
            convert(str(source), Path(folder), store)
            assert main(["checkpoints", "show", folder, "--json"]) == 0
            (found,) = lines(capsys)
            counts[store] = found["numbers"]
            assert max(found["numbers"], key=found["numbers"].get) == name
            assert total in (None, sum(found["numbers"].values()))
            total = sum(found["numbers"].values())
            assert main(["checkpoints", "show", folder]) == 0
            shown = capsys.readouterr().out
            assert f"parameters  {total:,}\n" in shown
            scaled = ", one scale per row:" if store == "int8" else ""
            assert f"numbers     {store}{scaled} " in shown
            assert main(["checkpoints", "verify", folder, "--json"]) == 0
            kept = {Path(one["file"]).suffix: one["numbers"] for one in lines(capsys)}
            assert kept.pop(".safetensors") == store
            assert not any(kept.values())
            assert main(["checkpoints", "verify", folder]) == 0
            assert f".safetensors  {store}\n" in capsys.readouterr().out
            assert main(["inspect", folder, "--json"]) == 0
            (found,) = lines(capsys)
            assert found["dtypes"] == counts[store]
            parameters = found["parameters"]
            each = parameters.values() if isinstance(parameters, dict) else [parameters]
            assert sum(each) == total
        assert counts["int8"]["F16"] < counts["int8"]["I8"]


def test_damaged_headers_do_not_prevent_listing(cache, model, capsys):
    weights = model / "model.safetensors"
    for content in (b"", b"\x02" + bytes(7) + b"[]", b"\x08" + bytes(7) + b'{"a":{}}'):
        weights.write_bytes(content)
        assert main(["checkpoints", "show", str(model), "--json"]) == 0
        assert lines(capsys)[0]["numbers"] == {}
        assert main(["checkpoints", "verify", str(model)]) == 0
        assert main(["inspect", str(model)]) == 5
        assert "damaged or cut off" in capsys.readouterr().err


def test_folder_of_a_pulled_checkpoint_is_recognised(published, capsys):
    main(["pull", "org/model"])
    folder = capsys.readouterr().out.strip()
    main(["checkpoints", "show", "org/model"])
    by_name = capsys.readouterr().out
    assert main(["checkpoints", "show", folder]) == 0
    assert capsys.readouterr().out == by_name


def test_folders_without_a_checkpoint(cache, model, capsys):
    Path("empty").mkdir()
    for command in ("show", "verify"):
        assert main(["checkpoints", command, "empty"]) == 3
        assert "empty holds no checkpoint" in capsys.readouterr().err
        assert main(["checkpoints", command, "nosuch"]) == 3
        assert "there is no checkpoint called 'nosuch'" in capsys.readouterr().err
    assert main(["checkpoints", "remove", str(model)]) == 3  # only pulled checkpoints
    assert model.is_dir()


def test_push_pull_remove(hub_server, model, monkeypatch, capsys):
    hub_server.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert main(["checkpoints", "push", str(model), "me/model", "--licence", "MIT"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{hub_server.url}/me/model/commit/")
    assert "lcm pull me/model" in shown.err
    assert main(["checkpoints", "pull", "me/model"]) == 0
    folder = capsys.readouterr().out
    assert main(["checkpoints", "remove", "me/model"]) == 0
    assert "removed" in capsys.readouterr().err
    assert main(["checkpoints", "remove", "me/model"]) == 3
    assert main(["checkpoints", "pull", "me/model"]) == 0
    assert capsys.readouterr().out == folder


def test_push_pull_and_remove_print_json(hub_server, model, monkeypatch, capsys):
    hub_server.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    command = ["checkpoints", "push", str(model), "me/model", "--licence", "MIT", "--json"]
    assert main(command) == 0
    (pushed,) = lines(capsys)
    commit = hub_server.repos["me/model"].refs["main"]
    assert pushed["url"].endswith(f"/me/model/commit/{commit}")
    assert (pushed["repo"], pushed["revision"], pushed["commit"]) == ("me/model", "main", commit)
    assert pushed["files"] == ["README.md", "config.json", "model.safetensors"]
    assert main(["checkpoints", "pull", "me/model", "--json"]) == 0
    (pulled,) = lines(capsys)
    folder = Path(pulled["path"])
    size = sum((folder / name).stat().st_size for name in ("README.md", "model.safetensors"))
    assert pulled == {
        "name": "me/model",
        "kind": "model",
        "path": str(folder),
        "already_present": False,
        "licence": "mit",
        "bytes_fetched": size,  # the config was fetched for the plan
        "revision": "main",
        "commit": commit,
    }
    assert main(["pull", "me/model", "--json"]) == 0
    assert lines(capsys) == [pulled | {"already_present": True, "bytes_fetched": 0}]
    assert main(["checkpoints", "remove", "me/model", "--json"]) == 0
    (removed,) = lines(capsys)
    assert removed["name"] == "me/model" and removed["bytes_freed"] > size
    assert not folder.exists()


def test_push_without_a_licence(hub_server, model, capsys):
    assert main(["checkpoints", "push", str(model), "me/model"]) == 2
    assert "--licence CC-BY-4.0" in capsys.readouterr().err


def test_pull_of_a_missing_repository(hub_server, capsys):
    assert main(["pull", "no/such-repo"]) == 3
    assert "there is no repository no/such-repo on the Hub" in capsys.readouterr().err


def test_pull_without_a_network(cache, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["pull", "no/such-repo"]) == 1
    shown = capsys.readouterr().err
    assert "no network: cannot reach the Hub for no/such-repo" in shown
    assert "run lcm pull no/such-repo when there is a connection" in shown


def test_dry_run_of_the_bundled_space(cache, capsys):
    assert main(["pull", "tiny", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "already on this machine" in shown.err


def test_bundled_cannot_be_removed(cache, capsys):
    assert main(["checkpoints", "remove", "tiny"]) == 2
    assert "comes with lcm" in capsys.readouterr().err
