"""Segmentation of text into sentences."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcm_cli.text.languages import SONAR
from lcm_cli.text.segment import MAX_CHARACTERS, cut_long, segment


def texts(text: str, lang: str) -> list[str]:
    return [one.text for one in segment(text, lang)]


@pytest.mark.parametrize(
    ("lang", "sentences"),
    [
        (
            "eng_Latn",
            ["Dr. Smith met Mr. Jones at 5 p.m. on Friday.", "She left.", "It cost $3.50."],
        ),
        ("eng_Latn", ['"Hello," he said.', '"How are you?"', '"Stop!" cried the hen.', "Yes!"]),
        (
            "eng_Latn",
            ["“I will not go. You are mean.”", "The eagle (who was old. And tired.) left."],
        ),
        ("eng_Latn", ["the cat sat.", "the dog ran.", "we left... and came back."]),
        ("eng_Latn", ["Do this.", "1. Wash it.", "2. Eat it."]),
        (
            "deu_Latn",
            ["Der 3. Oktober ist frei.", "Z. B. heute.", "„Komm her!“, rief er.", "Er ging."],
        ),
        ("deu_Latn", ["»Hallo. Wie geht es?« sagte er.", "»Gut.«", "Dr. Müller kam um 10 Uhr."]),
        ("fra_Latn", ["M. Dupont et Mme. Leroy sont là.", "« Bonjour ! » dit-il.", "Ça va ?"]),
        (
            "fra_Latn",
            ["Il est né en 50 av. J.-C. à Rome.", "J.-P. Martin dort.", "« Quoi ? »", "« Rien. »"],
        ),
        ("spa_Latn", ["¿Cómo estás?", "¡Bien!", "D. Juan y Dña. Ana viven en EE. UU. desde 1990."]),
        ("spa_Latn", ["Fue a las 10:08 p. m. del lunes.", "Dijo: «No voy.»", "Se fue."]),
        (
            "nld_Latn",
            ["Mevr. De Vries woont hier.", "Dat is o.a. goed.", 'Hij zei: "Kom hier."', "Ja."],
        ),
        ("hin_Deva", ["यह एक किताब है।", "वह जाता है।", "क्या?"]),
        ("arb_Arab", ["هذا كتاب.", "هل تقرأ؟", "نعم، أقرأ."]),
        ("tir_Ethi", ["እኔ ነኝ፡፡", "አንተ ነህ፡፡"]),
    ],
)
def test_sentences(lang, sentences):
    assert texts(" ".join(sentences), lang) == sentences


@pytest.mark.parametrize(
    ("lang", "sentences"),
    [
        (
            "jpn_Jpan",
            [
                "猫は寝ています。",
                "「おはよう。元気ですか？」と彼は言いました。",
                "雨です！",
                "本当？",
            ],
        ),
        ("jpn_Jpan", ["雨が降る。", "3.5点です。", "「3つ。4つ。」", "はい。"]),
        ("zho_Hans", ["猫在睡觉。", "价格是3.5元。", "2005年，她笑了。", "真的吗？", "真的！"]),
        ("khm_Khmr", ["គាត់\u200bទៅ។", "គាត់\u200bមក។"]),
    ],
)
def test_sentences_without_spaces(lang, sentences):
    assert texts("".join(sentences), lang) == sentences


def test_paragraphs():
    found = segment("One\nline. Two.\r\n\r\n \t \r\n* * *\n\n\nThree.", "eng_Latn")
    assert [(one.text, one.paragraph) for one in found] == [
        *(("One line.", 0), ("Two.", 0), ("* * *", 1), ("Three.", 2))
    ]
    assert segment("", "eng_Latn") == segment(" \n\n ", "eng_Latn") == []


def test_wrapped_lines_of_scripts_without_spaces():
    assert texts("猫は寝て\nいます。ABC\nDEF です。", "jpn_Jpan") == [
        "猫は寝ています。",
        "ABC DEF です。",
    ]
    assert texts("고양이가\n잔다.", "kor_Hang") == ["고양이가 잔다."]


def test_one_per_line():
    text = "First one. Still first.\nSecond\n\n  Third  \n" + "long " * 100
    found = segment(text, "eng_Latn", one_per_line=True)
    assert [(one.text, one.paragraph) for one in found] == [
        *(("First one. Still first.", 0), ("Second", 0)),
        *(("Third", 1), (("long " * 100).strip(), 1)),
    ]
    assert not any(one.split for one in found)


def test_a_long_sentence_is_cut_at_a_clause():
    left = (
        "The old man, who had lived in the village for all of his long and busy life, said"
        + " so" * 15
    )
    right = "nobody should go there alone in the middle of the night" + " or day" * 15
    found = segment(f"Short. {left}; {right}.", "eng_Latn")
    assert [(one.text, one.split) for one in found] == [
        *(("Short.", False), (f"{left};", True), (f"{right}.", True))
    ]


@pytest.mark.parametrize("mark", ["、", "，", "；", "،", ",", "—", "፣"])
def test_clause_marks(mark):
    clause = "あ" * 90 + mark
    assert cut_long(" ".join([clause] * 4), 250) == [f"{clause} {clause}"] * 2


def test_cuts_are_balanced_and_split_no_character():
    assert [len(piece) for piece in cut_long("word " * 100, 250)] == [249, 249]
    assert {len(piece) for piece in cut_long("x" * 1000, 250)} == {250}
    assert all(piece.startswith("e") for piece in cut_long("e\u0301" * 301, 250))
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert all(piece.startswith("\U0001f468") for piece in cut_long(family * 100, 251))


def test_a_sentence_inside_a_long_quotation_ends_before_a_clause():
    quotation = "“" + " ".join(["It was late, and we went home."] * 12) + "”"
    assert all(piece.endswith((".", "”")) for piece in texts(quotation, "eng_Latn"))


def test_time_is_linear_in_the_length():
    start = time.process_time()
    found = segment("猫は寝ています。「おはよう。」" * 10_000, "jpn_Jpan")
    assert len(found) == 20_000
    assert time.process_time() - start < 10


ALPHABET = st.one_of(
    st.characters(exclude_categories=("Cs",)),
    st.sampled_from(list(" \n.!?。、,;:«»“”\"'「」（(-–—aAeE1あ中")),
)
ANY = st.text(ALPHABET, max_size=400)


def bare(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=150, deadline=None)
@given(ANY, st.sampled_from(SONAR), st.integers(1, 60))
def test_nothing_is_lost(text, lang, limit):
    found = segment(text, lang, max_characters=limit)
    assert bare("".join(one.text for one in found)) == bare(text)
    assert all(0 < len(one.text) <= limit and one.text == one.text.strip() for one in found)
    numbers = [one.paragraph for one in found]
    assert numbers == sorted(numbers) and set(numbers) == set(range(len(set(numbers))))
    lines = segment(text, lang, one_per_line=True, max_characters=limit)
    assert bare("".join(one.text for one in lines)) == bare(text)


@settings(max_examples=100, deadline=None)
@given(ANY, st.sampled_from(SONAR))
def test_segmenting_again_changes_nothing(text, lang):
    once = segment(text, lang)
    again = segment("\n".join(one.text for one in once), lang, one_per_line=True)
    assert [one.text for one in again] == [one.text for one in once]
    assert all(cut_long(one.text, MAX_CHARACTERS) == [one.text] for one in once)
