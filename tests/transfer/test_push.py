"""Publication: the uploaded files, the model card, and identical numbers after a pull."""

import json

import pytest
import torch
import yaml
from hub_server import Fault
from safetensors.torch import load_file

from lcm_cli import inspection
from lcm_cli.commands._pull import bring
from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub import layouts, locate
from lcm_cli.hub.layouts import read_metadata
from lcm_cli.models.checkpoint import build, load_model, save, save_adapter
from lcm_cli.models.config import SpaceRef, preset
from lcm_cli.space import load_space
from lcm_cli.space.adapters import attach, fingerprint
from lcm_cli.transfer import inventory, push
from lcm_cli.transfer.convert import convert
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import resolve


@pytest.fixture
def account(hub_server, monkeypatch):
    """A Hub server and a token with write access."""
    hub_server.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    return hub_server


@pytest.fixture
def model(tmp_path):
    """The folder of a trained model, in a run with states of the optimizer."""
    torch.manual_seed(0)
    folder = tmp_path / "run" / "model"
    space = SpaceRef("sonar", "0123456789abcdef")
    save(build(preset("base", "nano", concept_dim=16, space=space)), folder)
    for step, content in ((1, b"before"), (20, b"optimizer" * 100)):
        (folder.parent / f"state-{step:09d}.pt").write_bytes(content)
    (folder / "notes.txt").write_bytes(b"private")
    return folder


def pulled(repo):
    return pull(resolve(repo).plan(force=True), accept_licence=True).path


def published(account, repo):
    found = account.repos[repo]
    return found.commits[found.refs["main"]]


def test_pushed_and_pulled_gives_identical_numbers(account, model):
    pushed = push.push(str(model), "org/model", licence="CC-BY-4.0")
    assert pushed.url.startswith(f"{account.url}/org/model/commit/")
    assert set(published(account, "org/model")) == {
        *(".gitattributes", "README.md", "config.json", "model.safetensors"),
    }
    x_BSD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    here, back = load_model(model), load_model(pulled("org/model"))
    assert torch.equal(here(x_BSD), back(x_BSD))
    assert here.config == back.config
    assert resolve("org/model").plan().licence == "cc-by-4.0"


@pytest.mark.parametrize("shard", [push.SHARD, 20_000])
def test_int8_pushed_and_pulled_gives_identical_numbers(account, model, tmp_path, shard):
    """Even if a matrix and its scales are split into different files."""
    convert(str(model), tmp_path / "int8", "int8")
    push.push(str(tmp_path / "int8"), "org/model", licence="CC-BY-4.0", shard=shard)
    folder = pulled("org/model")
    places = {}
    for path in folder.glob("*.safetensors"):
        places |= dict.fromkeys(load_file(path), path.name)
    apart = [n for n in places if n.endswith(".weight.scale") and places[n] != places[n[:-6]]]
    assert bool(apart) == (shard != push.SHARD)
    here, back = load_model(tmp_path / "int8").state_dict(), load_model(folder).state_dict()
    assert here.keys() == back.keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in here.items())
    assert inspection.inspect(str(folder))["parameters"] == sum(t.numel() for t in here.values())


def test_int8_space_pushed_and_pulled_gives_identical_concepts(account, random_space, tmp_path):
    convert(str(random_space), tmp_path / "int8", "int8")
    push.push(str(tmp_path / "int8"), "org/space")
    folder = pulled("org/space")
    here, back = (load_space(str(path), device="cpu") for path in (tmp_path / "int8", folder))
    assert here.fingerprint == back.fingerprint != load_space(str(random_space)).fingerprint
    found = [space.encode(["A red boat."], "eng_Latn").concepts for space in (here, back)]
    assert (found[0] == found[1]).all()
    assert back.decode(found[0], ["fra_Latn"]) == here.decode(found[0], ["fra_Latn"])
    (folder / "encoder.safetensors").resolve().write_bytes(b"")
    assert {c.status for c in inventory.verify(inventory.find_checkpoint("org/space"))} == {
        "ok",
        "differs",
    }


def test_card(account, model):
    results = {"dataset": "CNN/DailyMail", "metrics": {"ROUGE-L": 0.31}}
    push.push(str(model), "org/model", licence="CC-BY-4.0", results=results)
    text = published(account, "org/model")["README.md"].decode()
    found = yaml.safe_load(text.split("---\n")[1])
    assert found["library_name"] == "lcm"
    assert found["license"] == "cc-by-4.0"
    assert found["tags"] == ["concept-model", "base", "space:sonar"]
    assert {"en", "fr", "yue"} <= set(found["language"])
    (measured,) = found["model-index"][0]["results"]
    assert measured["dataset"] == {"name": "CNN/DailyMail", "type": "cnn-dailymail"}
    assert measured["metrics"] == [{"type": "rouge-l", "name": "ROUGE-L", "value": 0.31}]
    assert "lcm pull org/model" in text
    assert "0123456789abcdef" in text


def test_existing_card_is_kept(account, model):
    (model / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# My words\n")
    push.push(str(model), "org/model")
    text = published(account, "org/model")["README.md"].decode()
    assert text.endswith("---\n# My words\n")
    found = yaml.safe_load(text.split("---\n")[1])
    assert (found["license"], found["tags"], found["library_name"]) == ("mit", ["mine"], "lcm")


def test_state_is_uploaded_only_on_request(account, model):
    push.push(str(model.parent), "org/model", licence="MIT", with_state=True)
    assert published(account, "org/model")["state-000000020.pt"] == b"optimizer" * 100
    for state in model.parent.glob("state-*.pt"):
        state.unlink()
    with pytest.raises(NotFoundError, match=r"no state-\*\.pt"):
        push.push(str(model), "org/model", licence="MIT", with_state=True)


def test_large_weights_are_split(account, model):
    push.push(str(model), "org/model", licence="MIT", shard=100_000)
    files = published(account, "org/model")
    shards = [name for name in files if name.startswith("model-")]
    assert len(shards) > 2 and "model.safetensors" not in files
    assert all(len(files[name]) < 200_000 for name in shards)
    assert load_model(pulled("org/model")).config == load_model(model).config
    before, after = load_file(model / "model.safetensors"), {}
    for path in sorted(pulled("org/model").glob("model-*.safetensors")):
        after |= load_file(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not list(model.glob(".push*"))
    push.push(
        str(model), "org/model", licence="MIT"
    )  # in one file again, without leftovers of the split
    assert [n for n in published(account, "org/model") if "model" in n] == ["model.safetensors"]


def test_space_and_its_languages(account, random_space):
    push.push(str(random_space), "org/space")
    assert card_metadata_of(account, "org/space")["language"] == ["en", "de", "fr", "es", "nl"]
    folder = pulled("org/space")
    for name in layouts.SPACE_FILES.values():
        assert (folder / name).read_bytes() == (random_space / name).read_bytes()
    assert locate.locate_space("org/space").licence == "MIT"


def card_metadata_of(account, repo):
    return yaml.safe_load(published(account, repo)["README.md"].decode().split("---\n")[1])


def test_bundled_space_under_another_name(account):
    push.push("tiny", "org/small")
    assert card_metadata_of(account, "org/small")["license"] == "cc-by-4.0"
    folder, tiny = pulled("org/small"), locate.locate_space("tiny")
    for role, name in layouts.SPACE_FILES.items():
        assert (folder / name).read_bytes() == getattr(tiny, role).read_bytes()


def test_private_and_branch(account, model):
    push.push(str(model), "org/model", licence="MIT", private=True)
    assert account.repos["org/model"].private


def test_no_licence(account, model):
    with pytest.raises(UsageError, match=r"the licence of .* is unknown") as caught:
        push.push(str(model), "org/model")
    assert "--licence" in caught.value.hint
    assert account.repos == {}


def test_weights_that_do_not_fit(account, model):
    config = json.loads((model / "config.json").read_text()) | {"model_dim": 32}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="wrong shapes"):
        push.push(str(model), "org/model", licence="MIT")
    assert account.repos == {}


def test_foreign_layout(account, tmp_path):
    (tmp_path / "config.json").write_text('{"llama_config": {}}')
    with pytest.raises(UsageError, match="in the layout of sonar-llm") as caught:
        push.push(str(tmp_path), "org/model", licence="MIT")
    assert "lcm checkpoints convert" in caught.value.hint


@pytest.mark.parametrize("repo", ["model", "a/b/c", "org/model@v1", "../x"])
def test_invalid_repository(account, model, repo):
    with pytest.raises(UsageError, match="not the name of a repository"):
        push.push(str(model), repo, licence="MIT")


def test_without_a_token(account, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AuthError, match="access denied") as caught:
        push.push(str(model), "org/model", licence="MIT")
    assert "hf auth login" in caught.value.hint


@pytest.mark.parametrize(
    "part",
    [
        "/upload/",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("/commit/", "/preupload/")),
    ],
)
def test_failed_upload_leaves_nothing_partial(account, model, part):
    push.push(str(model), "org/model", licence="MIT")
    before = published(account, "org/model")
    for method in ("POST", "PUT"):
        account.fail(part, *[Fault(status=500)] * 60, method=method)
    torch.manual_seed(1)
    save(build(preset("base", "nano", concept_dim=16)), model, force=True)
    with pytest.raises(LcmError):
        push.push(str(model), "org/model", licence="MIT")
    assert published(account, "org/model") == before
    account.faults.clear()
    push.push(str(model), "org/model", licence="MIT")
    assert load_model(pulled("org/model")).config == load_model(model).config


def test_offline(account, model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match="offline") as caught:
        push.push(str(model), "org/model", licence="MIT")
    assert f"run lcm checkpoints push {model} org/model without" in caught.value.hint


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset": "x"}', '{"dataset": 1, "metrics": {}}'])
def test_results_of_another_form(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(IntegrityError):
        push.read_results(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "---\n", "---\n: [\n---\n", "---\n- a\n---\n", "\xff"])
def test_card_without_metadata(tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="latin-1")
    assert read_metadata(tmp_path / "README.md") == {}


def adapter_of(model, base, folder):
    """Write a random adapter of the model in one folder, under the name `base`, to another."""
    network = load_model(model, device="cpu")
    attach([network], ["lcm.*"], rank=2, alpha=4.0)
    for name, p in network.named_parameters():
        if name.endswith("lora_b.weight"):
            torch.nn.init.normal_(p)
    digest = fingerprint(locate.locate_model(str(model)).contents)
    save_adapter(network, locate.AdapterConfig(base, digest, 2, 4.0, ("lcm.*",)), folder)
    return folder


def test_an_adapter_is_pushed_and_pulled_alone(account, model, tmp_path):
    here, notes = adapter_of(model, str(model), tmp_path / "adapter"), []
    push.push(str(here), "org/adapter", licence="MIT", notice=notes.append)
    assert "which others do not have" in notes[0]
    files = published(account, "org/adapter")
    assert set(files) == {".gitattributes", "README.md", "config.json", "adapter.safetensors"}
    assert "- adapter" in files["README.md"].decode() and "rank 2" in files["README.md"].decode()
    folder = pulled("org/adapter")
    one, other = (load_model(place).state_dict() for place in (here, folder))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not torch.equal(one["lcm.layers.0.ffn.inner_proj.weight"], original(model))
    assert inventory.find_checkpoint("org/adapter").kind == "model"
    # Neither stays beside the other in a repository.
    push.push(str(model), "org/adapter", licence="MIT")
    assert "adapter.safetensors" not in published(account, "org/adapter")
    push.push(str(here), "org/adapter", licence="MIT")
    assert "model.safetensors" not in published(account, "org/adapter")


def original(model):
    return load_file(model / "model.safetensors")["lcm.layers.0.ffn.inner_proj.weight"]


def test_the_base_of_a_pulled_adapter_is_named_and_can_be_pulled(account, model, tmp_path):
    push.push(str(model), "org/base", licence="MIT")
    here, notes = adapter_of(model, "org/base", tmp_path / "adapter"), []
    push.push(str(here), "org/adapter", licence="MIT")
    card = yaml.safe_load(published(account, "org/adapter")["README.md"].decode().split("---\n")[1])
    assert card["base_model"] == "org/base" and card["base_model_relation"] == "adapter"
    pull(resolve("org/adapter").plan(), accept_licence=True, notice=notes.append)
    assert any("lcm pull org/base" in note for note in notes)
    with pytest.raises(NotFoundError, match="is an adapter of 'org/base', which is missing"):
        load_model("org/adapter")
    bring("org/adapter")
    assert load_model("org/adapter").config == load_model("org/base").config


def test_a_damaged_adapter_is_not_pushed(account, model, tmp_path):
    here = adapter_of(model, str(model), tmp_path / "adapter")
    config = json.loads((here / "config.json").read_text())
    config["adapter"]["rank"] = 3
    (here / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="is not an adapter of rank 3"):
        push.push(str(here), "org/adapter", licence="MIT")
    config["adapter"] |= {"rank": 2, "fingerprint": "0" * 16}
    (here / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="but its weights here are"):
        push.push(str(here), "org/adapter", licence="MIT")
    assert "org/adapter" not in account.repos
