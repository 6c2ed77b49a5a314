"""From documents to concepts and back, in the library."""

from pathlib import Path

import numpy as np
import pytest
from rounding import additions, assert_near

from lcm_cli.documents import Document
from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.pipeline import Prepared, decode, embed, find_languages, prepare_documents, prose
from lcm_cli.space import DecodeOptions, Space, load_space

CODES = ("eng_Latn", "deu_Latn", "fra_Latn")


@pytest.fixture(scope="module")
def space(random_space: Path) -> Space:
    return load_space(str(random_space), device="cpu")


def _prepared(id: str, *sentences: str, lang: str = "eng_Latn") -> Prepared:
    return Prepared(Document(id, lang=lang, sentences=list(sentences)))


def test_prepare_finds_sentences_and_paragraphs() -> None:
    document = Document("a", text="The hen ran. It was late.\n\nThe eagle flew.")
    found = prepare_documents(document, CODES, "here", "eng_Latn")
    assert found.document.sentences == ["The hen ran.", "It was late.", "The eagle flew."]
    assert found.document.paragraphs == [0, 0, 1]
    assert (found.document.lang, found.document.text, found.split) == ("eng_Latn", "", [])
    assert document.text  # the input is unchanged


def test_prepare_tells_which_sentences_were_cut() -> None:
    long = ", ".join(["and so the hen went on"] * 20) + "."
    found = prepare_documents(Document("a", text=f"It was late. {long}"), CODES, "here", "eng_Latn")
    assert found.split == list(range(1, len(found.document.sentences)))
    assert max(map(len, found.document.sentences)) <= 250


def test_prepare_keeps_given_sentences_and_lines() -> None:
    given = Document("a", sentences=["One. Two.", ""])
    assert prepare_documents(given, CODES, "here", "eng_Latn").document.sentences == [
        "One. Two.",
        "",
    ]
    lines = Document("b", text="One. Two.\nThree")
    found = prepare_documents(lines, CODES, "here", "eng_Latn", one_per_line=True)
    assert found.document.sentences == ["One. Two.", "Three"]


def test_language_of_the_document_goes_before_the_given_one() -> None:
    german = Document("a", lang="de", text="Guten Tag.")
    assert prepare_documents(german, CODES, "here", "fra_Latn").document.lang == "deu_Latn"
    plain = Document("b", text="Guten Tag.")
    assert prepare_documents(plain, CODES, "here", "fra_Latn").document.lang == "fra_Latn"
    text = "Es war einmal ein sehr großer Mann, der in einem kleinen Haus am Wald wohnte."
    assert prepare_documents(Document("c", text=text), CODES, "here").document.lang == "deu_Latn"


def test_errors_name_the_document() -> None:
    with pytest.raises(NotFoundError, match=r"b\.jsonl line 3 \('x'\): space here has no Dutch"):
        prepare_documents(
            Document("x", lang="nl", text="Ja.", origin="b.jsonl line 3"), CODES, "here"
        )
    with pytest.raises(UsageError, match="the text has no words") as error:
        prepare_documents(Document("x", text="12345 678", origin="b.txt"), CODES, "here")
    assert "--from" in error.value.hint


def test_find_languages() -> None:
    assert find_languages(["de", "French", "deu_Latn"], CODES, "here") == ["deu_Latn", "fra_Latn"]
    assert find_languages(["de", "ALL"], CODES, "here") == list(CODES)
    assert find_languages([], CODES, "here") == []
    with pytest.raises(NotFoundError, match="frx"):
        find_languages(["frx"], CODES, "here")


def test_embed_gives_every_document_its_own_concepts(space: Space) -> None:
    window = [
        _prepared("a", "The hen ran.", "It was late."),
        _prepared("b", "Der Adler flog.", lang="deu_Latn"),
        _prepared("c", "It was late."),
    ]
    told: list[int] = []
    found = embed(window, space, told.append)
    assert sum(told) == 4
    for before, after in zip(window, found, strict=True):
        alone = space.encode(before.document.sentences, before.document.lang).concepts
        assert after.concepts.shape == (len(before.document.sentences), 32)
        assert_near(after.concepts, alone, additions(space.encoder))


def test_embed_keeps_concepts_that_are_given(space: Space) -> None:
    given = Document("b", concepts=np.ones((3, 32), dtype=np.float32))
    window = [_prepared("a", "The hen ran."), Prepared(given), _prepared("c", "It was late.")]
    first, second, third = embed(window, space)
    assert second.document is given and second.size == 3
    for found, sentence in ((first, "The hen ran."), (third, "It was late.")):
        alone = space.encode([sentence], "eng_Latn").concepts
        assert_near(found.concepts, alone, additions(space.encoder))


def test_embed_tells_of_sentences_over_the_token_limit(space: Space) -> None:
    long = " ".join(["hen"] * 300)
    window = [_prepared("a", "Yes.", "No."), _prepared("b", "Yes.", long), _prepared("c", long)]
    found = embed(window, space)
    assert [[cut.index for cut in each.truncated] for each in found] == [[], [1], [0]]
    assert found[1].truncated[0].limit == 128 < found[1].truncated[0].tokens


def test_decode_gives_every_document_its_own_texts(space: Space) -> None:
    window = [_prepared("a", "The hen ran.", "It was late."), _prepared("b", "Eagle flew.")]
    documents = [each.document for each in embed(window, space)]
    found = decode(documents, ["deu_Latn", "fra_Latn"], space, DecodeOptions(beam=2))
    for document, decoded in zip(documents, found, strict=True):
        assert document.concepts is not None
        limits = space.limits(document.sentences, "eng_Latn")
        alone = space.decode(document.concepts, ["fra_Latn"], DecodeOptions(beam=2), limits=limits)
        assert [t[0].text for t in decoded.texts["fra_Latn"]] == [
            t[0].text for t in alone["fra_Latn"]
        ]
        assert list(decoded.texts) == ["deu_Latn", "fra_Latn"]


def test_decode_without_sentences_has_the_limit_of_the_options(space: Space) -> None:
    concepts = space.encode(["The hen ran."], "eng_Latn").concepts
    document = Document("a", concepts=concepts.astype(np.float16))
    found = decode([document], ["fra_Latn"], space, DecodeOptions(beam=1, max_tokens=4))
    ids = space.tokenize([found[0].text("fra_Latn")], "fra_Latn")[0]
    assert len(ids) <= 4 + 2


def test_prose() -> None:
    sentences = ["One.", "Two.", "Three."]
    assert prose(sentences, "eng_Latn") == "One. Two. Three."
    assert prose(sentences, "eng_Latn", [0, 0, 1]) == "One. Two.\n\nThree."
    assert prose(sentences, "eng_Latn", [0, 0, 1], one_per_line=True) == "One.\nTwo.\n\nThree."
    assert prose(["猫。", "犬。"], "jpn_Jpan") == "猫。犬。"
    assert prose([], "eng_Latn") == ""
