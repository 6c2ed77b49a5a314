"""examples/make_pairs.py: honest pairs of story and summary."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lcm_cli.documents import Document
from lcm_cli.space import load_space
from lcm_cli.writing.summarize import summarize

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "make_pairs.py"
SENTENCES = [
    "Tom lives in a small house near the river.",
    "He has a dog and two cats.",
    "Every morning he walks along the river with his dog.",
    "One day the dog did not come home.",
    "Tom looked for him everywhere.",
    "He asked all his neighbours.",
    "Nobody had seen the dog.",
    "In the evening it began to rain.",
]
STORY = {"id": "dog", "lang": "en", "title": "The lost dog", "sentences": SENTENCES, "split": "dev"}


def make(folder: Path, *arguments: str, stories: str = "") -> Any:
    path = folder / "stories.jsonl"
    path.write_text(stories or json.dumps(STORY) + "\n", encoding="utf-8")
    call = [sys.executable, str(SCRIPT), str(path), *arguments]
    return subprocess.run(call, capture_output=True, text=True, encoding="utf-8")


def test_salience_is_what_lcm_summarize_says(tmp_path: Path) -> None:
    done = make(tmp_path, "--length", "3")
    (row,) = map(json.loads, done.stdout.splitlines())
    document = Document("dog", lang="eng_Latn", sentences=SENTENCES)
    summary = summarize(document, load_space("tiny", device="cpu"), length="3")
    assert row == {
        "id": "dog",
        "lang": "eng_Latn",
        "split": "dev",
        "task": "summarize",
        "sentences": SENTENCES,
        "target": [sentence.texts["eng_Latn"] for sentence in summary.sentences],
    }
    assert done.stderr == "1 pairs from 1 stories\n"


@pytest.mark.parametrize(
    ("arguments", "summary"),
    [
        (["--target", "lead", "--length", "2"], SENTENCES[:2]),
        (["--target", "lead", "--length", "20%"], SENTENCES[:2]),
        (["--target", "lead", "--length", "16w"], SENTENCES[:2]),
        (["--target", "title"], ["The lost dog"]),
    ],
)
def test_lead_and_title_in_both_directions(
    tmp_path: Path, arguments: list[str], summary: list[str]
) -> None:
    row = json.loads(make(tmp_path, *arguments).stdout)
    assert (row["task"], row["sentences"], row["target"]) == ("summarize", SENTENCES, summary)
    row = json.loads(make(tmp_path, *arguments, "--task", "expand").stdout)
    assert (row["task"], row["sentences"], row["target"]) == ("expand", summary, SENTENCES)


def test_what_has_no_summary_is_left_out(tmp_path: Path) -> None:
    short = {"id": "a", "lang": "en", "sentences": ["One.", "Two.", "Three."]}
    empty = {"id": "b", "lang": "en", "title": "No story", "sentences": [" "]}
    stories = "".join(json.dumps(story) + "\n" for story in (short, empty))
    for target in ("lead", "title", "salience"):
        done = make(tmp_path, "--target", target, "--length", "2", stories=stories)
        assert (done.stdout, done.stderr) == ("", "0 pairs from 2 stories\n")


def test_text_is_split_and_long_stories_are_cut(tmp_path: Path) -> None:
    story = {"id": "t", "lang": "en", "text": " ".join(SENTENCES)}
    done = make(tmp_path, "--target", "lead", "--longest", "6", stories=json.dumps(story))
    row = json.loads(done.stdout)
    assert (row["sentences"], row["target"]) == (SENTENCES[:6], SENTENCES[:3])


@pytest.mark.parametrize("line", ['{"id": "a"}', "[1]", "{", '{"lang": "en", "sentences": [1]}'])
def test_a_line_that_is_no_story_is_named(tmp_path: Path, line: str) -> None:
    stories = json.dumps(STORY) + "\n" + line
    done = make(tmp_path, "--target", "lead", stories=stories)
    assert done.returncode == 1
    assert "stories.jsonl line 2 is not a story" in done.stderr
    assert "Traceback" not in done.stderr
