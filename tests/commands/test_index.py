"""lcm index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcm_cli.documents import Document, SpaceInfo, open_writer

Run = Callable[..., Any]


@pytest.fixture
def concepts(tmp_path: Path) -> Path:
    """A data set of two documents in a space of 8 dimensions."""
    rng = np.random.default_rng(0)
    with open_writer(str(tmp_path / "set"), SpaceInfo("made", "ab" * 8, 8)) as writer:
        for id, count in (("a", 3), ("b", 2)):
            sentences = [f"{id}{number}" for number in range(count)]
            found = rng.standard_normal((count, 8)).astype(np.float32)
            writer.write(Document(id, "eng_Latn", sentences=sentences, concepts=found))
    return tmp_path / "set"


def test_an_index(lcm: Run, concepts: Path, tmp_path: Path) -> None:
    done = lcm("index", concepts, "-o", f"{tmp_path}/index/")
    assert (done.code, done.stdout) == (0, "")
    assert "indexed 5 sentences of 2 documents" in done.stderr
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["rows"], manifest["graph"]) == ("index", 5, None)
    assert manifest["space"] == {"name": "made", "fingerprint": "ab" * 8, "dim": 8}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "set"]


def test_an_index_is_described(lcm: Run, concepts: Path, tmp_path: Path) -> None:
    assert lcm("index", concepts, "-o", tmp_path / "places").code == 0
    found = json.loads(lcm("inspect", tmp_path / "places", "--json").stdout)
    assert (found["kind"], found["graph"], found["dtype"]) == ("index", False, "float16")
    files = [path for path in (tmp_path / "places").iterdir() if path.name != "manifest.json"]
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert found["sentences"] >= found["documents"] > 0 and found["space"]["fingerprint"]


def test_of_a_pipe(lcm: Run, concepts: Path, tmp_path: Path) -> None:
    data = next(concepts.glob("*.parquet")).read_bytes()
    assert lcm("index", "-", "-o", tmp_path / "index", input=data).code == 0


def test_again(lcm: Run, concepts: Path, tmp_path: Path) -> None:
    again = ("index", concepts, "-o", tmp_path / "index", "-q")
    assert lcm(*again).code == 0
    done = lcm(*again)
    assert done.code == 2 and "exists already" in done.stderr
    assert lcm(*again, "--force").code == 0
    done = lcm("index", concepts, "-o", concepts, "--force")
    assert done.code == 2 and "is not an index" in done.stderr


def test_without_faiss(lcm: Run, concepts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    done = lcm("index", concepts, "-o", tmp_path / "index", "--approximate")
    assert done.code == 1
    assert "pip install 'lcm-cli[index]'" in done.stderr
    assert not (tmp_path / "index").exists()


def test_bad_input(lcm: Run, concepts: Path, story: Path, tmp_path: Path) -> None:
    done = lcm("index", concepts)
    assert done.code == 2 and "no output for the index" in done.stderr
    done = lcm("index", story, "-o", tmp_path / "index")
    assert done.code == 2 and "is text, not concepts" in done.stderr
    with open_writer(str(tmp_path / "wide"), SpaceInfo("wide", "cd" * 8, 16)) as writer:
        writer.write(Document("c", "eng_Latn", concepts=np.ones((1, 16), np.float32)))
    done = lcm("index", concepts, tmp_path / "wide", "-o", tmp_path / "index")
    assert done.code == 1 and "16 dimensions, but those before it have 8" in done.stderr
    (tmp_path / "empty").mkdir()
    done = lcm("index", tmp_path / "empty", "-o", tmp_path / "none")
    assert done.code == 3 and "no documents in the folder" in done.stderr
    assert not (tmp_path / "none").exists()
