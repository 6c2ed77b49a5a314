"""Summaries in the library: length, chosen sentences, languages, similarity."""

from pathlib import Path

import numpy as np
import pytest

from lcm_cli.documents import Document
from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.pipeline import Prepared, embed
from lcm_cli.space import Space, load_space
from lcm_cli.text.length import Length, count_words
from lcm_cli.writing.links import mask
from lcm_cli.writing.summarize import choose_sentences, summarize, summarize_all

STORY = [
    "Once upon a time, Hen and Eagle were friends.",
    "They lived in peace with all the other birds.",
    "None of them could fly.",
    "One day, there was famine in the land.",
    "Eagle had to walk very far to find food.",
    "She came back very tired.",
    "* * *",
    "None of them could fly.",
]


@pytest.fixture(scope="module")
def space(random_space: Path) -> Space:
    return load_space(str(random_space), device="cpu")


@pytest.fixture(scope="module")
def story(space: Space) -> Prepared:
    document = Document("story", lang="eng_Latn", sentences=STORY)
    return embed([Prepared(document)], space)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", Length(3, "sentences")),
        (" 20% ", Length(20, "percent")),
        ("100%", Length(100, "percent")),
        ("120w", Length(120, "words")),
    ],
)
def test_length(text: str, expected: Length) -> None:
    assert Length.parse(text) == expected
    assert Length.parse(str(expected)) == expected


def test_an_expansion_may_be_longer_than_its_source() -> None:
    assert Length.parse("300%", shorter=False) == Length(300, "percent")


@pytest.mark.parametrize("text", ["", "0", "0%", "0w", "-3", "101%", "3.5", "w", "3 pages", "٣x"])
def test_what_is_no_length(text: str) -> None:
    with pytest.raises(UsageError, match="is not a length") as error:
        Length.parse(text)
    assert "120w" in error.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("* * *", 0),
        ("The hen's well-known needle, 12 of them.", 7),
        ("Aujourd’hui, c'est là.", 3),
        ("我们喜欢猫。", 3),
        ("猫", 1),
        ("lcm を使う", 3),
        ("สวัสดีครับ", 2),
    ],
)
def test_count_words(text: str, words: int) -> None:
    assert count_words(text) == words


def test_choice_has_the_wanted_number_of_sentences(story: Prepared) -> None:
    assert len(choose_sentences(story, Length(3, "sentences"))) == 3
    assert len(choose_sentences(story, Length(20, "percent"))) == 2  # of 8, rounded up
    assert len(choose_sentences(story, Length(1, "percent"))) == 1
    every = list(range(7))  # the eighth repeats the third
    assert choose_sentences(story, Length(100, "percent")) == every
    assert choose_sentences(story, Length(99, "sentences")) == every


def test_nothing_without_words_or_said_before_is_chosen(story: Prepared) -> None:
    chosen = choose_sentences(story, Length(6, "sentences"))
    assert 6 not in chosen
    assert not {2, 7} <= set(chosen)


@pytest.mark.parametrize("budget", [1, 5, 10, 17, 30, 1000])
def test_words_are_a_budget(story: Prepared, budget: int) -> None:
    chosen = choose_sentences(story, Length(budget, "words"))
    words = [count_words(sentence) for sentence in STORY]
    assert chosen == sorted(chosen)
    assert len(chosen) == 1 or sum(words[i] for i in chosen) <= budget
    assert budget < 1000 or len(chosen) == 7


def test_own_language_is_quoted(space: Space) -> None:
    text = "  ".join(STORY[:6])
    summary = summarize(Document("a", text=text), space, length="2", cite=True, source="English")
    assert summary.lang == "eng_Latn"
    assert list(summary.texts) == ["eng_Latn"]
    assert summary.total == 6
    for sentence in summary.sentences:
        (cited,) = sentence.sources
        assert cited.text == STORY[cited.index - 1] == sentence.texts["eng_Latn"]
        assert cited.similarity == {"eng_Latn": 1.0}
    assert summary.texts["eng_Latn"] == " ".join(
        sentence.sources[0].text for sentence in summary.sentences
    )


def test_other_languages_are_decoded_from_the_concepts(story: Prepared, space: Space) -> None:
    to = ["fra_Latn", "eng_Latn", "deu_Latn"]
    (summary,) = summarize_all([story], space, to, Length(3, "sentences"), cite=True)
    assert list(summary.texts) == to
    assert [s.sources[0].index for s in summary.sentences] == [
        i + 1 for i in choose_sentences(story, Length(3, "sentences"))
    ]
    for sentence in summary.sentences:
        (cited,) = sentence.sources
        concept = story.concepts[[cited.index - 1]]
        limits = space.limits([cited.text], "eng_Latn")
        for code in ("fra_Latn", "deu_Latn"):
            decoded = space.decode(concept, [code], limits=limits)[code][0][0].text
            assert sentence.texts[code] == decoded
            again = space.encode([decoded], code).concepts[0]
            cosine = again @ concept[0] / np.linalg.norm(again) / np.linalg.norm(concept[0])
            assert cited.similarity[code] == pytest.approx(float(cosine), abs=1e-4)
        assert list(cited.similarity) == to


def test_links_and_emoji_are_hidden_from_the_decoder(space: Space) -> None:
    text = "The dog ran to https://example.org/a 😀."
    answer = summarize(Document("a", "eng_Latn", text=text), space, ["fra_Latn"], cite=True)
    plain = summarize(Document("b", "eng_Latn", text="The dog ran to Tom."), space, ["fra_Latn"])
    said, hidden = answer.texts["fra_Latn"], plain.texts["fra_Latn"]
    assert said == mask(text).restore(hidden)
    assert said.count("https://example.org/a") == said.count("😀") == 1
    assert answer.sentences[0].sources[0].text == text


def test_many_documents_are_summarized_as_each_alone(story: Prepared, space: Space) -> None:
    german = Document("b", lang="deu_Latn", sentences=["Er ging.", "Sie kam.", "Es war spät."])
    window = [story, embed([Prepared(german)], space)[0]]
    length = Length(1, "sentences")
    for to in ([], ["fra_Latn", "deu_Latn"]):
        together = summarize_all(window, space, to, length)
        assert together == [summarize_all([each], space, to, length)[0] for each in window]
    assert [summary.lang for summary in together] == ["eng_Latn", "deu_Latn"]
    first, second = (summary.sentences[0] for summary in together)
    assert second.texts["deu_Latn"] == second.sources[0].text
    assert first.sources[0].similarity == {}


def test_all_languages(space: Space) -> None:
    summary = summarize(Document("a", lang="en", sentences=STORY), space, ["all"], "1")
    assert tuple(summary.texts) == space.languages


def test_one_sentence(space: Space) -> None:
    summary = summarize(Document("a", lang="en", sentences=["Yes."]), space)
    assert [sentence.sources[0].index for sentence in summary.sentences] == [1]


def test_unknown_language_and_length(space: Space) -> None:
    with pytest.raises(NotFoundError, match="random has no Zulu"):
        summarize(Document("a", sentences=STORY), space, ["zul"])
    with pytest.raises(UsageError, match="not a length"):
        summarize(Document("a", sentences=STORY), space, length="long")
