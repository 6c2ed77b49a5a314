"""JSON Lines, recipes, cards and configs of any values: refused with an error of ours, or read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torture import readers

KEYS = ("id", "lang", "text", "sentences", "paragraphs", "concepts", "dtype", "space", "target")
KEYS += ("fingerprint", "target_concepts", "plans", "plan_concepts", "split", "x")
TABLES = ("kind", "name", "space", "data", "model", "train", "shape", "distill", "languages")
TABLES += (
    "summary",
    "licence",
    "licence_note",
    "files",
    "source",
    "encoder",
    "config",
    "checksums",
)
KNOWN = ("model", "space", "normalizer", "quantizer", "base", "two_tower", "float16", "5M", "card")
words = st.sampled_from(KNOWN) | st.text(max_size=8)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(2**63), 2**64, 0, 1])
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
quick = settings(
    max_examples=40, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


def check(call: readers.Call, path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    result, _ = readers.outcome(call, path)
    assert result in ("accepted", "refused"), text


@quick
@given(lines=st.lists(st.dictionaries(st.sampled_from(KEYS), values), min_size=1, max_size=3))
def test_json_lines(place, lines):
    text = "\n".join(map(json.dumps, lines))
    for call in (readers._text, readers._any, readers._concepts, readers._describe):
        check(call, place / "a.jsonl", text)


@quick
@given(config=st.dictionaries(st.sampled_from(TABLES), values), kind=st.sampled_from(KNOWN))
def test_recipes_and_cards(place, config, kind):
    text = "".join(f"{key} = {toml(value)}\n" for key, value in config.items() if key != "kind")
    for call in (readers._recipe, readers._card):
        check(call, place / "a.toml", f'kind = "{kind}"\n{text}')


@quick
@given(config=st.dictionaries(st.sampled_from(TABLES), values), kind=st.sampled_from(KNOWN))
def test_configs_and_manifests(place, config, kind):
    folder = place / "folder"
    folder.mkdir(exist_ok=True)
    text = json.dumps(config | {"kind": kind, "architecture": "base"})
    for name in ("config.json", "manifest.json"):
        (folder / name).write_text(text)
    for call in (readers._model, readers._space, readers._concepts, readers._inspect):
        result, _ = readers.outcome(call, folder)
        assert result in ("accepted", "refused"), text


def toml(value: Any) -> str:
    """Return a value in TOML, with 0 for null, which TOML lacks."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return str(value)
    return "0" if value is None else json.dumps(value)
