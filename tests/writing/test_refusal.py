"""Refusal of failed answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcm_cli.space.similarity import cosines
from lcm_cli.writing.refusal import Thresholds, refuse, refuse_sentence

SOURCES = np.eye(8, dtype=np.float32)
GOOD = ["A small cat sat in the garden.", "A girl opened the door of the house."]
LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn")


def near(*sources: int) -> np.ndarray:
    """Return concepts near these source sentences, all slightly different."""
    drift = np.arange(len(sources))[:, None] * np.roll(SOURCES[list(sources)], 1, axis=1) * 0.3
    return np.asarray(SOURCES[list(sources)] + drift, dtype=np.float32)


def test_a_good_answer_passes() -> None:
    assert refuse({"eng_Latn": GOOD}, near(0, 4), SOURCES, languages=LANGUAGES) is None


def test_empty() -> None:
    nothing = np.empty((0, 8), dtype=np.float32)
    assert refuse({"eng_Latn": []}, nothing, SOURCES) == "empty"
    assert refuse({"eng_Latn": ["", " ..."]}, near(0, 4), SOURCES) == "empty"
    texts = {"eng_Latn": GOOD, "fra_Latn": ["* * *", "!"]}
    assert refuse(texts, near(0, 4), SOURCES) == "empty"


def test_short() -> None:
    assert refuse({"eng_Latn": GOOD}, near(0, 4), SOURCES, least=2) is None
    assert refuse({"eng_Latn": GOOD}, near(0, 4), SOURCES, least=3) == "short"


def test_sentences_that_mean_the_same() -> None:
    texts = [*GOOD, "The moon is round.", "He said the same in other words."]
    assert refuse({"eng_Latn": texts}, near(0, 1, 2, 3), SOURCES) is None
    same = near(0, 1, 2, 3)
    same[3] = same[2] + 0.01  # one repetition in four sentences is allowed
    assert refuse({"eng_Latn": texts}, same, SOURCES) is None
    same[1] = same[0] + 0.01
    assert refuse({"eng_Latn": texts}, same, SOURCES) == "repetition"


def test_the_same_text_again() -> None:
    texts = {"eng_Latn": [GOOD[0], GOOD[0].upper() + " !"]}
    assert refuse(texts, near(0, 4), SOURCES) == "repetition"
    texts = {"eng_Latn": GOOD, "deu_Latn": ["Die Katze sitzt im Garten."] * 2}
    assert refuse(texts, near(0, 4), SOURCES) == "repetition"


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("The man and the man and the man and the man and the man and", True),
        ("No no no no no no.", True),
        ("这是这是这是这是这是", True),
        ("Once, ha ha ha ha, he laughed and laughed until it was dark outside.", False),
        ("She said that he said that it was late, and that was that.", False),
        ("Nooooooo, do not go away from me!", False),
    ],
)
def test_going_round_in_a_sentence(text: str, loops: bool) -> None:
    found = refuse({"eng_Latn": [text, GOOD[1]]}, near(0, 4), SOURCES)
    assert found == ("repetition" if loops else None)


def test_about_something_else() -> None:
    elsewhere = np.stack([-SOURCES.sum(axis=0), -np.arange(1, 9)]).astype(np.float32)
    half = np.concatenate([near(0), elsewhere[:1]])
    assert refuse({"eng_Latn": GOOD}, half, SOURCES) == "unrelated"
    assert refuse({"eng_Latn": GOOD}, half, SOURCES, Thresholds(about=0.0)) is None
    assert refuse({"eng_Latn": GOOD}, elsewhere, SOURCES, Thresholds(about=-1)) == "unrelated"
    texts = {"eng_Latn": [*GOOD, "The moon is round."]}
    most = np.concatenate([near(0, 4), elsewhere[:1]])  # cosines of 1, 0.96 and -0.35
    assert refuse(texts, most, SOURCES, Thresholds(about=0.5)) is None
    assert refuse(texts, most, SOURCES, Thresholds(about=0.55)) == "unrelated"


def test_another_language() -> None:
    german = ["Die kleine Katze sitzt im Garten.", "Das Mädchen öffnet ihr die Tür des Hauses."]
    assert refuse({"deu_Latn": german}, near(0, 4), SOURCES, languages=LANGUAGES) is None
    assert refuse({"fra_Latn": german}, near(0, 4), SOURCES, languages=LANGUAGES) == "language"
    # German is not a language of this space, so its decoder cannot have been asked for it.
    assert refuse({"fra_Latn": german}, near(0, 4), SOURCES, languages=("fra_Latn",)) is None


def test_cosines_of_nothing() -> None:
    assert cosines(np.zeros((2, 3)), np.ones((1, 3))).tolist() == [[0.0], [0.0]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_any_text_is_judged(texts: list[str], seed: int) -> None:
    concepts = np.random.default_rng(seed).normal(size=(len(texts), 8))
    reasons = {None, "empty", "repetition", "unrelated", "language"}
    assert refuse({"eng_Latn": texts}, concepts, SOURCES, languages=LANGUAGES) in reasons


LOOP = "The man and the man and the man and the man and the man."
GERMAN = "Am Montag ging der alte Mann mit seinem Hund in den Wald hinter dem Dorf."


@pytest.mark.parametrize(
    ("text", "source", "reason"),
    [
        (GOOD[0], "Eine Katze.", None),
        ("", "Eine Katze.", "empty"),
        ("* — !", "Eine Katze.", "empty"),
        (LOOP, "Der Mann.", "repetition"),
        ("Ha, ha, ha, ha, ha!", "Ha ha ha ha ha ha.", None),
        (GERMAN, "Le lundi.", "language"),
        ("Am Montag im Wald.", "Lundi au bois.", None),  # too short to be sure
    ],
)
def test_sentences(text: str, source: str, reason: str | None) -> None:
    assert refuse_sentence(text, "eng_Latn", source, LANGUAGES) == reason


@pytest.mark.parametrize("code", ["ary_Arab", "szl_Latn", "ace_Arab", "zho_Hant"])
def test_a_language_that_the_identifier_does_not_know_is_never_foreign(code: str) -> None:
    assert refuse_sentence(GERMAN, code, "A man.", (*LANGUAGES, code)) is None
    assert refuse_sentence(GERMAN, "pol_Latn", "A man.", (*LANGUAGES, "pol_Latn")) == "language"
