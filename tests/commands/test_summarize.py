"""lcm summarize."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
ROOT = Path(__file__).resolve().parent.parent.parent


def _sentences(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


def test_prints_nothing_but_the_summary(road: Run, story: Path) -> None:
    done = road("summarize", story)
    assert (done.code, done.stderr) == (0, "")
    summary = done.stdout.removesuffix("\n")
    assert "\n" not in summary
    record = json.loads(road("summarize", story, "--json").stdout)
    chosen = [sentence["text"] for sentence in record["sentences"]]
    assert len(chosen) == 3
    assert all(text in _sentences(story) for text in chosen)
    assert summary == " ".join(chosen)


def test_lengths(road: Run, story: Path) -> None:
    records = [
        json.loads(road("summarize", story, "--length", length, "--json").stdout)
        for length in ("1", "20%", "30w")
    ]
    assert [record["length"] for record in records] == ["1", "20%", "30w"]
    assert [len(record["sentences"]) for record in records[:2]] == [1, 3]
    assert len(records[2]["summaries"]["eng_Latn"].split()) <= 30


def test_several_languages_are_labelled_in_the_order_given(road: Run, story: Path) -> None:
    done = road("summarize", story, "--to", "fra", "--to", "German", "--to", "en", "--length", "1")
    assert done.code == 0
    labels = [line for line in done.stdout.split("\n") if line.endswith(":")]
    assert labels == ["French (fra_Latn):", "German (deu_Latn):", "English (eng_Latn):"]
    assert done.stdout.count("\n\n") == 2
    assert done.stdout.rstrip().split("\n")[-1] in _sentences(story)


def test_all_languages(road: Run, story: Path) -> None:
    done = road("summarize", story, "--to", "all", "--length", "1", "--json")
    record = json.loads(done.stdout)
    languages = ["eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "nld_Latn"]
    assert list(record["summaries"]) == languages
    assert list(record["sentences"][0]["similarity"]) == languages


def test_cite_names_the_source_of_each_sentence(road: Run, story: Path) -> None:
    done = road("summarize", story, "--to", "fr", "--cite", "--length", "2")
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines[1::2]:
        assert line.startswith("    [")
        number, similarity, text = line.split(maxsplit=2)
        assert int(number.strip("[]")) <= 15
        assert -1 <= float(similarity) <= 1
        assert text in _sentences(story)
    own = road("summarize", story, "--cite", "--length", "1").stdout.splitlines()
    assert own[0] in _sentences(story)
    assert own[1].endswith("word for word")


def test_json(road: Run, story: Path, random_space: Path) -> None:
    done = road("summarize", story, "--to", "fra", "--json", "--length", "2")
    record = json.loads(done.stdout)
    assert list(record) == [
        *("id", "lang", "method", "model", "fallback", "length", "total", "sentences"),
        *("summaries", "truncated"),
        *("space", "fingerprint", "device", "precision", "seed", "version"),
    ]
    assert (record["id"], record["lang"]) == ("lost_dog.txt", "eng_Latn")
    assert (record["method"], record["total"], record["truncated"]) == ("centroid", 15, [])
    assert (record["space"], record["device"], record["seed"]) == ("random", "cpu", None)
    assert (record["model"], record["fallback"]) == (None, None)
    assert [list(sentence) for sentence in record["sentences"]] == [
        ["index", "text", "place", "similarity", "texts", "others"]
    ] * 2
    texts = [sentence["texts"]["fra_Latn"] for sentence in record["sentences"]]
    assert record["summaries"]["fra_Latn"].split() == " ".join(texts).split()


def test_several_documents_have_headings(road: Run, story: Path, german: Path) -> None:
    done = road("summarize", story, german, "--length", "1")
    first, second = done.stdout.split("\n\n")
    assert first.startswith(f"==> {story} <==\n")
    assert second.startswith(f"==> {german} <==\n")
    assert second.split("\n")[1] in _sentences(german)


def test_rows_of_one_file_have_headings_too(road: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "x", "sentences": ["Yes."], "lang": "en"}\n' * 2)
    done = road("summarize", path)
    assert done.stdout == (
        f"==> {path} line 1 ('x') <==\nYes.\n\n==> {path} line 2 ('x') <==\nYes.\n"
    )


def test_goes_on_after_a_bad_document(road: Run, story: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Das Mädchen".encode("latin-1"))
    done = road("summarize", latin, "nosuch.txt", story, "--length", "1", "--json")
    assert done.code == 1
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [story.name]
    assert "not UTF-8 at byte" in done.stderr
    assert "no such file: nosuch.txt" in done.stderr
    assert done.stderr.count("error:") == 2


def test_standard_input(road: Run, story: Path) -> None:
    for arguments in (("-",), ()):
        done = road("summarize", *arguments, input=story.read_bytes())
        assert done.stdout == road("summarize", story).stdout


def test_output_file(road: Run, story: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    done = road("summarize", story, "-o", path)
    assert (done.code, done.stdout) == (0, "")
    assert path.read_text(encoding="utf-8") == road("summarize", story).stdout
    again = road("summarize", "nosuch.txt", "-o", path)
    assert again.code == 2
    assert "exists already" in again.stderr
    assert road("summarize", story, "--json", "--force", "-o", path).code == 0
    assert json.loads(path.read_text(encoding="utf-8"))["id"] == story.name
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.txt"]


def test_no_output_file_where_there_is_no_result(road: Run, tmp_path: Path) -> None:
    assert road("summarize", "nosuch.txt", "-o", tmp_path / "out.txt").code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "input", "code", "message"),
    [
        (["nosuch.txt"], b"", 3, "error: no such file: nosuch.txt"),
        (["nosuch.txt", "nosuch2.txt"], b"", 1, "error: no such file: nosuch2.txt"),
        ([], b"", 5, "empty"),
        ([], b" \n", 5, "no text"),
        ([], b"Yes.", 2, "--from"),
        (["--length", "many"], b"Yes.", 2, "'many' is not a length"),
        (["--to", "frx"], b"Yes.", 3, "did you mean French (fra_Latn)"),
        (["--to", "zul"], b"Yes.", 3, "space random has no Zulu (zul_Latn)"),
        (["--from", "zul"], b"Yes.", 3, "--space sonar has Zulu"),
        (["--space", "nosuch"], b"Yes.", 3, "there is no space called 'nosuch'"),
        (["--from", "en", "--device", "tpu"], b"Yes.", 2, "tpu"),
    ],
)
def test_errors(road: Run, arguments: list[str], input: bytes, code: int, message: str) -> None:
    done = road("summarize", *arguments, input=input)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["summarize", "nosuch.txt"],
        ["translate", "-", "--to", "frx"],
        ["generate", "nosuch.txt", "--model", "tiny-base"],
    ],
    ids=" ".join,
)
def test_cheap_errors_come_before_torch(arguments: list[str], random_space: Path) -> None:
    program = (
        "import sys; from lcm_cli.app import main; code = main();"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    call = [sys.executable, "-c", program, *arguments, "--space", str(random_space)]
    done = subprocess.run(call, input=b"Yes.", capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (3, b"False\n")


def test_the_bundled_space_is_named_where_none_was_chosen(lcm: Run, story: Path) -> None:
    done = lcm("summarize", story, "--length", "1", "--model", "extractive")
    assert done.code == 0
    assert done.stderr.count("\n") == 1
    assert "tiny" in done.stderr and "lcm pull sonar --set-default" in done.stderr
    assert lcm("summarize", story, "--length", "1", "-q").stderr == ""


def test_long_sentences_are_reported(road: Run, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("The hen " + ", and the hen".join([" ran"] * 40) + ".")
    done = road("summarize", path, "--from", "en")
    assert "sentences over 250 characters were cut into pieces" in done.stderr
    lines = tmp_path / "lines.txt"
    lines.write_text("hen " * 300)
    done = road("summarize", lines, "--from", "en", "--one-per-line", "--json")
    assert "sentence 1 has" in done.stderr
    assert json.loads(done.stdout)["truncated"][0]["limit"] == 128


def test_a_model_is_asked_and_named(lcm: Run, taught: Any) -> None:
    story = " ".join(taught.stories["cat"]).encode()
    call = ("summarize", "--from", "en", "--space", "tiny", "--model", taught.folder)
    done = lcm(*call, input=story)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith(taught.stories["cat"][0])
    record = json.loads(lcm(*call, "--json", "--seed", "7", input=story).stdout)
    assert (record["method"], record["model"]) == ("generated", str(taught.folder))
    assert (record["fallback"], record["length"], record["seed"]) == (None, None, 7)
    assert [sentence["index"] for sentence in record["sentences"]] == [1, 5]
    assert record["summaries"]["eng_Latn"] + "\n" == done.stdout


def test_cite_is_honest_about_what_is_far(lcm: Run, taught: Any) -> None:
    call = ("summarize", "--from", "en", "--space", "tiny", "--model", taught.folder, "--cite")
    lines = lcm(*call, input=" ".join(taught.stories["boat"]).encode()).stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("    ")] == ["[1]", "[5]"]
    assert not any("nothing is near" in line for line in lines)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        pytest.param("empty", "the model stopped at once", marks=pytest.mark.slow),
        pytest.param("repetition", "the model repeats itself", marks=pytest.mark.slow),
        ("unrelated", "the model's answer is not about the text"),
    ],
)
def test_a_bad_answer_is_replaced_or_with_strict_an_error(
    lcm: Run, taught: Any, tmp_path: Path, reason: str, words: str
) -> None:
    path = tmp_path / "bad.jsonl"
    rows = [taught.bad[reason], taught.stories["cat"]]
    objects = [{"id": str(n), "lang": "en", "sentences": row} for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    call = ("summarize", path, "--space", "tiny", "--model", taught.folder, "--json")
    done = lcm(*call)
    assert done.code == 0
    assert done.stderr.startswith(f"warning: {path} line 1 ('0'): {words}")
    bad, good = map(json.loads, done.stdout.splitlines())
    assert (bad["method"], bad["fallback"], good["fallback"]) == ("centroid", reason, None)
    extractive = lcm("summarize", path, "--space", "tiny", "--model", "extractive", "--json")
    assert bad["summaries"] == json.loads(extractive.stdout.splitlines()[0])["summaries"]
    strict = lcm(*call, "--strict")
    assert strict.code == 1
    assert strict.stderr.startswith(f"error: {path} line 1 ('0'): {words}")
    assert [json.loads(line)["id"] for line in strict.stdout.splitlines()] == ["1"]


def test_a_model_that_is_a_default_need_not_suit(lcm: Run, road: Run, taught: Any) -> None:
    text = b"The hen ran away. The dog ran after her. They came home in the evening."
    call = ("summarize", "--from", "en", "--length", "1", "--json")
    done = road(*call, input=text, LCM_MODEL=str(taught.folder))  # a model of another space
    assert (done.code, json.loads(done.stdout)["method"]) == (0, "centroid")
    done = road(*call, "--model", taught.folder, input=text)
    assert (done.code, done.stdout) == (5, "")
    done = road(*call, "--model", "nosuch", input=text)
    assert (done.code, "no model called 'nosuch'" in done.stderr) == (3, True)


@pytest.fixture
def copy(taught: Any, tmp_path: Path) -> Path:
    """A copy of lcm in which the card of `tiny` names a bundled model."""
    folder = tmp_path / "copy"
    for name in ("lcm_cli", "commands"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    for path in (ROOT / "checkpoints").glob("tiny.*"):
        shutil.copy(path, checkpoints)
    (checkpoints / "__init__.py").touch()
    card = (checkpoints / "tiny.toml").read_text(encoding="utf-8")
    lines = [line for line in card.splitlines() if not line.startswith("model = ")]
    (checkpoints / "tiny.toml").write_text("\n".join(['model = "taught"', *lines]), "utf-8")
    (checkpoints / "taught.toml").write_text(CARD, encoding="utf-8")
    for name, kind in (("config.json", "json"), ("model.safetensors", "safetensors")):
        shutil.copy(taught.folder / name, checkpoints / f"taught.{kind}")
    return folder


CARD = """
name = "taught"
kind = "model"
summary = "for tests"
licence = "MIT"
licence_note = ""
languages = 5
space = "tiny"
[files]
config = { name = "taught.json" }
model = { name = "taught.safetensors" }
"""


@pytest.mark.slow
def test_the_model_of_the_space_is_the_default(
    copy: Path, taught: Any, surroundings: dict[str, str]
) -> None:
    story = taught.stories["cat"]
    (copy / "story.txt").write_text(" ".join(story), encoding="utf-8")
    (copy / "title.txt").write_text(story[0], encoding="utf-8")
    calls = [
        ["summarize", "story.txt", "--from", "en", "--space", "tiny"],
        ["summarize", "story.txt", "--from", "en", "--json"],
        ["summarize", "story.txt", "--from", "en", "--json", "--model", "extractive"],
        ["expand", "title.txt", "--from", "en", "--json"],
    ]
    program = f"from lcm_cli.app import main\nfor call in {calls}: assert main(call) == 0"
    call = [sys.executable, "-c", program]
    done = subprocess.run(
        call, capture_output=True, cwd=copy, env=surroundings | {"PYTHONPATH": ""}
    )
    summary, *records = done.stdout.decode().splitlines()
    assert summary.startswith(story[0])
    first, *_ = done.stderr.decode().splitlines()
    assert first == "model: taught; to use none: --model extractive"
    found = [json.loads(record) for record in records]
    assert [(record["method"], record["model"]) for record in found] == [
        ("generated", "taught"),
        ("centroid", None),
        ("generated", "taught"),
    ]
    assert len(found[2]["sentences"]) == 6
