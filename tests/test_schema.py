from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.schema import counted, nearest, parse


@dataclass(frozen=True)
class Stack:
    layers: int = 2
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise NotFoundError(f"no layers: {self.layers}", "add one")


@dataclass(frozen=True)
class Other:
    width: int = 3


@dataclass(frozen=True)
class Recipe:
    name: str
    stack: Stack = field(default_factory=Stack)
    either: Stack | Other | None = None
    stacks: list[Stack] = field(default_factory=list)
    named: dict[str, Other] = field(default_factory=dict)
    languages: int | tuple[str, ...] = 0


@dataclass(frozen=True)
class Book:
    recipe: Recipe


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Checked:
    name: str

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("Names must be good")


def test_parse_builds_nested_dataclasses() -> None:
    data = {
        "name": "a",
        "stack": {"layers": 4, "rate": 1},
        "either": {"width": 5},
        "stacks": [{"layers": 1}],
        "named": {"x": {"width": 9}},
        "languages": ["eng_Latn", "fra_Latn"],
    }

    recipe = parse(Recipe, data, "r.toml")

    assert recipe == Recipe(
        "a", Stack(4, 1.0), Other(5), [Stack(1)], {"x": Other(9)}, ("eng_Latn", "fra_Latn")
    )


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ({"nane": "a"}, "missing key 'name'; unknown key 'nane'", "mean name or named?"),
        ({"name": "a", "zzz": 1}, "unknown key 'zzz'", "known keys: either, languages, name"),
        ({"name": "a", "stack": {"layer": 1}}, "unknown key 'stack.layer'", "mean layers?"),
        ({"name": "a", "stacks": [{"layres": 1}]}, "key 'stacks.0.layres'", "mean layers?"),
        ({"name": "a", "named": {"x": {"with": 1}}}, "key 'named.x.with'", "mean width?"),
        ({"name": "a", "either": {"widht": 1}}, "either.Other.widht", "mean width?"),
        ({"name": 3}, "name = 3: input should be a valid string", ""),
        ({"name": "a", "stack": {"layers": "12"}}, "stack.layers = '12'", ""),
        ({"name": "a", "stack": {"layers": 1.5}}, "stack.layers = 1.5", ""),
    ],
)
def test_parse_errors_have_file_key_and_value(
    data: Mapping[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse(Recipe, data, "r.toml")

    assert caught.value.message.startswith("r.toml: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_parse_prefixes_errors_of_the_class_with_the_file() -> None:
    with pytest.raises(NotFoundError, match=r"^r\.toml: no layers: 0$") as caught:
        parse(Stack, {"layers": 0}, "r.toml")
    assert caught.value.hint == "add one"


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        ({"stack": {"layers": 0}}, "recipe.stack: "),
        ({"either": {"layers": 0}}, "recipe.either: "),
        ({"stacks": [{"layers": 0}]}, "recipe: "),
    ],
)
def test_parse_names_the_table_that_its_class_refuses(recipe: dict[str, Any], place: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        parse(Book, {"recipe": {"name": "a"} | recipe}, "r.toml")
    assert caught.value.message == f"r.toml: {place}no layers: 0"


def test_parse_accepts_pydantic_dataclasses() -> None:
    assert parse(Checked, {"name": "good"}, "c.toml").name == "good"
    with pytest.raises(IntegrityError, match=r"c\.toml: names must be good"):
        parse(Checked, {"name": "bad"}, "c.toml")


def test_nearest_ignores_case_and_lists_the_closest_first() -> None:
    assert nearest("FRENSH", ["Finnish", "French", "German"])[0] == "French"
    assert nearest("qqq", ["French"]) == []
    assert nearest("aaaa", ["aaab", "aaac", "aaad", "aaae"], n=2) == ["aaae", "aaad"]


def test_counted() -> None:
    assert counted(1, "document") == "1 document"
    assert [counted(n, "document") for n in (0, 2000)] == ["0 documents", "2,000 documents"]
