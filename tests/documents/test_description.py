"""Descriptions of files, intact and damaged."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcm_cli.documents import Document, SpaceInfo, describe, open_writer
from lcm_cli.errors import IntegrityError, NotFoundError

INFO = SpaceInfo("small", "0123456789abcdef", 4)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "a.parquet"
    with open_writer(str(path), INFO) as writer:
        for lang, rows in (("eng_Latn", 1), ("eng_Latn", 3), ("", 2)):
            sentences = ["abc" * (i + 1) for i in range(rows)]
            vectors = np.full((rows, 4), rows, np.float32)
            writer.write(Document("x", lang, sentences=sentences, concepts=vectors))
    return path


def test_concepts(table):
    report = describe(str(table))
    assert report == {
        "path": str(table),
        "kind": "concepts",
        "formats": ["parquet"],
        "bytes": table.stat().st_size,
        "space": {"name": "small", "fingerprint": "0123456789abcdef", "dim": 4},
        "dtypes": ["float16"],
        "documents": 3,
        "targets": 0,
        "plans": 0,
        "splits": {},
        "sentences": 6,
        "concepts": 6,
        "languages": {"eng_Latn": 2, "unknown": 1},
        "sentence_characters": {"min": 3.0, "mean": 5.0, "max": 9.0},
        "document_sentences": {"min": 1.0, "mean": 2.0, "max": 3.0},
        "norms": {"min": 2.0, "mean": 4.6667, "max": 6.0},
        "non_finite": 0,
        "problems": [],
        "problem_count": 0,
    }
    json.dumps(report)


def test_text(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.")
    (tmp_path / "b.jsonl").write_text('{"sentences": ["One.", "Two."], "lang": "eng_Latn"}\noops\n')
    report = describe(str(tmp_path))
    assert (report["kind"], report["formats"]) == ("documents", ["jsonl", "text"])
    assert (report["documents"], report["sentences"], report["concepts"]) == (2, 2, 0)
    assert report["space"] is report["norms"] is None
    assert report["problem_count"] == 1
    assert "b.jsonl line 2 is not valid JSON" in report["problems"][0]


def test_damage_is_counted_and_listed(tmp_path):
    good, bad = [1.0, 1.0], [float("nan"), 1.0]
    rows = [[good], [good, bad, bad], [good, None], [[1.0]]]
    texts = [["a"], ["a"] * 3, ["a"] * 2, ["a"]]
    path = tmp_path / "o.parquet"
    pq.write_table(pa.table({"text_sentences": texts, "text_sentences_sonar_emb": rows}), path)
    report = describe(str(path))
    assert (report["documents"], report["concepts"], report["non_finite"]) == (3, 5, 2)
    assert report["norms"]["max"] == 1.4142
    assert report["problem_count"] == 3
    assert report["problems"] == [
        f"{path} row 1: NaN or infinite: concept 1, 2",
        f"{path} row 2: 1 of its 2 concepts are missing (null)",
        f"{path} row 3: in an unnamed space, 1 dimensions",
    ]


def test_all_problems_are_counted_and_the_first_listed(tmp_path):
    (tmp_path / "a.jsonl").write_text("oops\n" * 30)
    report = describe(str(tmp_path / "a.jsonl"))
    assert report["problem_count"] == 30
    assert len(report["problems"]) == 20


def test_cut_off(table):
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(IntegrityError):
        describe(str(table))


def test_missing_file(tmp_path):
    with pytest.raises(NotFoundError):
        describe(str(tmp_path / "no.parquet"))
