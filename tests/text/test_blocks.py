"""The structure of plain text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcm_cli.text.blocks import blocks


def found(text: str) -> list[str]:
    return [text[one.start : one.end] for one in blocks(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Pets #\nTom has a cat.", ["Pets", "Tom has a cat."]),
        (
            "Pets\n====\nTom has a cat.\n\nDogs\n---\nNone.",
            ["Pets", "Tom has a cat.", "Dogs", "None."],
        ),
        ("The End\n\nIt was cold.", ["The End", "It was cold."]),
        ("Buy:\n- milk\n* bread\n  from Rome\n• eggs", ["milk", "bread\n  from Rome", "eggs"]),
        ("Buy this\n- milk\n- bread", ["Buy this", "milk", "bread"]),
        ("Today\n☐ milk\n☑ bread\n✔️ eggs", ["Today", "milk", "bread", "eggs"]),
        ("▪ one\n  ◦ two", ["one", "two"]),
        ("Settings\n→ General", ["Settings\n→ General"]),
        ("→ one\n→ two", ["one", "two"]),
        ("1. Wash.\n2. Eat.\n\n3. Sleep.", ["Wash.", "Eat.", "Sleep."]),
        ("(a) one\n(b) two", ["one", "two"]),
        ("i) one\nii) two", ["one", "two"]),
        ("3. Oktober 1990", ["3. Oktober 1990"]),
        ("3. Oktober 1990\n\n4. Oktober 1990", ["3. Oktober 1990", "4. Oktober 1990"]),
        ("in the year\n1990. Then came", ["in the year\n1990. Then came"]),
        ("he was the old\n- or so we thought - man", ["he was the old\n- or so we thought - man"]),
        ("— Bonjour, dit-il.\n—Salut !\n– Bien.", ["Bonjour, dit-il.", "Salut !", "Bien."]),
        ("One.\n\n* * *\n\nTwo.", ["One.", "Two."]),
        ("-----\n", []),
        ("...", ["..."]),
        ("Roses are red,\nviolets are blue", ["Roses are red,\nviolets are blue"]),
        ("The cat sat.\nThe dog ran home.", ["The cat sat.", "The dog ran home."]),
        ("I saw Dr.\nSmith there.", ["I saw Dr.\nSmith there."]),
        (
            "This is a line of prose that was wrapped at sixty. It ends.\n"
            "Then it goes on to the next one, which is as long as that\nand ends.",
            [
                "This is a line of prose that was wrapped at sixty. It ends.\n"
                "Then it goes on to the next one, which is as long as that\nand ends."
            ],
        ),
        ("Buy:\n- milk\nTom likes it.", ["milk", "Tom likes it."]),
        ("\ufeff  One\r\n\u200b\r\nTwo", ["One", "Two"]),
        ("猫は寝て\nいます。", ["猫は寝て\nいます。"]),
        ("-5 degrees\n+1 vote", ["-5 degrees\n+1 vote"]),
        ("", []),
    ],
)
def test_blocks(text, expected):
    assert [one for one in found(text) if one != "Buy:"] == expected


def test_paragraphs_count_from_zero_without_gaps():
    text = "# A\nb\n\n***\n\n- c\n- d\n\ne"
    assert [one.paragraph for one in blocks(text)] == [0, 0, 1, 1, 2]


MARKS = r"[\s\u00ad\u200b\u2060\ufeff]*"
LAYOUT = re.compile(rf"{MARKS}(?:(?:[-*_=~#+•‣·–—―\s]*|\(?\w{{1,5}}[.)]\s+)\n?{MARKS})*")
TEXT = st.text(st.sampled_from(list("ab1.)(#=-*•—:\n\n  \t\r\f\u200bÄ中…")), max_size=80)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_only_layout_is_outside_of_blocks(text):
    ends, begin = blocks(text), 0
    for one in ends:
        assert begin <= one.start < one.end
        assert (
            text[one.start] not in " \n\t\r\f\u200b" and text[one.end - 1] not in " \n\t\r\f\u200b"
        )
        assert "\n\n" not in text[one.start : one.end]
        assert LAYOUT.fullmatch(text[begin : one.start])
        begin = one.end
    assert LAYOUT.fullmatch(text[begin:])
