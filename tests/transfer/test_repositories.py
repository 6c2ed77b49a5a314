"""Pulls of repositories and carded models: revisions, layouts, licences, pins, hostile files."""

import errno
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub import cards, locate, pins, snapshot
from lcm_cli.models.checkpoint import build, load_from, save
from lcm_cli.models.config import preset
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import resolve

README = b"---\nlicense: mit\n---\n# A model\n"


def run(source, **options):
    force = options.get("force", False)
    plan = resolve(source, revision=options.get("revision", "")).plan(force=force)
    return pull(plan, accept_licence=True, force=force).path


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    """The files of a small model in lcm's layout."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save(build(preset("base", "nano", concept_dim=16)), folder)
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    return files | {"README.md": README, "state.pt": b"not wanted"}


@pytest.fixture
def sonar_llm(golden_file):
    """The files of a small SONAR-LLM, as its authors publish them."""
    config, state = golden_file("sonar_llm")
    body = io.BytesIO()
    torch.save({"model_state_dict": state}, body)
    return {
        "config.json": json.dumps(config).encode(),
        "pytorch_model.bin": body.getvalue(),
        "sonarllm_model/__init__.py": b"raise SystemExit('their code was run')",
        "README.md": b"---\nlicense: apache-2.0\n---\n",
    }


@pytest.fixture
def golden_file():
    folder = Path(__file__).parent.parent / "golden"

    def read(name):
        state = load_file(folder / f"{name}.safetensors")
        theirs = {k.removeprefix("sd/"): v for k, v in state.items() if k.startswith("sd/")}
        return json.loads((folder / f"{name}.json").read_text())["config"], theirs

    return read


def test_model_in_own_layout(hub_server, model_files, cache):
    commit = hub_server.publish("org/model", model_files)
    made = resolve("org/model").plan()
    assert (made.kind, made.licence, made.must_be_accepted) == ("model", "mit", False)
    assert made.parts[0].bytes == len(model_files["model.safetensors"]) + len(README)
    folder = pull(made).path
    assert folder == snapshot.repository_folder("org/model") / "snapshots" / commit
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "model.safetensors"),
    ]
    assert pins.find_pin(cache, f"org/model@{commit}/model.safetensors").bytes
    again = resolve("org/model").plan()
    assert again.ready and again.path == folder and again.licence == "mit"


def test_cached_model_offline(hub_server, model_files, monkeypatch):
    hub_server.publish("org/model", model_files)
    folder = run("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("org/model") == folder
    with pytest.raises(NotFoundError, match=r"org/model@v2 is not on this machine") as caught:
        run("org/model@v2")
    assert "lcm pull org/model@v2" in caught.value.hint


def test_branch_that_moved_is_reported_and_pulled(hub_server, model_files):
    first = hub_server.publish("org/model", model_files)
    run("org/model")
    second = hub_server.publish("org/model", model_files | {"README.md": README + b"More."})
    made = resolve("org/model").plan()
    assert made.notes == (
        f"org/model@main has moved: it was {first[:12]} and is {second[:12]} now",
    )
    assert made.parts[0].bytes == len(README) + 5  # the weights are the same
    assert pull(made).path.name == second
    assert resolve("org/model").plan().notes == ()


def test_tag_that_moved_is_reported(hub_server, model_files):
    hub_server.publish("org/model", model_files, "v1")
    run("org/model@v1")
    hub_server.publish("org/model", model_files | {"README.md": README + b"x"}, "v1")
    assert "org/model@v1 has moved" in resolve("org/model", revision="v1").plan().notes[0]


def test_second_pull_of_a_commit_sends_no_request(hub_server, model_files):
    commit = hub_server.publish("org/model", model_files)
    hub_server.publish("org/model", model_files | {"README.md": b"newer"})
    assert run("org/model", revision=commit).name == commit
    hub_server.requests.clear()
    assert run(f"org/model@{commit}").name == commit
    assert hub_server.requests == []


def test_revision_that_does_not_exist(hub_server, model_files):
    hub_server.publish("org/model", model_files)
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        run("org/model@v9")


def test_unknown_licence_must_be_accepted(hub_server, model_files):
    hub_server.publish("org/model", model_files | {"README.md": b"no metadata"})
    with pytest.raises(AuthError, match="unknown licence") as caught:
        pull(resolve("org/model").plan())
    assert caught.value.hint == "if you agree, run: lcm pull org/model --accept-licence"
    assert hub_server.sent(".safetensors") == hub_server.sent("/lfs/") == 0


def test_sharded_weights(hub_server, model_files, tmp_path):
    from lcm_cli.hub.layouts import weight_parts
    from lcm_cli.weights import read_weights

    (tmp_path / "m").write_bytes(model_files["model.safetensors"])
    state = load_file(tmp_path / "m")
    names = sorted(state)
    files, where = {"config.json": model_files["config.json"], "README.md": README}, {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, tmp_path / shard)
        files[shard] = (tmp_path / shard).read_bytes()
        where |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": where}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub_server.publish("org/model", files)
    loaded = read_weights(*weight_parts(run("org/model") / "model.safetensors"))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


# Foreign models, which are converted


def test_card_of_a_foreign_model(hub_server, sonar_llm, cache, monkeypatch, golden_file):
    commit = hub_server.publish("raxtemur/sonar-llm-100m", sonar_llm)
    made = resolve("sonar-llm-100m").plan()
    assert made.licence == "apache-2.0"  # the repository's licence replaces an unknown one
    folder = pull(made).path
    assert folder == cache / "models" / "sonar-llm-100m"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "model.safetensors", "origin.json"),
    ]
    record = json.loads((folder / "origin.json").read_text())
    assert record["source"]["model"]["revision"] == commit
    assert record["licence"] == "apache-2.0"
    assert pins.find_pin(cache, "raxtemur/sonar-llm-100m/pytorch_model.bin").sha256
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["sonar-llm-100m"]
    hub_server.requests.clear()
    assert run("sonar-llm-100m") == folder
    assert hub_server.requests == []


def test_foreign_model_by_repository(hub_server, sonar_llm, cache):
    hub_server.publish("org/llm", sonar_llm)
    folder = run("org/llm")
    assert folder == cache / "models" / "org--llm"
    assert resolve("org/llm").plan().ready
    hub_server.publish("org/llm", sonar_llm | {"README.md": b"---\nlicense: mit\n---\n"})
    made = resolve("org/llm").plan()
    assert not made.ready and "has moved" in made.notes[0]
    pull(made)
    assert json.loads((folder / "origin.json").read_text())["licence"] == "mit"


def test_changed_weights_of_a_carded_model(hub_server, sonar_llm, cache):
    hub_server.publish("raxtemur/sonar-llm-100m", sonar_llm)
    folder = run("sonar-llm-100m")
    shutil.rmtree(folder)
    config = json.loads(sonar_llm["config.json"]) | {"add_begin": False}
    hub_server.publish(
        "raxtemur/sonar-llm-100m", sonar_llm | {"config.json": json.dumps(config).encode()}
    )
    with pytest.raises(IntegrityError, match=r"config\.json has changed since") as caught:
        run("sonar-llm-100m")
    assert "--force" in caught.value.hint
    assert not folder.exists()
    assert run("sonar-llm-100m", force=True) == folder


def test_card_at_another_revision(hub_server, sonar_llm):
    hub_server.publish("raxtemur/sonar-llm-100m", sonar_llm, "v2")
    run("sonar-llm-100m", revision="v2")
    with pytest.raises(UsageError, match=r"was made from .* at v2, not at main"):
        run("sonar-llm-100m")
    with pytest.raises(UsageError, match="does not come from one repository"):
        resolve("sonar", revision="v2")


def test_official_layout(hub_server, cache):
    golden = Path(__file__).parent.parent / "golden"
    facts = json.loads((golden / "base_model.json").read_text())
    state = load_file(golden / "base_model.safetensors")
    body = io.BytesIO()
    torch.save({"model": {f"module.{key}": tensor for key, tensor in state.items()}}, body)
    card = {"model_family": facts["config"]["model_type"], "model_config": facts["config"]}
    files = {"model.pt": body.getvalue(), "model_card.yaml": json.dumps(card).encode()}
    hub_server.publish("org/official", files | {"README.md": README, "trainer.pt": b"no"})
    folder = run("org/official")
    assert folder == cache / "models" / "org--official"
    assert load_from(locate.locate_model("org/official")).config.architecture == "base"
    assert not any("trainer" in one.path for one in hub_server.requests)
    assert resolve("org/official").plan().ready


# Hostile files


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def hostile_pickle():
    body = io.BytesIO()
    torch.save({"model_state_dict": {"forward_proj.linear.weight": Hostile()}}, body)
    return body.getvalue()


def zip_bomb():
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    return body.getvalue()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (hostile_pickle(), "holds more than tensors; it was not loaded"),
        (zip_bomb(), "compressed, which torch files are not: refused"),
        (pickle.dumps({"a": 1}), "not a complete torch file"),
        (b"", "not a complete torch file"),
        (b"PK\x03\x04" + b"x" * 100, "not a complete torch file"),
    ],
    ids=["pickle", "bomb", "old", "empty", "cut"],
)
def test_hostile_weights(hub_server, sonar_llm, cache, tmp_path, monkeypatch, weights, words):
    monkeypatch.chdir(tmp_path)
    hub_server.publish("org/llm", sonar_llm | {"pytorch_model.bin": weights})
    with pytest.raises(IntegrityError, match=words) as caught:
        run("org/llm")
    assert str(cache) not in caught.value.message  # it names the source of the file
    assert not (tmp_path / "was-run").exists()
    assert not cards.model_folder("org/llm").exists()


def safetensors(header, data=b"", length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "weights",
    [
        safetensors(b"", length=1 << 62),
        safetensors(b"{" + b" " * 1000, length=200 << 20),
        safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        safetensors(b"[" * 100_000),
        b"",
    ],
    ids=["huge header", "long header", "huge tensor", "wrong size", "deep", "empty"],
)
def test_hostile_safetensors(hub_server, model_files, weights):
    hub_server.publish("org/model", model_files | {"model.safetensors": weights})
    with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
        run("org/model")
    assert snapshot.local_commit("org/model", "main") == ""  # not recorded as fetched


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:1], "wrong shapes"),
        (lambda t: t.to(torch.int32), "wrong types"),
        (lambda t: None, "missing tensors"),
    ],
)
def test_weights_that_do_not_fit_the_config(hub_server, model_files, tmp_path, change, words):
    (tmp_path / "m").write_bytes(model_files["model.safetensors"])
    state = load_file(tmp_path / "m")
    name = next(name for name, tensor in state.items() if tensor.dim() == 2)
    state[name] = change(state[name])
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "m2")
    files = model_files | {"model.safetensors": (tmp_path / "m2").read_bytes()}
    hub_server.publish("org/model", files)
    with pytest.raises(IntegrityError, match=f"{words}: .*{name}"):
        run("org/model")


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_invalid_config(hub_server, model_files, body):
    hub_server.publish("org/model", model_files | {"config.json": body})
    with pytest.raises((NotFoundError, IntegrityError)):
        run("org/model")


@pytest.mark.parametrize("name", ["../../../x.safetensors", "/etc/x", "a/../../x", "..\\..\\x"])
def test_names_outside_the_folder_are_never_fetched(hub_server, model_files, tmp_path, name):
    hub_server.publish("org/model", model_files | {name: b"x" * 5000})
    run("org/model")
    assert not any(name in one.path for one in hub_server.requests)


def test_index_with_a_path_outside_the_folder(hub_server, model_files):
    files = {name: body for name, body in model_files.items() if name != "model.safetensors"}
    index = {"weight_map": {"a": "../../../../x.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub_server.publish("org/model", files)
    with pytest.raises(IntegrityError, match="may not lie in another folder"):
        run("org/model")


def test_link_out_of_the_cache(hub_server, model_files, tmp_path):
    hub_server.publish("org/model", model_files)
    folder = run("org/model")
    (tmp_path / "secret").write_bytes(model_files["config.json"])
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError, match=r"is a link to .*secret, outside"):
        run("org/model")


@pytest.mark.parametrize("source", ["a/..", "../b", "a/b@../x", "a/b@", "@v1", "a/b@v1@v2/.."])
def test_invalid_repository_names(cache, source):
    assert not locate.is_repository(source)


def test_control_characters_from_the_hub_are_escaped(hub_server, model_files, capsys):
    from lcm_cli.app import main

    readme = b'---\nlicense: "mit\\e]0;owned\\a"\n---\n'
    hub_server.publish("org/model", model_files | {"README.md": readme})
    assert main(["pull", "org/model", "--accept-licence"]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out
    assert "mit\\x1b]0;owned\\x07" in shown.err


def test_full_disk(hub_server, model_files, monkeypatch):
    hub_server.publish("org/model", model_files)
    made = resolve("org/model").plan()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(LcmError, match="no space left while writing") as caught:
        pull(made)
    assert caught.value.exit_code == 1
