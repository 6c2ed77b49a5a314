"""Conditions on columns: their meaning, and errors with positions."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcm_cli.errors import IntegrityError
from lcm_cli.training.data.filters import Filter

COLUMNS: dict[str, pa.Array] = {
    "lang": pa.array(["fra", "eng", None, "deu"]),
    "words": pa.array([["a", "b"], ["c"], [], None]),
    "stars": pa.array([1, 2, 3, None]),
    "score": pa.array([0.5, 1.5, -1.0, 2.0]),
    "good": pa.array([True, False, None, True]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('lang == "fra"', [1, 0, 0, 0]),
        ('lang != "fra"', [0, 1, 0, 1]),  # a missing value is neither equal nor unequal
        ('not lang == "fra"', [0, 1, 0, 1]),
        ('lang in ["fra", "deu"]', [1, 0, 0, 1]),
        ('lang not in ("fra", "deu")', [0, 1, 0, 0]),
        ("stars in [1, 3]", [1, 0, 1, 0]),
        ("len(words) >= 1", [1, 1, 0, 0]),
        ('len(lang) == 3 and lang < "f"', [0, 1, 0, 1]),
        ("1 < stars <= 3", [0, 1, 1, 0]),
        ("stars > 2 or good", [1, 0, 1, 1]),
        ("good", [1, 0, 0, 1]),
        ("stars / 2 > 0.5", [0, 1, 1, 0]),
        ("1 / score > 1", [1, 0, 0, 0]),
        ("score + stars * 2 - 1 == -(0 - 4.5)", [0, 1, 0, 0]),
        ("True", [1, 1, 1, 1]),
        ('  lang == "é" ', [0, 0, 0, 0]),
    ],
)
def test_conditions(text: str, expected: list[int]) -> None:
    wanted = Filter(text)
    wanted.check(COLUMNS, "a.parquet")
    assert wanted.mask(COLUMNS, 4).astype(int).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lang ==", "at character 8: invalid syntax"),
        ("", "at character 1: invalid syntax"),
        ("__import__('os').system('true')", "at character 1: .* is not allowed"),
        ("lang.upper() == 'A'", "at character 1: 'lang.upper\\(\\)' is not allowed"),
        ("[x for x in words]", "is not allowed"),
        ("(lambda: 1)()", "is not allowed"),
        ("stars ** 9 > 1", "is not allowed"),
        ("lang is None", "`is` is not allowed"),
        ("len(lang, words)", "is not allowed"),
        ("stars in words", "at character 10: `in` needs a list"),
        ("stars > 1 and lang.x", "at character 15: 'lang.x' is not allowed"),
        ('"éé" == lang and lang[0]', r"at character 18: 'lang\[0\]' is not allowed"),
        ("stars = 3", "invalid syntax|cannot assign"),
        ("good\0", "null bytes"),
        ("-" * 5000 + "1", "nested too deeply|too many|too nested"),
        ("stars in []", "is not allowed"),
        ("None == lang", "is not allowed"),
    ],
)
def test_what_is_not_allowed(text: str, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        Filter(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stars > 'a'", "at character 1: incompatible types"),
        ("good and stars", "incompatible types"),
        ("len(stars) > 1", "incompatible types"),
        ("len('abc') > 1", "len\\(\\) needs a column"),
        ("stars in ['x']", "incompatible types"),
        ("stars", "at character 1: its value is not true or false"),
        ("1", "its value is not true or false"),
    ],
)
def test_types_that_do_not_go_together(text: str, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        Filter(text).mask(COLUMNS, 4)


def test_a_column_that_is_not_there() -> None:
    wanted = Filter("star > 1 and lang == 'x'")
    with pytest.raises(
        IntegrityError, match=r"character 1: a\.parquet has no col.* 'star'"
    ) as info:
        wanted.check(COLUMNS, "a.parquet")
    assert info.value.hint == "did you mean stars?"


@given(st.text(max_size=40))
def test_no_text_does_anything_but_filter_or_raise(text: str) -> None:
    try:
        wanted = Filter(text)
        wanted.check(COLUMNS, "a.parquet")
        mask: Any = wanted.mask(COLUMNS, 4)
    except IntegrityError:
        return
    assert mask.shape == (4,)
