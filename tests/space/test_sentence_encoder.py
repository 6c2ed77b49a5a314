"""The conventions of sentence-transformers, on the bundled space."""

import inspect

import numpy as np
import pytest
import torch

from lcm_cli import SentenceEncoder
from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.space import load_space

TEXTS = ["The cat sleeps in the garden.", "Die Katze schläft im Garten.", "The cat sleeps."]
CODES = ["eng_Latn", "deu_Latn", "eng_Latn"]


@pytest.fixture(scope="module")
def space():
    return load_space("tiny", device="cpu")


@pytest.fixture(scope="module")
def encoder(space):
    return SentenceEncoder(space)


def test_a_list_gives_the_concepts_of_the_space(space, encoder):
    found = encoder.encode(TEXTS, lang=CODES)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    assert np.array_equal(found, space.encode(TEXTS, CODES).concepts)
    assert np.array_equal(encoder.encode(tuple(TEXTS), lang=CODES), found)
    assert encoder.encode([]).shape == (0, space.dim)


def test_a_string_gives_one_vector(space, encoder):
    (wanted,) = space.encode(TEXTS[:1], "eng_Latn").concepts
    assert np.array_equal(encoder.encode(TEXTS[0]), wanted)
    tensor = encoder.encode(TEXTS[0], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.shape == (space.dim,)
    assert torch.equal(encoder.encode(TEXTS[0], convert_to_numpy=False), tensor)


def test_tensors(space, encoder):
    wanted = encoder.encode(TEXTS)
    tensor = encoder.encode(TEXTS, convert_to_tensor=True)
    assert (tensor.device, tensor.dtype) == (space.device, torch.float32)
    assert np.array_equal(tensor.numpy(), wanted)
    rows = encoder.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(rows, list) and torch.equal(torch.stack(rows), tensor)


def test_normalized(encoder):
    plain, unit = encoder.encode(TEXTS), encoder.encode(TEXTS, normalize_embeddings=True)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, plain / lengths, rtol=1e-6)


def test_language_is_detected_by_text(space, encoder):
    assert np.array_equal(encoder.encode(TEXTS), space.encode(TEXTS, CODES).concepts)
    odd = ["", "1 + 1 = 2", "Ελληνικά"]  # no letters, and a language that the space lacks
    found = [encoder.encode(odd), encoder.encode(odd[:2], lang="English")]
    assert np.isfinite(found[0]).all() and np.array_equal(found[0][:2], found[1])


def test_language_of_the_encoder_and_of_a_call(space):
    encoder = SentenceEncoder(space, lang="German")
    text = TEXTS[:1]
    assert np.array_equal(encoder.encode(text), space.encode(text, "deu_Latn").concepts)
    french = space.encode(text, "fra_Latn").concepts
    assert np.array_equal(encoder.encode(text, lang="fr"), french)


def test_wrong_languages(space, encoder):
    with pytest.raises(NotFoundError, match="Japanese"):
        SentenceEncoder(space, lang="Japanese")
    with pytest.raises(NotFoundError, match="Japanese"):
        encoder.encode(TEXTS, lang=["en", "Japanese", "en"])
    with pytest.raises(UsageError, match="2 languages for 3 texts"):
        encoder.encode(TEXTS, lang=["en", "de"])


def test_long_texts_are_truncated(space, encoder):
    long = "The cat sleeps in the garden. " * 100
    (cut,) = space.encode([long], "eng_Latn").truncated
    assert cut.tokens > cut.limit
    assert np.array_equal(encoder.encode([long]), encoder.encode([long + "And the dog."]))


@pytest.mark.parametrize("option", ["prompt", "prompt_name"])
def test_no_prompts(encoder, option):
    with pytest.raises(UsageError, match="tiny has no prompts: 'query: '"):
        encoder.encode(TEXTS, **{option: "query: "})
    encoder.encode(TEXTS[:1], **{option: None})


def test_progress_bar_is_on_stderr(encoder, capsys):
    encoder.encode(TEXTS, show_progress_bar=True)
    shown = capsys.readouterr()
    assert "encode" in shown.err and not shown.out
    encoder.encode(TEXTS)
    assert capsys.readouterr().err == ""


def test_options_have_the_names_and_defaults_of_sentence_transformers():
    package = pytest.importorskip("sentence_transformers")
    theirs = inspect.signature(package.SentenceTransformer.encode).parameters
    ours = dict(inspect.signature(SentenceEncoder.encode).parameters)
    for name in ("self", "sentences", "lang"):  # the texts come first, whatever their name
        del ours[name]
    assert {n: p.default for n, p in ours.items()} == {n: theirs[n].default for n in ours}
