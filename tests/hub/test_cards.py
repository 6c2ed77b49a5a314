"""Cards, and locating files by name, card, folder and repository without a network."""

import json
from collections import Counter

import pytest
import torch
from packaging.licenses import canonicalize_license_expression

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import sha256
from lcm_cli.hub import cards, layouts, locate
from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import from_dict, read_model_config
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.speech.config import SpeechShapes, read_speech_config
from lcm_cli.speech.encoder import SpeechEncoder
from lcm_cli.text.languages import SONAR

URLS = {role: {"url": f"https://example.org/{role}"} for role in cards.ROLES}


def make_space(folder, official, name="mine"):
    """Write a folder with the files of a space and no valid weights."""
    folder.mkdir(parents=True)
    config = {
        "kind": "space",
        "name": name,
        "licence": "MIT",
        "languages": list(official.languages),
    }
    config |= {"encoder": official.encoder, "decoder": official.decoder}
    (folder / "config.json").write_text(json.dumps(config))
    for file in layouts.SPACE_FILES.values():
        (folder / file).write_bytes(b"weights")
    return folder


def test_every_card_that_comes_with_lcm():
    found = cards.cards()
    assert {"sonar", "sonar-robust", "sonar-hub"} <= found.keys()
    assert {"sonar-llm-100m", "sonar-llm-900m", "sonar-llm-1.3b"} <= found.keys()
    for name, card in found.items():
        assert card.name == name == cards.card(name).name
        assert card.summary
        assert bool(card.files) != bool(card.source)
        assert (cards._folder() / f"{card.family or name}.md").is_file()
        text = cards.find_card_file(name).path.read_text(encoding="utf-8")
        assert "checksums =" in text  # explicit, not the default
        assert card.checksums == ("card" if card.files else "first pull")


@pytest.mark.parametrize("name", cards.cards())
def test_licence_of_every_card(name):
    licence = cards.card(name).licence
    if licence == cards.UNKNOWN_LICENCE:
        note = cards.card(name).licence_note
        assert "what its repository names" in note or name == "sonar-speech-eng"
        assert cards.must_be_accepted(licence)
        return
    assert canonicalize_license_expression(licence) == licence  # an SPDX identifier
    assert cards.card(name).licence_note


@pytest.mark.parametrize(
    "name",
    [*(name for name, card in cards.cards().items() if not card.family), "sonar-speech-eng"],
)
def test_architecture_of_every_card(name):
    """The described networks can be built, on torch's meta device at no cost."""
    card = cards.card(name)
    with torch.device("meta"):
        if card.kind == "space":
            config = vars(card) if card.encoder else locate.locate_space(name).config
            TextEncoder(EncoderConfig(**config["encoder"]))
            TextDecoder(DecoderConfig(**config["decoder"]))
        elif card.kind == "speech":
            bundled = card.files and read_speech_config(locate.locate_speech(name).config)
            SpeechEncoder(bundled.encoder if bundled else SpeechShapes(**card.encoder))
        elif card.config or card.files:
            config = {"kind": "model", "architecture": card.architecture, **card.config}
            build(from_dict(config, name) if card.config else bundled_config(name))
        else:
            assert name == "sonar-llm-1.3b"  # only the width is known


def bundled_config(name):
    return read_model_config(locate.locate_model(name).config)


@pytest.mark.parametrize(("name", "size"), [("sonar-llm-100m", 100e6), ("sonar-llm-900m", 900e6)])
def test_sizes_of_the_models_are_those_of_their_names(name, size):
    card = cards.card(name)
    config = {"kind": "model", "architecture": card.architecture, **card.config}
    with torch.device("meta"):
        model = build(from_dict(config, name))
    tokens = 128_256 * card.config["model_dim"]  # Llama 3's token table, which is not converted
    found = tokens + sum(parameter.numel() for parameter in model.parameters())
    assert found == pytest.approx(size, rel=0.02)


def test_official_cards_have_no_checksums_but_a_licence_note():
    for name in ("sonar", "sonar-robust", "sonar-hub"):
        card = cards.card(name)
        assert cards.is_non_commercial(card.licence)
        assert "not for commercial" in card.licence_note
        assert card.languages == 202
        assert {(s.bytes, s.sha256) for s in card.source.values()} == {(None, "")}


def test_speech_encoders_of_sonar():
    found = [card for card in cards.cards().values() if card.family == "sonar-speech"]
    assert len({card.source["speech"].url for card in found}) == len(found) == 58
    assert Counter(card.licence for card in found) == {
        "MIT": 21,
        "CC-BY-NC-4.0": 36,
        cards.UNKNOWN_LICENCE: 1,
    }
    for card in found:
        code = card.name.rpartition("-")[2]
        assert card.source["speech"].url.endswith(f".{code}.pt")
        assert set(card.languages) <= set(SONAR)
        assert all(lang.startswith(code) for lang in card.languages) or code == "cmn"
        assert set(card.spaces) <= cards.space_languages().keys()


def test_speech_encoder_for_a_language_of_a_space(cache):
    assert cards.speech_encoder_for("sonar", "eng_Latn") == "sonar-speech-eng"
    assert cards.speech_encoder_for("sonar-robust", "zho_Hant") == "sonar-speech-cmn"
    with pytest.raises(NotFoundError, match="sonar has no speech encoder for zul_Latn") as caught:
        cards.speech_encoder_for("sonar", "zul_Latn")
    assert "arb_Arab" in caught.value.hint
    with pytest.raises(NotFoundError, match="other has no speech encoder"):
        cards.speech_encoder_for("other", "eng_Latn")


def test_name_of_a_family_gives_a_member():
    with pytest.raises(NotFoundError) as caught:
        cards.card("sonar-speech")
    assert "such as sonar-speech-arb" in caught.value.hint


@pytest.mark.parametrize(
    ("licence", "expected"), [("CC-BY-NC-4.0", True), ("cc-by-nc-sa-4.0", True), ("MIT", False)]
)
def test_non_commercial(licence, expected):
    assert cards.is_non_commercial(licence) is expected


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(NotFoundError, match="'sonr'") as caught:
        cards.card("sonr")
    assert "did you mean sonar" in caught.value.hint


def test_card_from_a_path(official, tmp_path):
    card = cards.card(str(official.card(tmp_path / "c.toml", URLS)))
    assert card.name == "small"
    assert card.languages == official.languages
    assert card.encoder == official.encoder
    assert card.source["decoder"].url == "https://example.org/decoder"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("summary", "sumary", "sumary"),
        ('kind = "space"', 'kind = "spaceship"', "spaceship"),
        ('name = "small"', 'name = "../x"', r"\.\./x"),
        ("[source.encoder]", "[source.encodr]", "encodr"),
        ("url =", "from =", "from"),
        ('url = "https://example.org/encoder"', "", "url or repo"),
        (
            "[encoder]",
            '[files]\nconfig = { name = "../c.json" }\n[encoder]',
            "folder of the card",
        ),
        ("[encoder]", "[[encoder]", "not valid TOML"),
    ],
)
def test_malformed_card_is_named(official, tmp_path, old, new, complaint):
    path = official.card(tmp_path / "c.toml", URLS)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(IntegrityError, match=complaint) as caught:
        cards.card(str(path))
    assert str(path) in caught.value.message


def test_no_such_card_file():
    with pytest.raises(NotFoundError, match=r"no such card: none\.toml"):
        cards.card("none.toml")


def test_card_that_is_not_pulled_names_file_and_command(cache):
    with pytest.raises(NotFoundError) as caught:
        locate.locate_space("sonar")
    assert str(cache / "spaces" / "sonar" / "encoder.safetensors") in caught.value.message
    assert caught.value.hint == "run: lcm pull sonar"


def test_pulled_space_is_found_by_name_and_by_card(cache, official, tmp_path):
    folder = make_space(cache / "spaces" / "small", official)
    card = official.card(tmp_path / "c.toml", URLS)
    assert cards.list_pulled() == ["small"]
    for source in ("small", str(card)):
        space = locate.locate_space(source)
        assert space.encoder == folder / "encoder.safetensors"
        assert space.config["languages"] == list(official.languages)
    with pytest.raises(NotFoundError) as caught:
        locate.locate_space("smal")
    assert "small" in caught.value.hint


def test_incomplete_folder_is_not_a_space(cache, official):
    make_space(cache / "spaces" / ".small.77.new", official)
    assert cards.list_pulled() == []


def test_folder(official, tmp_path):
    space = locate.locate_space(str(make_space(tmp_path / "mine", official)))
    assert (space.name, space.licence) == ("mine", "MIT")
    assert space.tokenizer == tmp_path / "mine" / "tokenizer.model"


@pytest.mark.parametrize("file", ["config.json", *layouts.SPACE_FILES.values()])
def test_folder_that_lacks_a_file(official, tmp_path, file):
    (make_space(tmp_path / "mine", official) / file).unlink()
    with pytest.raises(NotFoundError, match=file):
        locate.locate_space(str(tmp_path / "mine"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": "model"}'])
def test_other_config(official, tmp_path, text):
    (make_space(tmp_path / "mine", official) / "config.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"config\.json"):
        locate.locate_space(str(tmp_path / "mine"))


def test_port_says_how_to_convert_it(official, tmp_path):
    (make_space(tmp_path / "p", official) / "config.json").write_text('{"model_type": "m2m_100"}')
    with pytest.raises(LcmError, match="M2M-100 layout") as caught:
        locate.locate_space(str(tmp_path / "p"))
    assert "lcm pull" in caught.value.hint


def test_card_with_its_files_beside_it(official, tmp_path):
    """As in the bundled space, even if the package is installed as a zip."""
    folder = make_space(tmp_path / "flat", official, "flat")
    files = {"config": "config.json", **layouts.SPACE_FILES}
    for role, file in files.items():
        (folder / file).rename(folder / f"flat.{role}")
    card = official.card(folder / "flat.toml", {}, name="flat", licence="MIT")
    lines = [f'{role} = {{ name = "flat.{role}" }}' for role in files]
    card.write_text("\n".join([card.read_text(), "[files]", *lines]))
    space = locate.locate_space(str(card))
    assert space.decoder == folder / "flat.decoder"
    assert sha256(space.decoder)
    (folder / "flat.decoder").unlink()
    with pytest.raises(NotFoundError, match=r"flat\.decoder"):
        locate.locate_space(str(card))


def test_model_is_not_a_space(official, tmp_path):
    card = official.card(tmp_path / "c.toml", {"model": {"repo": "org/model"}})
    card.write_text(card.read_text().replace('kind = "space"', 'kind = "model"'))
    with pytest.raises(UsageError, match="is a model"):
        locate.locate_space(str(card))


def test_repository_from_the_hubs_own_cache(cache, official):
    repo = cache.parent / "hub" / "models--org--space"
    commit = "a" * 40
    make_space(repo / "snapshots" / commit, official)
    with pytest.raises(NotFoundError, match="org/space") as caught:
        locate.locate_space("org/space")
    assert caught.value.hint == "run: lcm pull org/space"
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert locate.locate_space("org/space").encoder.parent == repo / "snapshots" / commit


@pytest.mark.parametrize(
    ("source", "expected"),
    [("org/space", True), ("a/b/c", False), ("./x", False), ("x", False), ("d/c.toml", False)],
)
def test_form_of_a_repository_name(source, expected):
    assert locate.is_repository(source) is expected


def make_model(folder):
    """Write a folder with the files of a model and no valid weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"kind": "model"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


MODEL_CARD = """\
name = "small-model"
kind = "model"
summary = "for tests"
licence = "MIT"
licence_note = ""
languages = ["eng_Latn"]
space = "tiny"
"""


def test_model_in_a_folder(tmp_path):
    folder = make_model(tmp_path / "m")
    files = locate.locate_model(str(folder))
    assert files == locate.ModelFiles("m", folder / "config.json", folder / "model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"config\.json is missing"):
        locate.locate_model(str(folder))


def test_model_beside_its_card(tmp_path):
    make_model(tmp_path / "m")
    files = '[files.config]\nname = "config.json"\n[files.model]\nname = "model.safetensors"\n'
    (tmp_path / "m" / "card.toml").write_text(MODEL_CARD + files)
    found = locate.locate_model(str(tmp_path / "m" / "card.toml"))
    assert (found.name, found.licence) == ("small-model", "MIT")
    assert found.weights.read_bytes() == b"weights"
    assert cards.card(str(tmp_path / "m" / "card.toml")).space == "tiny"


def test_model_that_was_pulled(cache, tmp_path):
    card = tmp_path / "card.toml"
    card.write_text(MODEL_CARD + '[source.model]\nrepo = "org/repo"\n')
    with pytest.raises(NotFoundError, match="small-model is not on this machine") as caught:
        locate.locate_model(str(card))
    assert caught.value.hint == f"run: lcm pull {card}"
    make_model(cards.model_folder("small-model"))
    assert cards.list_pulled("model") == ["small-model"]
    assert locate.locate_model(str(card)).licence == "MIT"
    assert locate.locate_model("small-model").weights.parent == cards.model_folder("small-model")


def test_model_in_the_hubs_cache(cache):
    with pytest.raises(NotFoundError, match="org/repo is not on this machine") as caught:
        locate.locate_model("org/repo")
    assert caught.value.hint == "run: lcm pull org/repo"
    place = cache.parent / "hub" / "models--org--repo"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c" * 40)
    make_model(place / "snapshots" / ("c" * 40))
    assert locate.locate_model("org/repo").weights.read_bytes() == b"weights"


def test_unknown_models(cache, official, tmp_path):
    with pytest.raises(UsageError, match="tiny is a space, not a model") as used:
        locate.locate_model("tiny")
    assert used.value.hint == "use it with: --space tiny"
    make_model(cards.model_folder("my-model"))
    with pytest.raises(NotFoundError, match="no model called 'my-modle'") as caught:
        locate.locate_model("my-modle")
    assert caught.value.hint.startswith("did you mean my-model?")
