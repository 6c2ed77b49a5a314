"""Inputs that once ended `lcm`, made it hang, or gave an unexpected error."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torture import readers
from torture.guard import Outcome, guarded

from lcm_cli.documents import arrow, read_concepts, tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
DEEP = "[" * 100_000
LONG = "0x" + "f" * 5000  # an integer that Python reads and cannot print


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return a function that writes a file and returns the outcome of a call on its path."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(call: readers.Call, data: bytes | str, name: str = "input", path: str = "") -> Outcome:
        raw = data.encode() if isinstance(data, str) else data
        (tmp_path / name).write_bytes(raw)
        read = tmp_path / (path or name)
        (found,) = guarded([0], lambda _: (*readers.outcome(call, read), len(raw)))
        return found

    return run


def stream(replaced: bytes, by: bytes) -> bytes:
    """Return an Arrow stream of a document with 3 sentences, with other bytes in one place."""
    layout = arrow.schema(readers.INFO, "float16")
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, layout) as writer:
        writer.write_batch(arrow.record_batch(readers.sample(1), layout))
    data = sink.getvalue()
    assert replaced in data
    return data.replace(replaced, by)


def offsets(*numbers: int) -> bytes:
    return np.array(numbers, "<i4").tobytes()


@pytest.mark.parametrize("beyond", [offsets(0, 9), offsets(0, 1 << 30), offsets(7, 9)])
def test_arrow_lists_beyond_their_values(result, beyond):
    found = result(readers._concepts, stream(offsets(0, 3), beyond), "a.arrows")
    assert found.result == "refused" and "is damaged or cut off" in found.message


@pytest.mark.parametrize("beyond", [offsets(0, 1 << 30), offsets(0, -5)])
def test_arrow_strings_beyond_their_bytes(result, beyond):
    data = stream(offsets(0, 2), beyond)  # of the document's id, d0
    assert "is damaged or cut off" in result(readers._concepts, data, "a.arrows").message


def test_an_arrow_column_whose_name_is_not_utf8(result):
    found = result(readers._concepts, stream(b"lang", b"la\xffg"), "a.arrows")
    assert found.result == "refused" and "'utf-8' codec can't decode" in found.message


def test_an_arrow_string_that_is_not_utf8_costs_its_own_row(tmp_path):
    (tmp_path / "a.arrows").write_bytes(stream(b"A hen", b"A h\xffn"))
    assert "row 0: not UTF-8" in result_of(tmp_path / "a.arrows")


def result_of(path: Path) -> str:
    return readers.outcome(readers._text, path)[1]


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_parquet_metadata_that_is_not_utf8(result):
    table = pa.table({"text": ["A hen ran."]}).replace_schema_metadata({b"\xff": b"\xff"})
    assert result(readers._text, parquet(table), "a.parquet").result == "accepted"
    damaged = parquet(pa.table({"text": ["A."], "lang": ["en"]})).replace(b"lang", b"l\xffng")
    assert result(readers._text, damaged, "b.parquet").result == "refused"


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 4)])
def test_a_parquet_column_of_single_vectors(tmp_path, kind):
    rows = np.arange(8, dtype=kind.value_type.to_pandas_dtype()).reshape(2, 4)
    column = pa.array(list(rows), kind)
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"id": ["a", "b"], "concepts": column})))
    info, documents = read_concepts([str(tmp_path / "a.parquet")])
    found = list(documents)
    assert (info.dim, [document.id for document in found]) == (4, ["a", "b"])
    assert np.array_equal(np.concatenate([document.concepts for document in found]), rows)


def weights(**entries: Any) -> bytes:
    """Return a safetensors file with the tensor `concepts` and changed entries of its header."""
    entry = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    header = json.dumps({"concepts": entry, **entries}).replace('"DEEP"', DEEP).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"concepts": 5}, "malformed entry for 'concepts'"),
        ({"concepts": {"dtype": "F32", "shape": 2.5, "data_offsets": [0, 8]}}, "malformed entry"),
        ({"concepts": {"dtype": [], "shape": [1, 2], "data_offsets": [0, 8]}}, "malformed entry"),
        ({"concepts": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 8]}}, "malformed"),
        ({"__metadata__": ["x"]}, "malformed entry for '__metadata__'"),
        ({"__metadata__": {"sentences": ["x"]}}, "malformed entry for '__metadata__'"),
        ({"__metadata__": {"sentences": DEEP}}, "nested too deeply"),
        ({"other": "DEEP"}, "nested too deeply"),
    ],
)
def test_safetensors_headers(result, entries, message):
    for call in (readers._concepts, readers._inspect):
        assert message in result(call, weights(**entries), "a.safetensors").message


def test_a_dimension_of_thousands_of_digits(result, tmp_path):
    about = {"lcm.space": "x", "lcm.fingerprint": "x", "lcm.dim": "9" * 5000}
    tensors.write_document(readers.sample(1)[0], about, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    assert "is not the number of dimensions" in result(readers._concepts, data, "a.st").message


@pytest.mark.parametrize("value", [DEEP, "9" * 5000])
def test_json_that_cannot_be_read(result, random_space, value):
    text = f'{{"kind": "dataset", "version": {value}}}'
    for name, call in {
        "manifest.json": readers._concepts,
        "config.json": readers._inspect,
        "recipe.json": readers._recipe,
    }.items():
        found = result(call, text, name, "recipe.json" if "recipe" in name else ".")
        assert found.result == "refused" and "is not valid JSON" in found.message


@pytest.mark.parametrize("value", [DEEP, "{x=" * 5000, LONG, "9" * 5000])
def test_toml_that_cannot_be_read(result, value):
    config = readers.command("languages", "--config", "PATH")
    for call in (readers._recipe, readers._card, config):
        found = result(call, f"kind = {value}", "a.toml")
        assert found.result == "refused" and "is not valid TOML" in found.message


def test_a_space_recipe_without_heads(result):
    data = readers._SPACE_RECIPE.replace(b"heads = 4", b"heads = 0")
    assert "shape.heads must be at least 1" in result(readers._recipe, data, "a.toml").message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": 7}, "languages = 7"),
        ({"languages": [["eng_Latn"]]}, "languages.0"),
        ({"encoder": []}, "encoder"),
        ({"encoder": {"heads": 3}}, "not a multiple of 3 heads"),
        ({"encoder": {"heads": -4}}, "heads = -4 is not between"),
        ({"encoder": {"layers": 10_000_000}}, "too few for the 10000000 layers"),
        ({"encoder": {"layers": "2"}}, "encoder.layers = '2'"),
        ({"decoder": {"ffn_dim": 1 << 40}}, "ffn_dim = 1099511627776 is not between"),
        ({"decoder": {"ffn_dim": 2**31 - 1, "model_dim": 2**31 - 4}}, "impossible sizes"),
        ({"encoder": {"max_length": 1 << 30}}, "max_length = 1073741824 is not between"),
    ],
)
def test_configs_of_spaces(result, random_space, tmp_path, change, message):
    config = json.loads((random_space / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    for path in random_space.iterdir():
        if path.suffix in (".safetensors", ".model"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert message in result(readers._space, json.dumps(config), "config.json", ".").message


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("base", {"transformer": {"layers": 10_000_000}}, "too few for the 10000000 layers"),
        ("base", {"transformer": {"head_dim": -8}}, "head_dim must be positive"),
        ("base", {"model_dim": 1 << 62}, "model_dim is too large"),
        ("base", {"model_dim": 2**31 - 8, "concept_dim": 2**31 - 8}, "impossible sizes"),
        ("two_tower", {"schedule": {"steps": 10**9}}, "steps 1000000000 exceed 100000"),
    ],
)
def test_configs_of_models(result, tmp_path, architecture, change, message):
    from lcm_cli.models.checkpoint import build, save
    from lcm_cli.models.config import preset

    save(build(preset(architecture, "nano", concept_dim=32, max_length=64)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    assert message in result(readers._model, json.dumps(config), "config.json", ".").message
