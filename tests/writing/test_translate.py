"""Translations with their similarity, doubts and losses, in real spaces."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lcm_cli.documents import Document
from lcm_cli.pipeline import embed, prepare_documents
from lcm_cli.space import DecodeOptions, Space, load_space
from lcm_cli.space.similarity import cosines
from lcm_cli.space.tokenizer import EOS
from lcm_cli.writing.glossary import Glossary, Term
from lcm_cli.writing.refusal import refuse_sentence
from lcm_cli.writing.translate import (
    NEAR,
    UNMEASURED,
    Rendering,
    TranslateOptions,
    Translation,
    threshold,
    translate_all,
)


@pytest.fixture(scope="module")
def tiny() -> Space:
    return load_space("tiny", device="cpu")


@pytest.fixture(scope="module")
def untrained(random_space: Path) -> Space:
    return load_space(str(random_space), device="cpu")


def translate(
    space: Space,
    texts: Sequence[str],
    to: Sequence[str] = ("fra_Latn",),
    options: TranslateOptions | None = None,
) -> list[Translation]:
    documents = [Document(str(n), "eng_Latn", text) for n, text in enumerate(texts)]
    prepared = [prepare_documents(document, space.languages, "tiny") for document in documents]
    return translate_all(embed(prepared, space), space, to, options)


def one(space: Space, text: str, options: TranslateOptions | None = None) -> Rendering:
    [translation] = translate(space, [text], options=options)
    [rendering] = translation.sentences["fra_Latn"]
    return rendering


def test_similarity_is_that_of_the_text_encoded_again(tiny: Space) -> None:
    source = "Tom lives in a small village."
    found = one(tiny, source, TranslateOptions(n_best=3))
    concept = tiny.encode([source], "eng_Latn").concepts
    again = tiny.encode([c.text for c in found.candidates], "fra_Latn").concepts
    similarities = [c.similarity for c in found.candidates]
    assert similarities == pytest.approx(cosines(again, concept)[:, 0], abs=1e-5)
    assert (found.text, found.similarity) == (found.candidates[0].text, similarities[0])
    assert found.similarity > NEAR[tiny.fingerprint] and found.doubt is None
    plain = tiny.decode(concept, ["fra_Latn"], DecodeOptions(n_best=5))["fra_Latn"][0]
    assert [(c.text, pytest.approx(c.score, abs=1e-4)) for c in found.candidates] == [
        (text.text, text.score) for text in plain[:3]
    ]


def test_documents_and_languages_share_their_sentences(untrained: Space) -> None:
    texts = ["The hen ran. It was late.\n\nThe hen ran.", "It was late."]
    done: list[int] = []
    documents = [Document(str(n), "eng_Latn", text) for n, text in enumerate(texts)]
    window = embed([prepare_documents(d, untrained.languages, "") for d in documents], untrained)
    first, second = translate_all(window, untrained, ["fra_Latn", "deu_Latn"], progress=done.append)
    assert sum(done) == 2 * 4
    for code in ("fra_Latn", "deu_Latn"):
        hen, late, again = first.sentences[code]
        assert hen == again and second.sentences[code] == [late]
        assert first.text(code) == f"{hen.text} {late.text}\n\n{hen.text}"
        assert first.text(code, one_per_line=True).splitlines()[:2] == [hen.text, late.text]


def test_an_unmeasured_space_has_the_default_threshold(untrained: Space, tiny: Space) -> None:
    assert threshold(tiny) == NEAR[tiny.fingerprint]
    assert threshold(untrained) == UNMEASURED


def test_another_meaning_is_far(tiny: Space) -> None:
    assert one(tiny, "Zzyx qwrtp vlkmn ptrsk gghd wqxz brrt.").doubt == "far"


def test_a_translation_that_repeats_itself_is_searched_again(random_space: Path) -> None:
    source, code = "The hen ran.", "fra_Latn"
    space = load_space(str(random_space), device="cpu")
    with torch.no_grad():  # away from the end token: texts of full length
        end = space.decoder.decoder_frontend.embed.weight[EOS]
        space.decoder.decoder.layer_norm.bias -= 4 * end / end.norm()
    concept = space.encode([source], "eng_Latn").concepts
    limits = space.limits([source], "eng_Latn")
    first = space.decode(concept, [code], DecodeOptions(n_best=5), limits=limits)[code][0]
    assert {refuse_sentence(text.text, code, source) for text in first} == {"repetition"}
    found = one(space, source)
    assert found.doubt != "repetition"
    again = space.encode([found.text], code).concepts
    assert found.similarity == pytest.approx(float(cosines(again, concept)[0, 0]), abs=1e-5)


@pytest.mark.parametrize("text", ["?!", "1,000.", "https://example.com/a", "a" * 240, "🙂"])
def test_sentences_without_words_are_copied(tiny: Space, text: str) -> None:
    assert one(tiny, text) == Rendering(text)


def test_links_stay_in_their_place(tiny: Space) -> None:
    found = one(tiny, "Write to anna@example.org before Friday.")
    assert "anna@example.org" in found.text and "(" not in found.text
    both = one(tiny, "You can find more information at https://example.com/a?b=1&c.")
    assert "https://example.com/a?b=1&c" in both.text


def test_the_candidate_with_the_numbers_wins(tiny: Space) -> None:
    source = "The house costs 250,000 dollars and has 12 rooms."
    found = one(tiny, source, TranslateOptions(n_best=5))
    assert all(number not in found.text for number in found.lost)
    lost = [sum(n not in c.text.replace(" ", "") for n in ("250", "12")) for c in found.candidates]
    assert lost[0] == min(lost)


def test_the_candidate_with_the_term_wins(tiny: Space) -> None:
    source = "He went to the river every day."
    plain = one(tiny, source, TranslateOptions(n_best=5))
    [other, *_] = [c for c in plain.candidates[1:] if c.text != plain.text]
    words = set(other.text.rstrip(".").split()) - set(plain.text.rstrip(".").split())
    term = Term("river", max(words, key=len), "fra_Latn")
    found = one(tiny, source, TranslateOptions(glossary=Glossary((term,))))
    assert term.translation in found.text and found.lost == ()


def test_a_missed_term_is_lost(tiny: Space) -> None:
    glossary = Glossary((Term("river", "zzz"),))
    assert one(tiny, "He saw a river.", TranslateOptions(glossary=glossary)).lost == ("river",)
