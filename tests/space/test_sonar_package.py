"""The bridge to sonar-space, and sonar-space as the reference for converted weights."""

import hashlib
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from lcm_cli.errors import IntegrityError, LcmError
from lcm_cli.space import sonar_package as bridge
from lcm_cli.text.languages import SONAR
from lcm_cli.transfer.converters.sonar import convert_half

needs_sonar = pytest.mark.skipif(find_spec("sonar") is None, reason="sonar-space is not installed")


@needs_sonar
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("text_sonar_basic_encoder", "sonar_text_encoder.pt"),
        ("text_sonar_basic_decoder", "sonar_text_decoder.pt"),
        ("text_sonar_finetuned_decoder", "finetuned_decoder.pt"),
    ],
)
def test_reads_sonar_spaces_cards(name, file):
    asset = bridge.asset(name)
    assert asset.url.endswith(f"/SONAR/{file}")
    assert asset.tokenizer_url.endswith("/sentencepiece.source.256000.model")
    assert asset.languages == SONAR


def test_an_unknown_asset():
    assert bridge.asset("none") is None


@pytest.mark.parametrize("text", ["a: [", "checkpoint: x", "- 1", ""])
def test_card_that_cannot_be_read(sonar_cards, text):
    (sonar_cards / "x.yaml").write_text(text)
    with pytest.raises(IntegrityError, match=r"x\.yaml is not a card"):
        bridge.asset("x")


def test_card_of_another_architecture(sonar_cards):
    (sonar_cards / "x.yaml").write_text(
        "checkpoint: u\ntokenizer: t\nmodel_arch: huge\ntokenizer_config: {_set_: {langs: [a]}}\n"
    )
    with pytest.raises(IntegrityError, match="huge"):
        bridge.asset("x")


def test_a_failed_import_of_sonar_space_gives_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "sonar", None)
    with pytest.raises(LcmError, match="ModuleNotFoundError") as caught:
        bridge.import_sonar()
    assert "pip install sonar-space" in caught.value.hint


URL = "https://dl.fbaipublicfiles.com/SONAR/sonar_text_encoder.pt"


def test_files_are_found_in_fairseq2s_cache(cache, official, tmp_path):
    assert bridge.cached(URL) is None
    folder = tmp_path / "fairseq2" / "43e937cce6a6a5cd5730cf66"
    folder.mkdir(parents=True)
    path = folder / "sonar_text_encoder.pt"
    whole = (official.folder / "encoder.pt").read_bytes()
    path.write_bytes(whole)
    assert bridge.cached(URL) == path
    path.write_bytes(whole[:-100])  # as an interrupted download leaves it
    assert bridge.cached(URL) is None


def test_fairseq2s_cache_may_be_elsewhere(cache, official, tmp_path, monkeypatch):
    monkeypatch.delenv("FAIRSEQ2_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    url = "https://example.org/spm.model"
    folder = tmp_path / "xdg" / "fairseq2" / "assets" / hashlib.sha1(url.encode()).hexdigest()[:24]
    folder.mkdir(parents=True)
    (folder / "spm.model").write_bytes((official.folder / "spm.model").read_bytes())
    assert bridge.cached(url) == folder / "spm.model"
    (folder / "spm.model").write_bytes(b"<html>no such file</html>")
    assert bridge.cached(url) is None


@pytest.fixture(scope="module")
def sonar_text():
    """sonar-space's own text models: their configs, factories and checkpoint converters."""
    if find_spec("sonar") is None:
        pytest.skip("sonar-space is not installed")
    bridge.import_sonar()
    from sonar.models import sonar_text

    return sonar_text


def network(sonar_text, official, role):
    """Return sonar-space's model of the small shapes and the config that its converters need."""
    from fairseq2.data.tokenizers import VocabularyInfo

    shape = getattr(official, role)
    fields = {
        "model_dim": shape["model_dim"],
        "max_seq_len": 32,
        "vocab_info": VocabularyInfo(shape["vocabulary"], 1, 2, 3, 1),
        "num_encoder_layers": shape["layers"],
        "num_decoder_layers": shape["layers"],
        "num_encoder_attn_heads": shape["heads"],
        "num_decoder_attn_heads": shape["heads"],
        "ffn_inner_dim": shape["ffn_dim"],
    }
    if role == "encoder":
        config = sonar_text.SonarTextEncoderConfig(**fields, pooling="mean", _from_fairseq=True)
        return sonar_text.SonarTextEncoderFactory(config).create_model(), config
    flags = ("no_scale_embedding", "no_token_positional_embeddings", "learned_pos")
    rates = ("emb_dropout_p", "attention_dropout_p", "activation_dropout_p")
    fields |= dict.fromkeys(flags, False) | dict.fromkeys(rates, 0.1)
    config = sonar_text.SonarTextDecoderConfig(
        **fields, activation_fn="ReLU", normalize_before=True
    )
    return sonar_text.SonarTextDecoderFactory(config).create_model(), config


def assert_equal_to_referee(ours, referee):
    theirs = {k: v for k, v in referee.state_dict().items() if k != "final_proj.weight"}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_sonar_space_loads_the_same_weights(sonar_text, official, tmp_path, role):
    source = official.folder / f"{role}.pt"
    model, config = network(sonar_text, official, role)
    their_converter = getattr(sonar_text, f"_convert_sonar_text_{role}_checkpoint")
    state = their_converter(torch.load(source, weights_only=True), config)
    model.load_state_dict(state, strict=True)
    shape = getattr(official, role)
    convert_half(role, source, tmp_path / "ours", shape, official.languages)
    assert_equal_to_referee(load_file(tmp_path / "ours"), model)


def test_older_layout_converts_as_in_sonar_space(sonar_text, official, tmp_path):
    """Only for the decoder: sonar-space 0.5's converter of older encoders fails on every file."""
    names = {
        "decoder_frontend.embed.": "embed_tokens.",
        "encoder_decoder_attn": "encoder_attn",
        "self_attn.output_proj": "self_attn.out_proj",
        "encoder_attn.output_proj": "encoder_attn.out_proj",
        "ffn.inner_proj": "fc1",
        "ffn.output_proj": "fc2",
        "ffn_layer_norm": "final_layer_norm",
        "final_proj": "output_projection",
        "decoder.layer": "layer",
    }
    old = {}
    for name, tensor in official.state("decoder").items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        old[name] = tensor
    old["version"] = old["embed_positions._float_tensor"] = torch.zeros(1)
    torch.save({"state_dict": old}, tmp_path / "old.pt")
    model, config = network(sonar_text, official, "decoder")
    loaded = torch.load(tmp_path / "old.pt", weights_only=True)
    state = sonar_text._convert_sonar_text_decoder_checkpoint(loaded, config)
    model.load_state_dict(state, strict=True)
    source, shape = tmp_path / "old.pt", official.decoder
    convert_half("decoder", source, tmp_path / "ours", shape, official.languages)
    assert_equal_to_referee(load_file(tmp_path / "ours"), model)
