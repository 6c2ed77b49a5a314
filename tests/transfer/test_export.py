"""Export to transformers: its real classes compute the same numbers, and lcm reads it back."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import yaml
from safetensors.torch import load_file, save_file

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.hub.layouts import read_metadata
from lcm_cli.space import load_space
from lcm_cli.space.tokenizer import Tokenizer
from lcm_cli.transfer.convert import convert
from lcm_cli.transfer.converters.tokenizer_json import tokenizer_json
from lcm_cli.transfer.export import export
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import resolve

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = [
    "The cat sleeps in the garden.",
    "  Two   spaces ☃ and ½ ",
    "Où est-il ? — “Là.”",
    "a",
    "日本",
    "",
]
SAME = 1e-5  # the largest difference to transformers, of numbers below 1
THEIR_IDS = {0: 2, 1: 0, 2: 3, 3: 1}  # lcm's id of each of theirs: <s> <pad> </s> <unk>


@pytest.fixture(scope="module")
def tiny():
    return load_space("tiny", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "tiny"
    export("tiny", folder)
    return folder


@pytest.fixture(scope="module")
def theirs(exported):
    """The model and the tokenizer, as transformers loads them."""
    transformers = pytest.importorskip("transformers")
    model, report = transformers.M2M100ForConditionalGeneration.from_pretrained(
        exported, output_loading_info=True
    )
    assert not any(report.values())  # nothing is missing, unexpected or of another shape
    return model.eval(), transformers.AutoTokenizer.from_pretrained(exported)


def concepts(model, tokenizer, texts, lang):
    batch = tokenizer([f"{lang} {text}" for text in texts], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.get_encoder()(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return (hidden * mask).sum(1) / mask.sum(1)


def test_encoder_computes_the_same(tiny, theirs):
    for lang in tiny.languages:
        ours = tiny.encode(TEXTS, lang).concepts
        np.testing.assert_allclose(concepts(*theirs, TEXTS, lang), ours, atol=SAME, rtol=0)


def test_decoder_computes_the_same(tiny, theirs):
    from transformers.modeling_outputs import BaseModelOutput

    model, _ = theirs
    vectors = torch.from_numpy(tiny.encode(TEXTS[:1], "eng_Latn").concepts)
    row = [3, *tiny.tokenize(TEXTS[:1], "fra_Latn")[0][:-1]]
    swap = {ours: their for their, ours in THEIR_IDS.items()}
    ids = torch.tensor([[swap.get(number, number) for number in row]])
    with torch.inference_mode():
        found = model(
            encoder_outputs=BaseModelOutput(vectors[:, None]), decoder_input_ids=ids
        ).logits[0]
        wanted = tiny.decoder.project(tiny.decoder(vectors, [row]))
    wanted = torch.cat([wanted[:, [2, 0, 3, 1]], wanted[:, 4:]], dim=1)
    size = float(wanted.abs().max())
    torch.testing.assert_close(found / size, wanted / size, atol=SAME, rtol=0)


def test_example_of_the_readme_translates(tiny, theirs, exported, monkeypatch, capsys):
    monkeypatch.chdir(exported)
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "['Hallo!']\n"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_tokenizer_gives_the_same_ids_and_texts(examples_text, tmp_path, kind):
    """Also for text with characters that the vocabulary lacks."""
    tokenizers = pytest.importorskip("tokenizers")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(examples_text), model_prefix=str(tmp_path / "t"), vocab_size=500,
        model_type=kind, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    languages = ["eng_Latn", "deu_Latn"]
    ours = Tokenizer(tmp_path / "t.model", languages)
    content = tokenizer_json(tmp_path / "t.model", languages)
    their = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in [*examples_text, *TEXTS]:
        (wanted,) = ours.encode([text], "deu_Latn")
        found = their.encode(f"deu_Latn {text}").ids
        assert [THEIR_IDS.get(number, number) for number in found] == wanted
        assert their.decode(found) == ours.decode([wanted])[0]


@pytest.fixture(scope="module")
def examples_text():
    stories = sorted(EXAMPLES.glob("*.txt"))
    return [line for path in stories for line in path.read_text("utf-8").splitlines() if line]


def card(folder, space, path):
    """Write a card that names an exported folder as the source of every part."""
    lines = ['name = "back"', 'kind = "space"', 'summary = "for tests"', 'licence = "MIT"']
    lines += ['licence_note = "free"', f"languages = {list(space.languages)}"]
    for role in ("encoder", "decoder"):
        sizes = space.files.config[role].items()
        lines += [f"[{role}]", *(f"{key} = {json.dumps(value)}" for key, value in sizes)]
    for role in ("encoder", "decoder", "tokenizer"):
        lines += [f"[source.{role}]", f'repo = "{folder}"']
    path.write_text("\n".join(lines).replace("'", '"'), encoding="utf-8")
    return path


@pytest.mark.slow
def test_pulled_back_it_is_the_same_space(cache, tiny, exported, tmp_path):
    folder = pull(resolve(str(card(exported, tiny, tmp_path / "back.toml"))).plan()).path
    back = load_space(str(folder), device="cpu", precision="float32")
    assert back.fingerprint == tiny.fingerprint
    here, there = (space.encode(TEXTS, "eng_Latn").concepts for space in (tiny, back))
    np.testing.assert_allclose(there, here, atol=SAME, rtol=0)
    assert back.decode(here[:3], ["fra_Latn"]) == tiny.decode(here[:3], ["fra_Latn"])


def test_converted_back_it_is_the_same_space(tiny, exported, tmp_path):
    done = convert(str(exported), tmp_path / "back")
    assert (done.kind, done.dim, done.space) == ("space", 384, "tiny")
    back = load_space(str(tmp_path / "back"), device="cpu", precision="float32")
    assert (back.fingerprint, back.languages) == (tiny.fingerprint, tiny.languages)
    assert back.licence == "cc-by-4.0"
    vectors = tiny.encode(TEXTS[:3], "eng_Latn").concepts
    assert back.decode(vectors, ["nld_Latn"]) == tiny.decode(vectors, ["nld_Latn"])


def test_conversion_of_a_damaged_export(random_space, tmp_path):
    port = tmp_path / "port"
    export(str(random_space), port)
    with pytest.raises(UsageError, match="keeps its numbers"):
        convert(str(port), tmp_path / "back", "int8")
    config = json.loads((port / "config.json").read_text())
    (port / "config.json").write_text(json.dumps(config | {"d_model": None}))
    with pytest.raises(IntegrityError, match="lacks a size"):
        convert(str(port), tmp_path / "back")
    (port / "config.json").write_text(json.dumps(config | {"decoder_layers": 10**12}))
    with pytest.raises(IntegrityError, match=r"decoder_layers = 10+"):
        convert(str(port), tmp_path / "back")
    (port / "tokenizer_config.json").unlink()
    with pytest.raises(IntegrityError, match="list no languages"):
        convert(str(port), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_shared_embedding_is_stored_once(cache, random_space, tmp_path):
    transformers = pytest.importorskip("transformers")
    source = shutil.copytree(random_space, tmp_path / "space")
    shared = load_file(source / "encoder.safetensors")["encoder_frontend.embed.weight"]
    state = load_file(source / "decoder.safetensors") | {"decoder_frontend.embed.weight": shared}
    save_file(state, source / "decoder.safetensors")
    folder = tmp_path / "port"
    export(str(source), folder)
    stored = load_file(folder / "model.safetensors")
    assert sum(len(tensor) == len(shared) for tensor in stored.values()) == 1
    model, report = transformers.M2M100ForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    assert model.lm_head.weight is model.get_encoder().embed_tokens.weight
    space = load_space(str(source), device="cpu", precision="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = space.encode(TEXTS, "fra_Latn").concepts
    found = concepts(model.eval(), tokenizer, TEXTS, "fra_Latn").numpy() / abs(ours).max()
    np.testing.assert_allclose(found, ours / abs(ours).max(), atol=SAME, rtol=0)
    place = pull(resolve(str(card(folder, space, tmp_path / "back.toml"))).plan()).path
    back = load_file(place / "decoder.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_weights_without_effect_are_kept_if_there_are_any(random_space, tmp_path):
    export(str(random_space), tmp_path / "port")
    found = load_file(tmp_path / "port" / "model.safetensors")
    wanted = load_file(random_space / "decoder.safetensors")
    name = "decoder.layers.1.encoder_decoder_attn.k_proj.weight"
    assert torch.equal(found["model.decoder.layers.1.encoder_attn.k_proj.weight"], wanted[name])


def test_card(exported, random_space, tmp_path):
    text = (exported / "README.md").read_text(encoding="utf-8")
    found = yaml.safe_load(text.split("---\n")[1])
    assert (found["library_name"], found["license"]) == ("transformers", "cc-by-4.0")
    assert found["language"] == ["en", "de", "fr", "es", "nl"]
    (entry,) = found["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "tiny"
    assert result["task"] == {"type": "translation"}
    assert {"type": "xsim", "name": "xsim %", "value": 99.6} in result["metrics"]
    assert "Common Voice" in text  # the attributions that the licence demands
    export(str(random_space), tmp_path / "port")
    plain = (tmp_path / "port" / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in plain and "# random\n" in plain


def test_card_is_accepted_by_the_client_of_the_hub(exported):
    from huggingface_hub import ModelCard

    data = ModelCard.load(exported / "README.md").data
    assert data.model_name == "tiny"
    assert {result.metric_name for result in data.eval_results or []} >= {"xsim %"}


def test_own_page_is_kept(random_space, tmp_path):
    space = shutil.copytree(random_space, tmp_path / "space")
    page = "---\nlicense: mit\nlibrary_name: lcm\ndatasets: [mine]\n---\n# My words\n"
    (space / "README.md").write_text(page)
    export(str(space), tmp_path / "port")
    made = tmp_path / "port" / "README.md"
    assert "# My words\n" in made.read_text() and "# random" not in made.read_text()
    found = read_metadata(made)
    assert (found["library_name"], found["datasets"]) == ("transformers", ["mine"])


@pytest.mark.parametrize(
    ("role", "sizes", "message"),
    [
        ("decoder", {"model_dim": 64}, "the width of the decoder is 64, the encoder's is 32"),
        ("decoder", {"concept_dim": 64}, "the width of the concepts is 64"),
        ("encoder", {"vocabulary": 99}, "the vocabulary of the decoder is"),
    ],
)
def test_space_that_does_not_fit(random_space, tmp_path, role, sizes, message):
    space = shutil.copytree(random_space, tmp_path / "space")
    config = json.loads((space / "config.json").read_text())
    config[role] |= sizes
    (space / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=f"random does not fit M2M-100: {message}"):
        export(str(space), tmp_path / "port")
    assert not (tmp_path / "port").exists()


def test_model_and_existing_folder(random_space, tmp_path):
    with pytest.raises(UsageError, match="tiny-base is a model, not a space"):
        export("tiny-base", tmp_path / "port")
    export(str(random_space), tmp_path / "port")
    with pytest.raises(UsageError, match="already holds a checkpoint"):
        export(str(random_space), tmp_path / "port")
    export(str(random_space), tmp_path / "port", force=True)


def test_wrong_tensors_leave_nothing_behind(random_space, tmp_path):
    space = shutil.copytree(random_space, tmp_path / "space")
    state = load_file(space / "decoder.safetensors")
    del state["decoder.layers.0.ffn.inner_proj.bias"]
    save_file(state, space / "decoder.safetensors")
    with pytest.raises(IntegrityError, match=r"lacks decoder\.layers\.0\.ffn\.inner_proj\.bias"):
        export(str(space), tmp_path / "port")
    assert not (tmp_path / "port").exists()
