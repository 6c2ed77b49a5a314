"""Speech encoders from a pull to their removal: cards, conversion, inspection, publication."""

import json

import pytest
import torch

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.files import sha256
from lcm_cli.hub import cards, locate
from lcm_cli.inspection import inspect
from lcm_cli.speech import load_speech_encoder
from lcm_cli.speech.config import SpeechConfig, SpeechShapes
from lcm_cli.speech.encoder import SpeechEncoder
from lcm_cli.speech.speech import open_speech, save
from lcm_cli.transfer import inventory, push
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import resolve

SHAPES = SpeechShapes(1, 16, 2, 24, 3, 1, 2, 24, 16)
CARD = """
name = "small-speech"
kind = "speech"
summary = "for tests"
licence = "MIT"
licence_note = "free"
languages = ["eng_Latn"]
spaces = ["sonar"]
[encoder]
{shapes}
[source.speech]
url = "{url}"
"""


@pytest.fixture
def official(tmp_path):
    """A file in fairseq2's layout, with random weights."""
    torch.manual_seed(0)
    state = SpeechEncoder(SHAPES).state_dict()
    del state["encoder_pooler.query"]
    for name in [name for name in state if "pointwise" in name]:
        state[name] = state[name][:, :, None]
    state["encoder_pooler.decoder_frontend.embed.weight"] = torch.randn(16, 16)
    state["encoder.layers.0.conv.batch_norm.num_batches_tracked"] = torch.tensor(7)
    for name in ("q_proj.weight", "k_proj.bias"):
        state[f"encoder_pooler.decoder.layers.0.self_attn.{name}"] = torch.zeros(16)
    torch.save({"model": state}, tmp_path / "official.pt")
    return tmp_path / "official.pt"


@pytest.fixture
def card(cache, official, tmp_path):
    shapes = "\n".join(f"{key} = {value}" for key, value in vars(SHAPES).items())
    path = tmp_path / "small-speech.toml"
    path.write_text(CARD.format(shapes=shapes, url=official.as_uri()))
    return str(path)


def test_pull(cache, card, official):
    plan = resolve(card).plan()
    assert not plan.must_be_accepted
    place = pull(plan).path
    assert place == cache / "speech" / "small-speech"
    assert resolve(card).plan().ready
    speech = load_speech_encoder("small-speech", device="cpu")
    assert speech.config.source["speech"]["from"] == official.as_uri()
    assert speech.config.sha256 == {"model.safetensors": sha256(place / "model.safetensors")}
    assert (speech.languages, speech.config.spaces) == (("eng_Latn",), ("sonar",))
    waveform = 0.1 * torch.randn(16_000).numpy()
    assert speech.encode([waveform]).isfinite().all()
    assert locate.locate_speech(card).weights.parent == place


def test_inventory(card):
    pull(resolve(card).plan())
    found = inventory.find_checkpoint("small-speech")
    assert (found.kind, found.where, found.licence) == ("speech", "pulled", "MIT")
    assert {check.status for check in inventory.verify(found)} == {"ok"}
    (found.path / "model.safetensors").write_bytes(b"x")
    assert "differs" in {check.status for check in inventory.verify(found)}
    inventory.remove(found)
    assert cards.list_pulled("speech") == []


def test_official_file_of_other_shapes(card, tmp_path):
    text = (tmp_path / "small-speech.toml").read_text()
    (tmp_path / "small-speech.toml").write_text(
        text.replace("layers = 1\nmodel", "layers = 2\nmodel")
    )
    with pytest.raises(IntegrityError, match=r"missing tensors: encoder\.layers\.1"):
        pull(resolve(card).plan())
    assert cards.list_pulled("speech") == []


def test_convert_to_int8_and_inspect(lcm, card, tmp_path):
    pull(resolve(card).plan())
    done = lcm("checkpoints", "convert", "small-speech", "-o", tmp_path / "int8", "--store", "int8")
    assert (done.code, done.stdout) == (0, f"{tmp_path / 'int8'}\n")
    assert "speech, concepts of width 16, space: sonar" in done.stderr
    report = inspect(str(tmp_path / "int8"))
    assert (report["kind"], report["dim"], report["spaces"]) == ("speech", 16, ["sonar"])
    assert report["dtypes"]["I8"] > report["dtypes"]["F16"]
    shown = lcm("inspect", tmp_path / "int8")
    assert shown.code == 0 and "eng_Latn" in shown.stdout


def test_convert_an_official_file_by_its_name(lcm, official, tmp_path, monkeypatch):
    (tmp_path / "spenc.v3ap.fra.pt").symlink_to(official)
    known = cards.card("sonar-speech-fra")
    object.__setattr__(known, "encoder", vars(SHAPES))
    monkeypatch.setattr("lcm_cli.transfer.converters.speech.cards", lambda: {known.name: known})
    done = lcm("checkpoints", "convert", tmp_path / "spenc.v3ap.fra.pt", "-o", tmp_path / "x")
    assert done.code == 0, done.stderr
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert (config["name"], config["licence"]) == ("sonar-speech-fra", "MIT")
    open_speech(locate.locate_speech(str(tmp_path / "x")))


def test_pushed_and_pulled(cache, hub_server, monkeypatch, tmp_path):
    hub_server.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    torch.manual_seed(0)
    config = SpeechConfig("mine", "MIT", ("deu_Latn",), ("tiny",), SHAPES)
    save(SpeechEncoder(SHAPES), config, tmp_path / "mine")
    push.push(str(tmp_path / "mine"), "org/speech")
    folder = pull(resolve("org/speech").plan(), accept_licence=True).path
    waveform = 0.1 * torch.randn(16_000).numpy()
    here, back = (
        load_speech_encoder(str(path), device="cpu") for path in (tmp_path / "mine", folder)
    )
    assert torch.equal(here.encode([waveform]), back.encode([waveform]))
    assert load_speech_encoder("org/speech").languages == ("deu_Latn",)
    readme = (folder / "README.md").read_text()
    assert "speech-encoder" in readme and "space:tiny" in readme


def test_card_with_a_repository_is_refused(card, tmp_path):
    path = tmp_path / "small-speech.toml"
    path.write_text(path.read_text().replace("url =", "repo ="))
    with pytest.raises(IntegrityError, match="gets a speech encoder from a repository"):
        resolve(card)


def test_kinds_are_not_mixed_up(card):
    with pytest.raises(UsageError, match="sonar-speech-eng is a speech, not a space"):
        locate.locate_space("sonar-speech-eng")
    with pytest.raises(UsageError, match="sonar is a space, not a speech encoder"):
        locate.locate_speech("sonar")


def test_absent_ones_share_a_row(lcm, cache):
    shown = lcm("checkpoints", "list").stdout
    assert "sonar-speech-... (58)" in shown and "sonar-speech-eng" not in shown
    listed = lcm("checkpoints", "list", "--json").stdout.splitlines()
    assert sum('"kind": "speech"' in line for line in listed) >= 58
