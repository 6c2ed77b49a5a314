"""The inventory of checkpoints: listing, verification, removal, updates."""

import shutil

import pytest
import torch

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.hub import cards, layouts, snapshot
from lcm_cli.models.checkpoint import build, save
from lcm_cli.models.config import preset
from lcm_cli.transfer import inventory
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import resolve

PARTS = {"encoder": "encoder.pt", "decoder": "decoder.pt", "tokenizer": "spm.model"}


@pytest.fixture
def space(cache, official, tmp_path):
    """A space that was pulled from the user's own card."""
    urls = {role: {"url": (official.folder / file).as_uri()} for role, file in PARTS.items()}
    card = official.card(tmp_path / "small.toml", urls)
    return pull(resolve(str(card)).plan(), accept_licence=True).path


@pytest.fixture
def model(hub_server, tmp_path):
    """A model in lcm's layout that was pulled from the Hub."""
    torch.manual_seed(0)
    save(build(preset("base", "nano", concept_dim=16)), tmp_path / "m")
    files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    files["README.md"] = b"---\nlicense: mit\n---\n"
    hub_server.publish("org/model", files)
    return pull(resolve("org/model").plan()).path


def statuses(name):
    return {check.status for check in inventory.verify(inventory.find_checkpoint(name))}


def test_every_card_is_listed(cache):
    found = {one.name: one for one in inventory.list_checkpoints()}
    assert found.keys() == cards.cards().keys()
    assert found["tiny"].where == "bundled"
    assert found["tiny"].bytes > 10_000_000
    assert found["sonar"].where == "absent" and found["sonar"].path is None
    assert "dl.fbaipublicfiles.com" in found["sonar"].source


def test_pulled_space(space):
    one = inventory.find_checkpoint("small")
    assert (one.kind, one.where, one.path) == ("space", "pulled", space)
    assert one.licence == "CC-BY-NC-4.0"
    assert one.bytes == sum((space / name).stat().st_size for name in layouts.SPACE_FILES.values())
    assert len(one.used) == len("2025-01-01")


def test_model_in_the_cache_of_the_hub(model):
    one = inventory.find_checkpoint("org/model")
    assert (one.kind, one.where, one.licence, one.path) == ("model", "hub", "mit", model)
    assert one.revision == model.name


def test_model_at_a_tag_and_at_a_commit(hub_server, model):
    commit = hub_server.publish("org/model", hub_server.repos["org/model"].files("main"), "v1")
    pull(resolve("org/model@v1").plan())
    assert inventory.find_checkpoint("org/model@v1").revision == commit
    old = hub_server.repos["org/model"].refs["main"]
    hub_server.publish("org/model", hub_server.repos["org/model"].files("main"))
    pull(resolve("org/model").plan())
    assert inventory.find_checkpoint(f"org/model@{old}").where == "hub"  # still cached


def test_bundled_files_match_their_cards(cache):
    bundled = [one for one in inventory.list_checkpoints() if one.where == "bundled"]
    assert bundled
    for one in bundled:
        assert statuses(one.name) == {"ok"}, f"{one.name}: run make cards"
        assert {r: f.bytes for r, f in one.card.files.items()} == {
            role: path.stat().st_size for role, path in one.files.items()
        }


@pytest.mark.parametrize("which", ["space", "model"])
def test_verify_finds_one_changed_bit_and_a_missing_file(request, which):
    folder = request.getfixturevalue(which)
    name = {"space": "small", "model": "org/model"}[which]
    assert statuses(name) == {"ok"}
    weights = (folder / ("encoder" if which == "space" else "model")).with_suffix(".safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    assert statuses(name) == {"ok", "differs"}
    if which == "space":
        weights.unlink()
        assert statuses(name) == {"ok", "missing"}


def test_verify_an_absent_checkpoint(cache):
    with pytest.raises(NotFoundError, match="not on this machine") as caught:
        list(inventory.verify(inventory.find_checkpoint("sonar")))
    assert caught.value.hint == "run: lcm pull sonar"


def test_repository_not_pulled_by_lcm(model, cache):
    shutil.rmtree(cache)  # including the record of its digests
    assert statuses("org/model") == {"no record"}


def test_remove_a_space(space):
    one = inventory.find_checkpoint("small")
    assert inventory.remove(one) == one.bytes
    assert not space.exists()
    with pytest.raises(NotFoundError):
        inventory.find_checkpoint("small")
    assert [path.name for path in space.parent.iterdir()] == [".small.lock"]


def test_remove_a_model_from_the_cache_of_the_hub(model):
    size = sum(path.stat().st_size for path in model.iterdir())
    assert inventory.remove(inventory.find_checkpoint("org/model")) == size
    assert snapshot.local_snapshot("org/model", "main", ["config.json"]) is None
    assert not model.exists()


def test_remove_bundled_and_absent_checkpoints(cache):
    with pytest.raises(UsageError, match="comes with lcm"):
        inventory.remove(inventory.find_checkpoint("tiny"))
    with pytest.raises(NotFoundError, match="not on this machine"):
        inventory.remove(inventory.find_checkpoint("sonar"))


def test_update(hub_server, model):
    one = inventory.find_checkpoint("org/model")
    assert inventory.find_update(one, "it") == ""
    now = hub_server.publish("org/model", hub_server.repos["org/model"].files("main"))
    assert inventory.find_update(one, "it") == f"org/model@main is {now[:12]} now"
    assert inventory.find_update(inventory.find_checkpoint("tiny"), "it") == ""


def test_unknown_name(cache):
    with pytest.raises(NotFoundError, match="'sonr'") as caught:
        inventory.find_checkpoint("sonr")
    assert "sonar" in caught.value.hint


def test_damaged_record_does_not_prevent_listing(space):
    (space / "config.json").write_text("{")
    one = inventory.find_checkpoint("small")
    assert one.where == "pulled" and one.path == space
    with pytest.raises(IntegrityError, match=r"config\.json is not valid JSON"):
        list(inventory.verify(one))
    inventory.remove(one)
    assert not space.exists()
