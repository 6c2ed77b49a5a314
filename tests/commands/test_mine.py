"""lcm mine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.space import load_space

Run = Callable[..., Any]
ENGLISH = """\
The cat sleeps.
I bought a new bicycle last week.
Where is the station?
She likes music very much.
It was raining all day.
My father works in a hospital.
"""
GERMAN = """\
Wo ist der Bahnhof?
Die Katze schläft.
Mein Vater arbeitet in einem Krankenhaus.
Das Brot ist zu teuer.
Letzte Woche habe ich ein neues Fahrrad gekauft.
Sie mag Musik sehr.
"""
PAIRS = {(1, 2), (2, 5), (3, 1), (4, 6), (6, 3)}
STORY = (
    "It was raining all day. We stayed at home. The cat slept. I read a book. Then the sun came."
)
GESCHICHTE = (
    "Es regnete den ganzen Tag, und wir blieben zu Hause. Die Katze schlief. Das Brot war teuer. "
    "Ich las ein Buch. Dann kam die Sonne."
)


@pytest.fixture
def piles(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "en.txt").write_text(ENGLISH)
    (tmp_path / "de.txt").write_text(GERMAN)
    return tmp_path / "en.txt", tmp_path / "de.txt"


def test_pairs(lcm: Run, piles: tuple[Path, Path], tmp_path: Path) -> None:
    done = lcm("mine", *piles, "-o", tmp_path / "pairs.tsv")
    assert done.code == 0 and done.stdout == ""
    assert "pairs in 6 and 6 sentences" in done.stderr
    rows = [line.split("\t") for line in (tmp_path / "pairs.tsv").read_text().splitlines()]
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
    english, german = ENGLISH.splitlines(), GERMAN.splitlines()
    found = {(english.index(a) + 1, german.index(b) + 1) for _, a, b in rows[:5]}
    assert found == PAIRS


def test_json(lcm: Run, piles: tuple[Path, Path]) -> None:
    done = lcm("mine", *piles, "--json", "-q", "--from", "English", "--from-b", "deu")
    records = list(map(json.loads, done.stdout.splitlines()))
    assert {(r["a"]["indices"][0], r["b"]["indices"][0]) for r in records[:5]} == PAIRS
    first = next(r for r in records if r["a"]["indices"] == [3])
    assert first["a"] == {
        "id": "en.txt", "indices": [3], "lang": "eng_Latn", "text": "Where is the station?"
    }  # fmt: skip
    assert first["b"]["text"] == "Wo ist der Bahnhof?"
    again = lcm("mine", *piles, "--json", "-q", "--threshold", "2")
    sure = [record for record in records if record["score"] >= 2]
    assert list(map(json.loads, again.stdout.splitlines())) == sure


def test_concepts_and_text(lcm: Run, piles: tuple[Path, Path], tmp_path: Path) -> None:
    assert lcm("embed", piles[0], "-o", tmp_path / "en.parquet", "--dtype", "float32").code == 0
    whole = lcm("mine", *piles, "-q").stdout
    assert lcm("mine", tmp_path / "en.parquet", piles[1], "-q").stdout == whole
    assert lcm("mine", "-", piles[1], "-q", input=piles[0].read_bytes()).stdout == whole


def test_alignment(lcm: Run, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text(STORY)
    (tmp_path / "de.txt").write_text(GESCHICHTE)
    done = lcm("mine", tmp_path / "en.txt", tmp_path / "de.txt", "--align", "--json")
    records = list(map(json.loads, done.stdout.splitlines()))
    assert [(r["a"]["indices"], r["b"]["indices"]) for r in records] == [
        ([1, 2], [1]),
        ([3], [2]),
        ([4], [4]),
        ([5], [5]),
    ]
    assert records[0]["a"]["text"] == "It was raining all day. We stayed at home."
    assert "4 pairs; left out: 0 sentences of A and 1 of B" in done.stderr
    plain = lcm("mine", tmp_path / "en.txt", tmp_path / "de.txt", "--align", "-q").stdout
    assert plain.splitlines()[1].split("\t")[1:] == ["The cat slept.", "Die Katze schlief."]


def test_concepts_without_text(lcm: Run, piles: tuple[Path, Path], tmp_path: Path) -> None:
    space = load_space("tiny", device="cpu")
    found = space.encode(ENGLISH.splitlines(), "eng_Latn").concepts
    info = SpaceInfo(space.name, space.fingerprint, space.dim)
    bare = tmp_path / "bare.parquet"
    with open_writer(str(bare), info) as writer:
        writer.write(Document("x", "eng_Latn", concepts=found))
    done = lcm("mine", bare, piles[1])
    assert (done.code, done.stdout) == (2, "")
    assert "not the text of its sentences" in done.stderr
    for more in ((), ("--align",)):
        done = lcm("mine", bare, piles[1], "--json", *more)
        assert done.code == 0
        assert all(json.loads(line)["a"]["text"] == "" for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nosuch.txt", "de.txt"], 3, "no such file"),
        (["en.txt", "empty.txt"], 5, "has no text in it"),
        (["-", "-"], 2, "named twice"),
        (["en.txt", "de.txt", "--threshold", "-1"], 2, "--threshold"),
        (["en.txt", "de.txt", "--align", "--threshold", "1"], 2, "has no effect with --align"),
        (["en.txt", "de.txt", "--from", "jpn"], 3, "tiny has no Japanese"),
        (["en.txt", "other.parquet"], 5, "these concepts lie in the space made"),
        (["en.txt", "both", "--align"], 2, "A has 1 document, but B has 2"),
    ],
)
def test_errors(
    lcm: Run,
    piles: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    Path("both").mkdir()
    for path in piles:
        (Path("both") / path.name).write_bytes(path.read_bytes())
    with open_writer("other.parquet", SpaceInfo("made", "ab" * 8, 384)) as writer:
        writer.write(Document("x", "eng_Latn", concepts=np.ones((1, 384), np.float32)))
    done = lcm("mine", *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr
