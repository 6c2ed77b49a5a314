"""lcm embed."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ForkServer
from rounding import additions, assert_near

from lcm_cli.commands._road import Road
from lcm_cli.commands._space import LocatedSpace
from lcm_cli.documents import read_concepts, writing
from lcm_cli.space import Space, load_space

Run = Callable[..., Any]
ROOT = Path(__file__).resolve().parent.parent.parent


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
    assert "embedded 15 sentences of 1 document in" in done.stderr
    assert "sentences/s" in done.stderr
    info, documents = read_concepts([target])
    (document,) = documents
    assert (info.name, info.fingerprint, info.dim) == ("random", space.fingerprint, 32)
    assert (document.id, document.lang) == (story.name, "eng_Latn")
    assert document.sentences[0] == "Tom lives in a small village."
    assert document.paragraphs[:4] == [0, 0, 0, 1]
    concepts = space.encode(document.sentences, "eng_Latn").concepts
    assert document.concepts is not None and document.concepts.dtype == np.float32
    assert_near(document.concepts, concepts, additions(space.encoder))


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
        ([], 2, "no output for the concepts"),
        (["-o", "a.bin"], 2, "unknown suffix .bin"),
        (["-o", "nosuch/a.parquet"], 3, "no such folder: nosuch"),
        (["--json", "-o", "a.parquet"], 2, "--json cannot be written to a.parquet"),
        (["-o", "pyproject.parquet", "--dtype", "float8"], 2, "float8"),
    ],
)
def test_errors(road: Run, arguments: list[str], code: int, message: str) -> None:
    done = road("embed", "nosuch.txt", *arguments)  # the target is checked before the input
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


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Documents with a split; two have a target, as text and as sentences."""
    lines: list[dict[str, Any]] = [
        {"id": str(number), "text": f"The hen ran {number} times. The dog slept.", "split": "train"}
        for number in range(12)
    ]
    lines[1] |= {"target": "A hen ran. A dog did not."}
    lines[2] |= {"target": ["Hens run."], "split": "dev"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "folder"])
def test_targets_are_embedded_and_splits_kept(
    road: Run, pairs: Path, space: Space, tmp_path: Path, name: str
) -> None:
    done = road("embed", pairs, "-o", tmp_path / name, "--from", "en", "--dtype", "float32")
    assert (done.code, "embedded 27 sentences of 12 documents" in done.stderr) == (0, True)
    documents = list(read_concepts([str(tmp_path / name)])[1])
    assert [document.split for document in documents[:4]] == ["train", "train", "dev", "train"]
    assert [document.target is None for document in documents[:4]] == [True, False, False, True]
    for number, sentences in ((1, ["A hen ran.", "A dog did not."]), (2, ["Hens run."])):
        target = documents[number].target
        assert target is not None and target.sentences == sentences
        concepts = space.encode(sentences, "eng_Latn").concepts
        assert target.concepts is not None
        assert_near(target.concepts, concepts, additions(space.encoder))
        assert documents[number].concepts is not None and len(documents[number].concepts) == 2


@pytest.mark.parametrize("target", [3, [1], {"text": "A."}])
def test_a_target_of_another_type(road: Run, tmp_path: Path, target: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "The hen ran.", "target": target}))
    done = road("embed", path, "--json", "--from", "en")
    assert done.code == 5
    assert "'target' is" in done.stderr and "a string or a list of strings" in done.stderr


def test_a_target_without_text(road: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "A.", "target": [""]}\n{"text": "B.", "target": ""}\n')
    done = road("embed", path, "--json", "--from", "en")
    assert done.code == 1  # an empty target is no target, a list of empty sentences an error
    assert "line 1, its target" in done.stderr and "has no text in it" in done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["a.jsonl:2"]


SMALL_SHARDS = """
import sys
from lcm_cli.documents import writing
writing.open_writer.__wrapped__.__kwdefaults__["shard_bytes"] = 300
from lcm_cli.app import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_it_goes_on(
    road: Run,
    pairs: Path,
    random_space: Path,
    surroundings: dict[str, str],
    forks: ForkServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A killed run that the same command resumes writes the folder of an uninterrupted run."""
    whole, often = tmp_path / "whole", tmp_path / "often"
    defaults = writing.open_writer.__wrapped__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(defaults, "shard_bytes", 300)
    assert road("embed", pairs, "-o", whole, "--from", "en").code == 0
    arguments = ["embed", str(pairs), "-o", str(often), "--from", "en"]
    env = surroundings | {"LCM_SPACE": str(random_space)}
    process = forks.start(*arguments, code=SMALL_SHARDS, env=env)
    journal = often / ".unfinished.json"
    while process.poll() is None and not journal.exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    refused = road("embed", pairs, "-o", often, "--from", "de")
    assert refused.code == 2
    assert "unfinished data set made from other documents" in refused.stderr
    done = road("embed", pairs, "-o", often, "--from", "en")
    assert done.code == 0
    assert "resuming after " in done.stderr
    manifests = [(folder / "manifest.json").read_text() for folder in (whole, often)]
    assert manifests[0] == manifests[1]  # with the sha256 of every shard
    assert sorted(p.name for p in often.iterdir()) == sorted(p.name for p in whole.iterdir())
    again = road("embed", pairs, "-o", often, "--from", "en")
    assert (again.code, "exists already" in again.stderr) == (2, True)


@pytest.mark.parametrize("done", [32, 96, 100, 250])
def test_what_follows_saved_documents_has_the_same_neighbours(
    space: Space, random_space: Path, tmp_path: Path, done: int
) -> None:
    """Documents are encoded in windows of 32, 64, ... sentences, which can affect rounding."""
    source = tmp_path / "a.jsonl"
    source.write_text("".join('{"text": "A hen."}\n' for _ in range(250)))

    def windows(skipped: int) -> list[list[str]]:
        road = Road([str(source)], LocatedSpace(str(random_space)), "eng_Latn", one_per_line=False)
        if skipped:
            road.skip(skipped, f"a.jsonl:{skipped}", restored=skipped)
        return [[each.document.id for each in window] for window in road.embedded(space, None)]

    whole = windows(0)
    assert [len(window) for window in whole] == [32, 64, 128, 26]
    ids = [f"a.jsonl:{number}" for number in range(1, done + 1)]
    rest = [[id for id in window if id not in ids] for window in whole]
    assert windows(done) == [window for window in rest if window]


OFTEN_SAVED = SMALL_SHARDS.replace(
    'writing.open_writer.__wrapped__.__kwdefaults__["shard_bytes"] = 300',
    'writing.open_writer.__wrapped__.__kwdefaults__["save_seconds"] = 0.0',
)


@pytest.mark.slow
def test_killed_within_a_shard_it_goes_on(
    road: Run,
    random_space: Path,
    surroundings: dict[str, str],
    forks: ForkServer,
    tmp_path: Path,
) -> None:
    whole, often, source = tmp_path / "whole", tmp_path / "often", tmp_path / "a.jsonl"
    texts = ("The hen ran. The dog slept" + " on" * (n * n % 23) + "." for n in range(1500))
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["embed", str(source), "--from", "en", "--dtype", "float32", "-o"]
    assert road(*arguments, whole).code == 0
    env = surroundings | {"LCM_SPACE": str(random_space)}
    process = forks.start(*arguments, often, code=OFTEN_SAVED, env=env)
    while process.poll() is None and not (often / ".saved-00001.parquet").exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not list(often.glob("part-*"))
    done = road(*arguments, often)
    assert done.code == 0
    assert "resuming after " in done.stderr
    manifests = [(folder / "manifest.json").read_text() for folder in (whole, often)]
    assert manifests[0] == manifests[1]
    assert sorted(p.name for p in often.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_fragility(road: Run, story: Path, german: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    lines = [{"text": "One dog. Two cats.", "target": "Pets."}, {"text": "It rains."}]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    done = road("embed", source, "-o", tmp_path / "data", "--fragility", "--from", "eng")
    assert done.code == 0, done.stderr
    table = pq.read_table(tmp_path / "data" / "part-00000.parquet")
    assert [len(scores) for scores in table["fragility"].to_pylist()] == [2, 1]
    assert [scores and len(scores) for scores in table["target_fragility"].to_pylist()] == [1, None]
    assert all(-1 <= each <= 0 for row in table["fragility"].to_pylist() for each in row)
    again = road("embed", source, "-o", tmp_path / "b.parquet", "--fragility", "--from", "eng")
    assert again.code == 0
    assert pq.read_table(tmp_path / "b.parquet")["fragility"] == table["fragility"]
    plain = road("embed", source, "-o", tmp_path / "c.parquet", "--from", "eng")
    assert plain.code == 0
    assert pq.read_table(tmp_path / "c.parquet")["fragility"].null_count == 2
    for name in ("x.jsonl", "x.safetensors"):
        refused = road("embed", source, "-o", tmp_path / name, "--fragility")
        assert refused.code == 2 and "needs a table format" in refused.stderr
