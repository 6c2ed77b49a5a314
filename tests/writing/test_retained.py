"""Numbers, units and negations that translations retain or lose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcm_cli.writing.retained import is_copied, lost_parts, numbers


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1,000", "1.000"),
        ("1,000", "1 000"),
        ("1,000", "1000"),
        ("12.345,67", "12,345.67"),
        ("1'234'567", "1234567"),
        ("3,14", "3.14"),
        ("10:30", "10.30"),
        ("03.12.2020", "3/12/2020"),
        ("٢٠٢٠", "2020"),
    ],
)
def test_the_same_number_in_other_spellings(left: str, right: str) -> None:
    [(written, runs)] = numbers(left)
    assert written == left
    assert [runs] == [same for _, same in numbers(right)]


@pytest.mark.parametrize(
    ("left", "right"), [("1,05", "1,5"), ("1,000", "1,00"), ("100", "1000"), ("12", "1.2")]
)
def test_different_numbers(left: str, right: str) -> None:
    assert [runs for _, runs in numbers(left)] != [runs for _, runs in numbers(right)]


@given(st.integers(min_value=0, max_value=10**12), st.sampled_from(",.' \u00a0\u202f"))
def test_separators_never_matter(number: int, mark: str) -> None:
    grouped = f"{number:,}".replace(",", mark)
    assert [runs for _, runs in numbers(f"({grouped})")] == [(str(number),)]


@given(st.text())
def test_numbers_of_any_text(text: str) -> None:
    for written, runs in numbers(text):
        assert written in text
        assert all(run.isdecimal() for run in runs)


ENG, DEU, FRA = "eng_Latn", "deu_Latn", "fra_Latn"


@pytest.mark.parametrize(
    ("source", "text", "lost"),
    [
        ("In 1999 2 men ate 2 fish.", "1999 aßen 2 Männer Fisch.", ["2"]),
        ("It costs $1,500.50.", "Es kostet 1.500,50 $.", []),
        ("It costs $1,500.50.", "Es kostet 1.500,50 Dollar.", []),
        ("It costs $5.", "Es kostet 5.", ["$"]),
        ("He ran 5 km at 30 °C.", "Er lief 5 Kilometer bei 30 Grad.", []),
        ("He ran 5 km.", "Er lief 5 Meilen.", ["km"]),
        ("10 % of 3 kg", "10 Prozent von 3kg", []),
        ("It is not late.", "Es ist spät.", ["not"]),
        ("I don’t know.", "Keine Ahnung.", []),
        ("It's late, isn't it?", "Es ist spät, oder?", []),
        ("Notes", "Noten", []),
    ],
)
def test_lost_parts(source: str, text: str, lost: list[str]) -> None:
    assert lost_parts(source, ENG, text, DEU) == lost


def test_languages_without_a_table_keep_their_words() -> None:
    assert lost_parts("It is not 5 km.", ENG, "Это 5 км.", "rus_Cyrl") == []
    assert lost_parts("It is not 5 km.", ENG, "Это 7 км.", "rus_Cyrl") == ["5"]
    assert lost_parts("Ce n’est pas vrai.", FRA, "It is true.", ENG) == ["n’"]


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("***", True),
        ("1,000 — 2.5 %", True),
        ("🙂", True),
        ("https://example.com/page", True),
        ("anna@example.org, www.example.com", True),
        ("Mail: anna@example.org", False),
        ("a" * 250, True),
        ("Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz", False),
        ("Yes.", False),
    ],
)
def test_sentences_that_are_copied(text: str, copied: bool) -> None:
    assert is_copied(text, ENG) == copied


def test_a_long_sentence_without_spaces_is_text_where_words_are_not_separated() -> None:
    assert not is_copied("猫" * 100, "zho_Hans")
