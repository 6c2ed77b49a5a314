"""Indexes: written, searched and damaged."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcm_cli.documents import Document, SpaceInfo
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.search import corpus, graph, index
from lcm_cli.search.corpus import Hit, merged, search_documents
from lcm_cli.search.index import Index, is_index, write_index

INFO = SpaceInfo("made", "0123456789abcdef", 24)


def documents(count: int = 12, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        concepts = rng.standard_normal((1 + number % 4, INFO.dim)).astype(np.float32)
        sentences = [f"sentence {at} of {number}" for at in range(len(concepts))]
        lang = ("eng_Latn", "fra_Latn")[number % 2]
        found.append(
            Document(f"doc{number}", lang, sentences=sentences, concepts=concepts, space=INFO)
        )
    return found


def plain(hits: list[Hit]) -> list[tuple[Any, ...]]:
    return [(hit.document, hit.number, hit.lang, hit.text) for hit in hits]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SHARD_ROWS", 7)
    monkeypatch.setattr(corpus.blocks, "__defaults__", (5,))


@pytest.fixture
def queries() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((3, INFO.dim)).astype(np.float32)


@pytest.mark.usefixtures("small_blocks")
def test_an_index_finds_what_the_files_have(tmp_path: Path, queries: np.ndarray) -> None:
    manifest = write_index(tmp_path / "it", INFO, documents())
    assert (manifest.rows, manifest.documents) == (30, 12)
    assert len(manifest.shards) > 2
    opened = Index(tmp_path / "it")
    assert opened.space == INFO and not opened.has_graph
    found = opened.search(queries, 6)
    wanted = search_documents(documents(), queries, 6)
    assert list(map(plain, found)) == list(map(plain, wanted))
    for one, other in zip(chain(*found), chain(*wanted), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert one.concept == pytest.approx(other.concept, abs=2e-3)  # with its length
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    import pyarrow as pa

    write_index(tmp_path / "it", INFO, documents())
    manifest = json.loads((tmp_path / "it" / "manifest.json").read_text())
    matrix = np.fromfile(tmp_path / "it" / manifest["shards"][0]["file"], dtype="<f2")
    matrix = matrix.reshape(manifest["rows"], manifest["space"]["dim"])
    assert np.linalg.norm(matrix.astype(float), axis=1) == pytest.approx(1, abs=1e-3)
    table = pa.ipc.open_file(tmp_path / "it" / "sentences.arrow").read_all()
    assert table.column_names == ["document", "sentence", "lang", "text", "norm"]
    last = documents()[-1]
    assert table.slice(29).to_pylist()[0] | {"norm": 0} == {
        "document": "doc11",
        "sentence": 4,
        "lang": "fra_Latn",
        "text": last.sentences[-1],
        "norm": 0,
    }


def test_concepts_without_sentences(tmp_path: Path, queries: np.ndarray) -> None:
    bare = [Document("x", concepts=documents()[3].concepts, space=INFO)]
    write_index(tmp_path / "it", INFO, bare)
    expected = [("x", n, "", "") for n in (1, 2, 3, 4)]
    for found in (Index(tmp_path / "it").search(queries, 9), search_documents(bare, queries, 9)):
        assert sorted(plain(found[0])) == expected


def test_results_of_several_searches_are_merged(queries: np.ndarray) -> None:
    whole = search_documents(documents(), queries, 5)
    parts = [search_documents(part, queries, 5) for part in (documents()[:5], documents()[5:])]
    assert list(map(plain, merged(parts, 5))) == list(map(plain, whole))


def test_equal_scores_keep_the_order() -> None:
    same = np.ones((2, INFO.dim), dtype=np.float32)
    twice = [Document(name, sentences=["a", "b"], concepts=same) for name in ("y", "x")]
    (found,) = search_documents(twice, same[:1], 3)
    assert [(hit.document, hit.number) for hit in found] == [("y", 1), ("y", 2), ("x", 1)]


def test_the_graph_finds_nearly_all(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((3000, INFO.dim)).astype(np.float32)
    manifest = write_index(
        tmp_path / "it", INFO, [Document("d", concepts=concepts, space=INFO)], approximate=True
    )
    assert manifest.graph is not None
    opened = Index(tmp_path / "it")
    asked = rng.standard_normal((20, INFO.dim)).astype(np.float32)
    exact = opened.search(asked, 10)
    fast = opened.search(asked, 10, exact=False)
    hits = [
        len({hit.number for hit in a} & {hit.number for hit in b})
        for a, b in zip(exact, fast, strict=True)
    ]
    assert sum(hits) >= 190
    assert exact[0][0].score == fast[0][0].score  # the graph's candidates are scored exactly
    few = opened.search(asked[:1], 5000, exact=False)
    assert len(few[0]) == 3000


def test_without_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(LcmError, match="needs faiss") as error:
        write_index(tmp_path / "it", INFO, documents(), approximate=True)
    assert "pip install 'lcm-cli[index]'" in error.value.hint
    assert list(tmp_path.iterdir()) == []
    write_index(tmp_path / "it", INFO, documents())  # exact search needs no package
    assert Index(tmp_path / "it").search(np.ones((1, INFO.dim), np.float32), 1)[0]


def test_a_damaged_graph(tmp_path: Path, queries: np.ndarray) -> None:
    pytest.importorskip("faiss")
    write_index(tmp_path / "it", INFO, documents(), approximate=True)
    path = tmp_path / "it" / index.GRAPH
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(IntegrityError, match="damaged"):
        Index(tmp_path / "it").search(queries, 3, exact=False)
    assert Index(tmp_path / "it").search(queries, 3)


def test_a_graph_of_other_vectors(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    write_index(tmp_path / "it", INFO, documents(), approximate=True)
    with pytest.raises(IntegrityError, match="does not hold 31 vectors of 24 dimensions"):
        graph.Graph(tmp_path / "it" / index.GRAPH, 31, 24)


def test_nothing_is_left_of_a_failed_run(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from documents()
        raise IntegrityError("the file ends here")

    with pytest.raises(IntegrityError):
        write_index(tmp_path / "it", INFO, broken())
    assert list(tmp_path.iterdir()) == []
    write_index(tmp_path / "it", INFO, documents())
    before = (tmp_path / "it" / "manifest.json").read_bytes()
    with pytest.raises(IntegrityError):
        write_index(tmp_path / "it", INFO, broken(), force=True)
    assert (tmp_path / "it" / "manifest.json").read_bytes() == before
    assert len(Index(tmp_path / "it")) == 30


def test_where_an_index_may_be_written(tmp_path: Path) -> None:
    write_index(tmp_path / "it", INFO, documents())
    with pytest.raises(UsageError, match="exists already"):
        write_index(tmp_path / "it", INFO, documents())
    write_index(tmp_path / "it", INFO, documents(3), force=True)
    assert len(Index(tmp_path / "it")) == 6
    (tmp_path / "mine").mkdir()
    write_index(tmp_path / "mine", INFO, documents())  # an empty folder may be filled
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("Hello.")
    for name in ("other", "other/letter.txt"):
        with pytest.raises(UsageError, match=r"not an index|not a folder"):
            write_index(tmp_path / name, INFO, documents(), force=True)
    write_index(tmp_path / "new" / "folders" / "it", INFO, documents())


def change(**values: Any) -> Callable[[Path], None]:
    """Return a change of the manifest."""

    def changed(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return changed


def cut(name: str) -> Callable[[Path], None]:
    """Return a cut of a file to half of its length."""

    def halved(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return halved


def nest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "matrix": (cut("vectors-00000.f16"), "has 720 bytes, but manifest.json lists 1440"),
    "sentences": (cut("sentences.arrow"), "bytes, but manifest.json lists"),
    "missing": (lambda folder: (folder / "sentences.arrow").unlink(), "lacks sentences.arrow"),
    "no JSON": (cut("manifest.json"), "not valid JSON"),
    "nested": (nest, "not valid JSON"),
    "rows": (change(rows=31), "do not add up"),
    "no rows": (change(rows=0), "lists 0 rows"),
    "width": (change(space={"name": "made", "fingerprint": "01", "dim": 12}), "do not add up"),
    "version": (change(version=2), "has version 2, but this lcm reads version 1"),
    "dtype": (change(dtype="int8"), "in int8"),
    "key": (change(more=1), "unknown key 'more'"),
    "type": (change(rows="30"), "rows"),
    "path": (
        change(sentences={"file": "../x", "rows": 30, "bytes": 1, "sha256": ""}),
        "lacks ../x",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGES[name]
    folder = tmp_path / "it"
    write_index(folder, INFO, documents())
    damage(folder)
    assert is_index(folder)
    with pytest.raises(IntegrityError, match=message):
        Index(folder)


def test_damage_inside_files_of_the_right_size(tmp_path: Path, queries: np.ndarray) -> None:
    folder = tmp_path / "it"
    write_index(folder, INFO, documents())
    matrix = np.memmap(folder / "vectors-00000.f16", "<f2", "r+")
    matrix[100] = np.nan
    matrix.flush()
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        Index(folder).search(queries, 3)
    (folder / "sentences.arrow").write_bytes(b"x" * (folder / "sentences.arrow").stat().st_size)
    with pytest.raises(IntegrityError, match=r"sentences\.arrow is damaged"):
        Index(folder)


def test_what_is_not_an_index(tmp_path: Path) -> None:
    assert not is_index(tmp_path)
    assert not is_index(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"kind": "dataset"}')
    assert not is_index(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(NotFoundError):
        Index(tmp_path)
