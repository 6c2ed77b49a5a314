"""lcm embed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcm_cli.documents import read_concepts
from lcm_cli.space import Space, load_space

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def space(random_space: Path) -> Space:
    return load_space(str(random_space), device="cpu")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.safetensors", "folder/"])
def test_every_format_holds_the_document(
    road: Run, story: Path, space: Space, tmp_path: Path, name: str
) -> None:
    target = f"{tmp_path}/{name}"
    done = road("embed", story, "-o", target, "--dtype", "float32")
    assert (done.code, done.stdout) == (0, "")
    assert "embedded 15 sentences of 1 documents in" in done.stderr
    assert "sentences/s" in done.stderr
    info, documents = read_concepts([target])
    (document,) = documents
    assert (info.name, info.fingerprint, info.dim) == ("random", space.fingerprint, 32)
    assert (document.id, document.lang) == (story.name, "eng_Latn")
    assert document.sentences[0] == "Tom lives in a small house near the river."
    assert document.paragraphs[:4] == [0, 0, 0, 1]
    concepts = space.encode(document.sentences, "eng_Latn").concepts
    assert document.concepts is not None and document.concepts.dtype == np.float32
    assert np.abs(document.concepts - concepts).max() <= 1e-5


def test_float16_is_the_default(road: Run, story: Path, space: Space, tmp_path: Path) -> None:
    assert road("embed", story, "-o", tmp_path / "a.parquet", "-q").stderr == ""
    (document,) = read_concepts([str(tmp_path / "a.parquet")])[1]
    assert document.concepts is not None and document.concepts.dtype == np.float16
    concepts = space.encode(document.sentences, "eng_Latn").concepts
    assert np.abs(document.concepts - concepts).max() <= 2e-3 * np.abs(concepts).max()


def test_json_lines(road: Run, story: Path, german: Path) -> None:
    done = road("embed", story, german, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["id"] for record in records] == [story.name, german.name]
    assert list(records[0]) == [
        *("id", "lang", "sentences", "paragraphs", "space", "fingerprint", "dtype", "concepts"),
    ]
    assert records[0]["dtype"] == "float16"
    assert np.shape(records[0]["concepts"]) == (15, 32)
    assert road("embed", story, german, "--json", "-o", "-").stdout == done.stdout


def test_json_lines_in_a_file(road: Run, story: Path, tmp_path: Path) -> None:
    assert road("embed", story, "--json", "-o", tmp_path / "a.jsonl").code == 0
    assert (tmp_path / "a.jsonl").read_text() == road("embed", story, "--json").stdout


def test_goes_on_after_a_bad_document(road: Run, story: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The hen ran.", "id": "x"}\n{"texts": 1}\n{"sentences": ["Yes."]}\n')
    done = road("embed", path, story, "-o", tmp_path / "b.parquet", "--from", "en")
    assert done.code == 1
    assert "line 2" in done.stderr
    assert "embedded 17 sentences of 3 documents" in done.stderr
    documents = read_concepts([str(tmp_path / "b.parquet")])[1]
    assert [document.id for document in documents] == ["x", "a.jsonl:3", story.name]


def test_the_same_call_writes_the_same_bytes(road: Run, story: Path, tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        road("embed", story, "-o", tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no place for the concepts"),
        (["-o", "a.bin"], 2, "unknown suffix .bin"),
        (["-o", "nosuch/a.parquet"], 3, "no such folder: nosuch"),
        (["--json", "-o", "a.parquet"], 2, "--json does not fit a.parquet"),
        (["-o", "pyproject.parquet", "--dtype", "float8"], 2, "float8"),
    ],
)
def test_errors(road: Run, arguments: list[str], code: int, message: str) -> None:
    done = road("embed", "nosuch.txt", *arguments)  # the target is looked at before the input
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr


def test_an_existing_file_is_refused_before_any_work(
    road: Run, story: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("mine")
    done = road("embed", story, "-o", path)
    assert done.code == 2
    assert "exists already" in done.stderr and "--force" in done.stderr
    assert path.read_text() == "mine"
    assert road("embed", story, "-o", path, "--force").code == 0
