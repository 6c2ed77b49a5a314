"""lcm decode."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.space import Space, load_space

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def space(random_space: Path) -> Space:
    return load_space(str(random_space), device="cpu")


@pytest.fixture(scope="module")
def concepts(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two short documents."""
    path = tmp_path_factory.mktemp("decode") / "concepts.parquet"
    texts = {"a": ["The hen ran.", "It was late."], "b": ["Yes."]}
    with open_writer(str(path), SpaceInfo(space.name, space.fingerprint, space.dim)) as writer:
        for id, sentences in texts.items():
            found = space.encode(sentences, "eng_Latn").concepts
            writer.write(Document(id, "eng_Latn", sentences=sentences, concepts=found))
    return path


def test_texts(road: Run, concepts: Path, space: Space) -> None:
    done = road("decode", concepts, "--to", "fr")
    found = space.encode(["The hen ran.", "It was late."], "eng_Latn").concepts
    limits = space.limits(["The hen ran.", "It was late."], "eng_Latn")
    texts = space.decode(found.astype(np.float16), ["fra_Latn"], limits=limits)["fra_Latn"]
    first, second = done.stdout.split("\n\n")
    assert first == f"==> {concepts} row 0 ('a') <==\n" + " ".join(t[0].text for t in texts)
    assert second.startswith(f"==> {concepts} row 1 ('b') <==\n")
    assert done.stderr == ""


def test_json(road: Run, concepts: Path) -> None:
    done = road("decode", concepts, "--to", "fr", "--to", "de", "--n-best", "2", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert list(first) == [
        *("id", "lang", "texts", "candidates"),
        *("space", "fingerprint", "device", "precision", "seed", "version"),
    ]
    assert (first["id"], second["id"], first["seed"]) == ("a", "b", None)
    candidates = first["candidates"]["deu_Latn"]
    assert [len(texts) for texts in candidates] == [2, 2]
    assert candidates[0][0]["score"] >= candidates[0][1]["score"]
    assert first["texts"]["deu_Latn"] == " ".join(texts[0]["text"] for texts in candidates)


def test_n_best_shows_scores(road: Run, concepts: Path) -> None:
    done = road("decode", concepts, "--to", "fr", "--n-best", "7", "--max-tokens", "6")
    lines = [line for line in done.stdout.splitlines() if "\t" in line]
    assert len(lines) == 3 * 7
    assert all(float(line.split("\t")[0]) < 0 for line in lines)


def test_sampling_follows_the_seed(road: Run, concepts: Path) -> None:
    arguments = ("decode", concepts, "--to", "fr", "--sample", "--max-tokens", "8", "--json")
    texts = [
        json.loads(road(*arguments, "--seed", seed).stdout.splitlines()[0])
        for seed in ("0", "0", "1")
    ]
    assert texts[0] == texts[1]
    assert texts[0]["texts"] != texts[2]["texts"]
    assert [record["seed"] for record in texts] == [0, 0, 1]


def test_options_of_the_search(road: Run, concepts: Path) -> None:
    wide = road("decode", concepts, "--to", "fr", "--max-tokens", "8").stdout
    greedy = road("decode", concepts, "--to", "fr", "--beam", "1", "--max-tokens", "8").stdout
    bold = road(
        "decode", concepts, "--to", "fr", "--sample", "--temperature", "5", "--top-k", "50",
        "--top-p", "0.9", "--max-tokens", "8",
    ).stdout  # fmt: skip
    assert len({wide, greedy, bold}) == 3
    once = road("decode", concepts, "--to", "fr", "--no-repeat-ngram", "1").stdout
    assert once != road("decode", concepts, "--to", "fr").stdout


def test_from_files_and_from_standard_input(road: Run, concepts: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.parquet").write_bytes(concepts.read_bytes())
    data = concepts.read_bytes()
    brief = ("--to", "fr", "--json", "--max-tokens", "8")
    expected = road("decode", concepts, *brief).stdout
    assert road("decode", "-", *brief, input=data).stdout == expected
    assert road("decode", *brief, input=data).stdout == expected
    assert road("decode", tmp_path, *brief).stdout == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no target language"),
        (["--to", "frx"], 3, "unknown language 'frx'"),
        (["--to", "fr", "--temperature", "1"], 2, "--temperature is for sampling"),
        (["--to", "fr", "--top-k", "3"], 2, "--top-k is for sampling"),
        (["--to", "fr", "--sample", "--beam", "3"], 2, "--beam and --sample"),
        (["--to", "fr", "--sample", "--top-p", "2"], 2, "top-p"),
        (["--to", "fr", "--beam", "2", "--n-best", "3"], 2, "n_best 3 exceeds the beam of 2"),
    ],
)
def test_errors(road: Run, concepts: Path, arguments: list[str], code: int, message: str) -> None:
    done = road("decode", concepts, *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr


def _write(path: Path, info: SpaceInfo, concepts: np.ndarray) -> Path:
    with open_writer(str(path), info) as writer:
        writer.write(Document("x", "eng_Latn", concepts=concepts))
    return path


def test_concepts_of_another_space(road: Run, tmp_path: Path, space: Space) -> None:
    rows = np.ones((2, 32), dtype=np.float32)
    foreign = _write(tmp_path / "a.parquet", SpaceInfo("other", "f" * 16, 32), rows)
    done = road("decode", foreign, "--to", "fr")
    assert (done.code, done.stdout) == (5, "")
    assert "other" in done.stderr and space.fingerprint[:12] in done.stderr
    narrow = _write(tmp_path / "b.parquet", SpaceInfo("", "", 16), rows[:, :16])
    done = road("decode", narrow, "--to", "fr")
    assert done.code == 5
    assert "16 dimensions" in done.stderr


@pytest.mark.parametrize("cut", [4, 100, -40])
@pytest.mark.parametrize("suffix", ["safetensors", "parquet", "arrow"])
def test_damaged_files(road: Run, tmp_path: Path, space: Space, suffix: str, cut: int) -> None:
    info = SpaceInfo(space.name, space.fingerprint, 32)
    whole = _write(tmp_path / f"whole.{suffix}", info, np.ones((2, 32), dtype=np.float32))
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(whole.read_bytes()[:cut])
    done = road("decode", broken, "--to", "fr")
    assert done.code == 5 or (suffix, done.code) == ("arrow", 1)
    assert f"broken.{suffix}" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_and_text_files(road: Run, story: Path) -> None:
    done = road("decode", "nosuch.parquet", "--to", "fr")
    assert (done.code, done.stderr.count("error:")) == (3, 1)
    done = road("decode", story, "--to", "fr")
    assert (done.code, done.stderr.count("error:")) == (2, 1)
    assert "lcm embed" in done.stderr


def test_goes_on_after_a_bad_file(road: Run, concepts: Path) -> None:
    done = road("decode", "nosuch.parquet", concepts, "--to", "fr", "--max-tokens", "4", "--json")
    assert done.code == 1
    assert len(done.stdout.splitlines()) == 2
