"""lcm similar."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.space import Space, load_space

Run = Callable[..., Any]
PETS = {
    "eng_Latn": ["The cat sleeps on the bed.", "I bought a new bicycle.", "Where is the station?"],
    "deu_Latn": ["Meine Mutter kocht Suppe.", "Wo ist der Bahnhof?"],
    "fra_Latn": ["Il pleut depuis ce matin.", "Le chat dort sur le lit."],
}


@pytest.fixture(scope="session")
def tiny() -> Space:
    return load_space("tiny", device="cpu")


@pytest.fixture(scope="session")
def corpus(tiny: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a document in each of three languages."""
    path = tmp_path_factory.mktemp("similar") / "pets.parquet"
    with open_writer(str(path), SpaceInfo(tiny.name, tiny.fingerprint, tiny.dim)) as writer:
        for lang, sentences in PETS.items():
            found = tiny.encode(sentences, lang).concepts
            writer.write(Document(lang[:3], lang, sentences=sentences, concepts=found))
    return path


@pytest.fixture
def index(lcm: Run, corpus: Path, tmp_path: Path) -> Path:
    assert lcm("index", corpus, "-o", tmp_path / "index", "-q").code == 0
    return tmp_path / "index"


def test_across_languages(lcm: Run, corpus: Path) -> None:
    done = lcm("similar", "Wo ist der Bahnhof?", "--in", corpus, "-k", "2", "-q")
    assert (done.code, done.stderr) == (0, "")
    first, second = (line.split("\t") for line in done.stdout.splitlines())
    assert first == ["1.000", "deu", "2", "deu_Latn", "Wo ist der Bahnhof?"]
    assert second[1:] == ["eng", "3", "eng_Latn", "Where is the station?"]
    assert 0.7 < float(second[0]) < 1


def test_an_index_finds_the_same(lcm: Run, corpus: Path, index: Path) -> None:
    asked = ("similar", "A cat is asleep.", "-q", "--json")
    (file,) = map(json.loads, lcm(*asked, "--in", corpus).stdout.splitlines())
    (fast,) = map(json.loads, lcm(*asked, "--in", f"{index}/").stdout.splitlines())
    assert file["lang"] == "eng_Latn" and file["space"] == "tiny"
    assert {hit["text"] for hit in file["found"][:2]} == {PETS["eng_Latn"][0], PETS["fra_Latn"][1]}
    for one, other in zip(file["found"], fast["found"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert {**one, "score": 0} == {**other, "score": 0}


def test_links_and_emoji_in_another_language(lcm: Run, tiny: Space, tmp_path: Path) -> None:
    path, text = tmp_path / "a.parquet", "The dog ran to https://example.org/a 😀."
    with open_writer(str(path), SpaceInfo(tiny.name, tiny.fingerprint, tiny.dim)) as writer:
        concepts = tiny.encode([text], "eng_Latn").concepts
        writer.write(Document("a", "eng_Latn", sentences=[text], concepts=concepts))
    done = lcm("similar", "The dog ran.", "--from", "en", "--in", path, "--to", "fr,en", "-q")
    (line,) = done.stdout.splitlines()
    french, english = line.split("\t")[4:]
    assert english == text
    assert french.count("https://example.org/a") == french.count("😀") == 1


def test_in_another_language(lcm: Run, corpus: Path, index: Path) -> None:
    asked = (
        "similar",
        "Where is the station?",
        "--to",
        "German,eng",
        "-k",
        "2",
        "--json",
    )
    for place in (corpus, index):
        (found,) = map(json.loads, lcm(*asked, "--in", place, "-q").stdout.splitlines())
        english, german = found["found"]
        assert english["texts"]["eng_Latn"] == "Where is the station?"
        assert english["texts"]["deu_Latn"].startswith("Wo ist ")
        assert german["texts"]["deu_Latn"] == "Wo ist der Bahnhof?"
        assert german["texts"]["eng_Latn"].startswith("Where")
    plain = lcm(*asked[:-1], "--in", corpus, "-q").stdout.splitlines()
    assert plain[1].split("\t")[3:] == [
        "deu_Latn",
        german["texts"]["deu_Latn"],
        german["texts"]["eng_Latn"],
    ]


def test_the_sentences_of_a_file_and_of_standard_input(
    lcm: Run, corpus: Path, tmp_path: Path
) -> None:
    text = "It has been raining since this morning. I have a new bicycle."
    (tmp_path / "queries.txt").write_text(text)
    done = lcm("similar", tmp_path / "queries.txt", "--in", corpus, "-k", "1", "-q")
    first, second = done.stdout.split("\n\n")
    assert first.startswith("==> It has been raining since this morning. <==\n")
    assert first.endswith("\tfra\t1\tfra_Latn\tIl pleut depuis ce matin.")
    assert second.startswith("==> I have a new bicycle. <==\n")
    assert "I bought a new bicycle." in second
    piped = lcm("similar", "-", "--in", corpus, "-k", "1", "-q", input=text.encode())
    assert piped.stdout == done.stdout


def test_files_and_indexes_together(lcm: Run, corpus: Path, index: Path) -> None:
    done = lcm("similar", "Wo ist der Bahnhof?", "--in", corpus, "--in", index, "-k", "2", "-q")
    assert [line.split("\t")[1:3] for line in done.stdout.splitlines()] == [["deu", "2"]] * 2


def test_more_than_there_are(lcm: Run, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.txt"
    done = lcm("similar", "The cat is sleeping.", "--in", corpus, "-k", "100", "-o", out)
    assert done.code == 0 and done.stdout == ""
    assert "there are only 7 sentences to search" in done.stderr
    assert len(out.read_text().splitlines()) == 7


def test_the_graph_of_an_index(lcm: Run, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    assert lcm("index", corpus, "-o", tmp_path / "graph", "--approximate").code == 0
    asked = ("similar", "Wo ist der Bahnhof?", "--in", tmp_path / "graph", "-q")
    fast, exact = lcm(*asked), lcm(*asked, "--exact")
    assert fast.code == 0 and fast.stdout == exact.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([""], 2, "the argument after similar is empty"),
        ([" \n"], 2, "the query is empty"),
        (["The cat is sleeping.", "-k", "0"], 2, "-k"),
        (["-", "--in", "-"], 2, "named twice"),
        (["nosuch.txt"], 3, "no such file: nosuch.txt"),
        (["The cat is sleeping.", "--from", "jpn"], 3, "tiny has no Japanese"),
        (["The cat is sleeping.", "--to", "jpn"], 3, "tiny has no Japanese"),
        (["彼は本を読んでいます。"], 3, "the query"),
        (["The cat is sleeping.", "--space", "nosuch"], 3, "nosuch"),
    ],
)
def test_bad_queries(lcm: Run, corpus: Path, arguments: list[str], code: int, message: str) -> None:
    done = lcm("similar", *arguments, "--in", corpus)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr


def test_a_query_over_the_token_limit(lcm: Run, corpus: Path) -> None:
    done = lcm("similar", "The cat is sleeping. " * 60, "--in", corpus, "-k", "1")
    assert done.code == 0 and len(done.stdout.splitlines()) == 1
    assert "only the first 256 are encoded" in done.stderr


def test_an_empty_file_of_queries(lcm: Run, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    done = lcm("similar", tmp_path / "empty.txt", "--in", corpus)
    assert (done.code, done.stdout) == (5, "")
    assert "has no text in it" in done.stderr


def test_bad_concepts(
    lcm: Run, road: Run, corpus: Path, index: Path, story: Path, tmp_path: Path
) -> None:
    def error(*places: Path, run: Run = lcm) -> tuple[int, str]:
        given = [argument for place in places for argument in ("--in", place)]
        done = run("similar", "The cat is sleeping.", *given)
        assert done.stdout == ""
        return done.code, done.stderr

    assert error() == (2, error()[1]) and "no concepts to search" in error()[1]
    code, message = error(story)
    assert code == 2 and "is text, not concepts" in message
    code, message = error(tmp_path / "nowhere")
    assert code == 3 and "nowhere" in message
    for place in (corpus, index):
        code, message = error(place, run=road)
        assert code == 5 and "these concepts lie in the space tiny" in message
    narrow = tmp_path / "narrow.safetensors"
    with open_writer(str(narrow), SpaceInfo("", "", 3)) as writer:
        writer.write(Document("x", "eng_Latn", concepts=np.ones((2, 3), np.float32)))
    code, message = error(narrow)
    assert code == 5 and "3 dimensions" in message
    (index / "vectors-00000.f16").write_bytes(b"short")
    code, message = error(index)
    assert code == 5 and "is damaged" in message


def test_broken_documents_are_reported_and_the_others_searched(
    lcm: Run, corpus: Path, tmp_path: Path, tiny: Space
) -> None:
    from safetensors.numpy import save_file

    bad = np.full((1, tiny.dim), np.nan, dtype=np.float32)
    save_file({"concepts": bad}, tmp_path / "bad.safetensors")
    done = lcm(
        "similar", "The cat is sleeping.", "--in", corpus, "--in", tmp_path / "bad.safetensors"
    )
    assert done.code == 1
    assert "NaN or infinite" in done.stderr
    assert len(done.stdout.splitlines()) == 5
