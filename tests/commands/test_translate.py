"""lcm translate."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcm_cli.commands._translations import DoubtReport
from lcm_cli.documents import Document
from lcm_cli.space import load_space
from lcm_cli.writing.translate import Rendering, Translation

Run = Callable[..., Any]

SOUND = "The old man had a dog."
DOUBTFUL = "Zzyx qwrtp vlkmn ptrsk gghd wqxz brrt."


def test_prints_just_the_text(lcm: Run) -> None:
    arguments = ("translate", "-", "--to", "fr", "--from", "en", "-q")
    done = lcm(*arguments, input=SOUND.encode())
    space = load_space("tiny", device="cpu")
    concepts = space.encode([SOUND], "eng_Latn").concepts
    text = space.decode(concepts, ["fra_Latn"])["fra_Latn"][0][0].text
    assert (done.code, done.stdout, done.stderr) == (0, f"{text}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["translate", "summarize"])
def test_the_bundled_space_in_int8(lcm: Run, tmp_path: Path, story: Path, command: str) -> None:
    """End to end, the text is that of a space with the same numbers in float32."""
    found = []
    for source, store in (("tiny", "int8"), (tmp_path / "int8", "float32")):
        made = lcm("checkpoints", "convert", source, "-o", tmp_path / store, "--store", store)
        assert made.code == 0, made.stderr
        done = lcm(command, story, "--to", "fr", "--space", tmp_path / store, "--json")
        assert done.code == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert found[0]["fingerprint"] == load_space("tiny").fingerprint  # the bundled weights are int8


def test_paragraphs_are_kept(road: Run) -> None:
    text = "The hen ran. It was late.\n\nThe eagle\nflew.\n"
    done = road("translate", "--to", "de", "--from", "en", input=text.encode())
    assert len(done.stdout.strip().split("\n\n")) == 2
    record = json.loads(road("translate", "--to", "de", "--json", input=text.encode()).stdout)
    assert record["translations"]["deu_Latn"] == done.stdout.removesuffix("\n")
    assert [s["text"] for s in record["sentences"]] == [
        "The hen ran.",
        "It was late.",
        "The eagle flew.",
    ]


def test_one_per_line_gives_as_many_lines(road: Run) -> None:
    text = "The hen ran. It was late.\nThe eagle\n\nflew.\n"
    arguments = ("translate", "--to", "de", "--from", "en", "--one-per-line")
    done = road(*arguments, input=text.encode())
    lines = done.stdout.split("\n")
    assert len(lines) == len(text.split("\n"))
    assert [bool(line) for line in lines] == [bool(line) for line in text.split("\n")]


def test_several_languages_and_documents(road: Run, story: Path, german: Path) -> None:
    done = road("translate", story, german, "--to", "nl", "--to", "spa", "--to", "nld")
    assert done.code == 0
    lines = done.stdout.split("\n")
    marks = [line for line in lines if line.endswith((":", "<=="))]
    labels = ["Dutch (nld_Latn):", "Spanish (spa_Latn):"]
    assert marks == [f"==> {story} <==", *labels, f"==> {german} <==", *labels]


def test_json(road: Run, story: Path, german: Path) -> None:
    done = road("translate", story, german, "--to", "all", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert list(first) == [
        *("id", "lang", "sentences", "translations", "truncated"),
        *("space", "fingerprint", "device", "precision", "seed", "version"),
    ]
    assert [first["lang"], second["lang"]] == ["eng_Latn", "deu_Latn"]
    assert len(first["translations"]) == 5
    assert [sentence["index"] for sentence in first["sentences"]] == list(range(1, 16))
    keys = ["index", "text", "texts", "similarity", "doubt", "lost"]
    assert list(second["sentences"][0]) == keys


def test_citations_and_the_count_of_doubtful_sentences(lcm: Run) -> None:
    text = f"{SOUND} {DOUBTFUL}\n\n1234\n".encode()
    plain = lcm("translate", "--to", "fr", "--from", "en", input=text)
    count = "1 of 3 sentences is doubtful (below 0.74 or refused); --cite shows them"
    assert plain.stderr.splitlines()[-1] == count
    assert plain.stdout.endswith("\n\n1234\n")
    done = lcm("translate", "--to", "fr", "--from", "en", "--cite", "--n-best", "2", input=text)
    lines = done.stdout.splitlines()
    assert plain.stdout.startswith(lines[0])
    assert re.fullmatch(rf"    \[1\] 0\.\d\d  {re.escape(SOUND)}", lines[1])
    assert re.fullmatch(r"    or 0\.\d\d \(-\d+\.\d{3}\)  .+", lines[2])
    mark = "    doubtful, its meaning may differ from the source: [2] 0."
    assert lines[4].startswith(mark) and lines[4].endswith(DOUBTFUL)
    assert lines[-2:] == ["1234", "    [3] 1.00  1234"]


def test_json_has_similarity_doubt_losses_and_candidates(lcm: Run) -> None:
    text = f"{SOUND} {DOUBTFUL} Ask 1234 or http://example.com/a.".encode()
    arguments = ("translate", "--to", "fr", "--from", "en", "--json", "--n-best", "3")
    record = json.loads(lcm(*arguments, input=text).stdout)
    first, second, third = record["sentences"]
    assert (first["doubt"], second["doubt"]) == ({"fra_Latn": None}, {"fra_Latn": "far"})
    assert first["similarity"]["fra_Latn"] > 0.74 > second["similarity"]["fra_Latn"]
    assert first["lost"] == {"fra_Latn": []}
    candidates = first["candidates"]["fra_Latn"]
    assert len(candidates) == 3 and list(candidates[0]) == ["text", "score", "similarity"]
    assert candidates[0]["text"] == first["texts"]["fra_Latn"]
    assert "http://example.com/a" in third["texts"]["fra_Latn"]


def test_a_glossary_and_its_missed_terms(lcm: Run, tmp_path: Path) -> None:
    terms = tmp_path / "terms.tsv"
    terms.write_text("dog\tzzz\tfr\nman\thomme\n", encoding="utf-8")
    text = f"{SOUND} My dog sleeps.".encode()
    done = lcm("translate", "--to", "fr", "--from", "en", "--glossary", terms, "--cite", input=text)
    assert "glossary: 'dog' -> 'zzz' missed in 2 of 2 sentences" in done.stderr
    assert "homme" in done.stdout and "'man'" not in done.stderr
    assert done.stdout.count("    missing: dog") == 2
    terms.write_text("dog\n", encoding="utf-8")
    done = lcm("translate", "--to", "fr", "--glossary", terms, input=text)
    assert (done.code, done.stdout) == (5, "")
    assert "terms.tsv line 1 does not have 2 or 3 columns: 'dog'" in done.stderr


def test_document_language_goes_before_from(road: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Ja.", "lang": "nl"}\n{"text": "Yes."}\n{"text": "X", "lang": "zu"}')
    done = road("translate", path, "--to", "fr", "--from", "English", "--json")
    assert done.code == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["lang"] for record in records] == ["nld_Latn", "eng_Latn"]
    assert "line 3" in done.stderr and "has no Zulu" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no target language"),
        (["--to", "frx"], 3, "did you mean French (fra_Latn)"),
        (["--to", "fr", "-o", "nosuch/out.txt"], 3, "no such folder: nosuch"),
        (["--to", "fr", "--n-best", "2"], 2, "--n-best has no effect on plain text"),
        (["--to", "fr", "--glossary", "nosuch.tsv"], 3, "no such file: nosuch.tsv"),
    ],
)
def test_errors(road: Run, arguments: list[str], code: int, message: str) -> None:
    done = road("translate", "-", *arguments, input=b"The hen ran.")
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr


def test_large_counts_have_separators(capsys: pytest.CaptureFixture[str]) -> None:
    report = DoubtReport(0.74, None)
    renderings = [Rendering("a", 0.1, "far")] * 1200
    report.add(Translation(Document("a"), {"fra_Latn": renderings}))
    report.finish("see them")
    told = "1,200 of 1,200 sentences are doubtful (below 0.74 or refused); see them\n"
    assert capsys.readouterr().err == told
