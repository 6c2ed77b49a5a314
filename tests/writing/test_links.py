"""Links in translated sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcm_cli.writing.links import NAMES, find_links, mask, without_links

EMOJI = "😀🎉👍🏽🇫"
SENTENCES = [
    ("See https://example.com/a_(b)?c=1#d, please.", ["https://example.com/a_(b)?c=1#d"]),
    ("The map (http://example.com/x) helps.", ["http://example.com/x"]),
    ("Write to anna.smith+news@mail.example.org.", ["anna.smith+news@mail.example.org"]),
    ("Go to www.example.com or example.org/shop!", ["www.example.com", "example.org/shop"]),
    ("[Text](https://example.com) and <https://example.org>.", None),
    ("请访问https://example.com了解详情。", ["https://example.com"]),
    ("It ends.Then it begins, e.g. in v1.2", []),
    ("No link@ here, a@b, nor 3.14 or z.B. this.", []),
    ("https://", []),
]


@pytest.mark.parametrize(("text", "links"), SENTENCES)
def test_finds_links(text: str, links: list[str] | None) -> None:
    expected = ["https://example.com", "https://example.org"] if links is None else links
    assert [link for _, link in find_links(text)] == expected
    assert find_links(without_links(text)) == []
    assert all(text[place:].startswith(link) for place, link in find_links(text))


def test_a_name_takes_the_place_of_each_link() -> None:
    hidden = mask("Tom, ask anna@example.org or http://example.com.")
    assert hidden.text == "Tom, ask Boston or Berlin."
    restored = hidden.restore("Tom, frag Berlin oder Boston.")
    assert restored == "Tom, frag http://example.com oder anna@example.org."


def test_a_lost_link_is_added_at_the_end() -> None:
    hidden = mask("See http://example.com/a!")
    assert hidden.restore("Siehe das!") == "Siehe das (http://example.com/a)!"
    assert hidden.restore("Tom sieht Tom.") == "Tom sieht Tom (http://example.com/a)."
    assert hidden.restore("") == "(http://example.com/a)"
    assert (hidden.count_lost("Siehe Tom!"), hidden.count_lost("Siehe das!")) == (0, 1)


def test_links_beyond_the_names_are_added_too() -> None:
    links = [f"http://example.com/{n}" for n in range(5)]
    hidden = mask(" ".join(["See", *links]) + ".")
    assert hidden.text.split() == ["See", *NAMES, "."]
    restored = hidden.restore("Siehe Tom, Boston, Berlin.")
    assert restored == f"Siehe {', '.join(links[:3])} ({', '.join(links[3:])})."


@pytest.mark.parametrize(
    ("text", "hidden", "translation", "restored"),
    [
        ("I am happy 😀.", "I am happy.", "Ich bin froh.", "Ich bin froh 😀."),
        ("I am happy. 😀 🎉", "I am happy.", "Ich bin froh.", "Ich bin froh. 😀 🎉"),
        ("👍🏽 Good dog!", "Good dog!", "Bon chien !", "👍🏽 Bon chien !"),
        ("Hello👋, Anna ❤️", "Hello, Anna", "Hallo, Anna!", "Hallo, Anna👋 ❤️!"),
        ("We won 🎉 and left.", "We won and left.", "Wir gingen.", "Wir gingen 🎉."),
        ("Red🍎green", "Red green", "Rot grün", "Rot grün🍎"),
        ("A family 👨‍👩‍👧 from 🇫🇷.", "A family from.", "Familie.", "Familie 👨‍👩‍👧 🇫🇷."),
        ("1️⃣ One, ♪ la ♪", "One, la", "Eins, la", "1️⃣ Eins, la ♪ ♪"),
        ("It is 20 °C → warm, © Tom", "It is 20 °C → warm, © Tom", "Warm", "Warm"),
    ],
)
def test_emoji_are_left_out_and_added_again(
    text: str, hidden: str, translation: str, restored: str
) -> None:
    assert mask(text).text == hidden
    assert mask(text).restore(translation) == restored


@given(st.text(alphabet=f"ab .!,{EMOJI}", max_size=30))
def test_no_emoji_is_lost_or_doubled(text: str) -> None:
    masked = mask(text)
    restored = masked.restore(masked.text)
    assert [restored.count(each) for each in EMOJI] == [text.count(each) for each in EMOJI]
    assert not set(masked.text) & set(EMOJI)


@pytest.mark.parametrize("text", ["Hi! " + "😀" * 2000 + "x", "é 😀" + " " * 20_000 + "b"])
def test_long_runs_take_no_more_than_linear_time(text: str) -> None:
    assert mask(text).restore("Hallo.").count("😀") == text.count("😀")  # else it takes hours


_PIECES = st.sampled_from(
    ["http://example.com/a", "b@example.org", "www.example.net", "Tom", "see"]
)


@given(st.lists(_PIECES), st.lists(st.sampled_from([*NAMES, "und", ".", "(", "Berlin's"])))
def test_no_link_is_ever_lost(source: list[str], translation: list[str]) -> None:
    hidden = mask(" ".join(source))
    restored = hidden.restore(" ".join(translation))
    for link in set(hidden.links):
        assert restored.count(link) == hidden.links.count(link)


@given(st.text())
def test_text_without_links_is_unchanged(text: str) -> None:
    hidden = mask(text)
    if not hidden.links:
        assert (hidden.text, hidden.restore(text)) == (text, text)
