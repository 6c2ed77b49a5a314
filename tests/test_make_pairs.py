"""examples/make_pairs.py: honest pairs of story and summary."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Made:
    """How a run of the script ended."""

    returncode: int
    stdout: str
    stderr: str


Make = Callable[..., Made]


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Make:
    """Run the script on stories in this process, where its imports are paid for once."""

    def run(*arguments: str, stories: str = json.dumps(STORY) + "\n") -> Made:
        path = tmp_path / "stories.jsonl"
        path.write_text(stories, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path), *arguments])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        return Made(code, *capsys.readouterr())

    return run


def test_salience_is_what_lcm_summarize_says(make: Make) -> None:
    done = make("--length", "3")
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
    make: Make, arguments: list[str], summary: list[str]
) -> None:
    row = json.loads(make(*arguments).stdout)
    assert (row["task"], row["sentences"], row["target"]) == ("summarize", SENTENCES, summary)
    row = json.loads(make(*arguments, "--task", "expand").stdout)
    assert (row["task"], row["sentences"], row["target"]) == ("expand", summary, SENTENCES)


def test_what_has_no_summary_is_left_out(make: Make) -> None:
    short = {"id": "a", "lang": "en", "sentences": ["One.", "Two.", "Three."]}
    empty = {"id": "b", "lang": "en", "title": "No story", "sentences": [" "]}
    stories = "".join(json.dumps(story) + "\n" for story in (short, empty))
    for target in ("lead", "title", "salience"):
        done = make("--target", target, "--length", "2", stories=stories)
        assert (done.stdout, done.stderr) == ("", "0 pairs from 2 stories\n")


def test_text_is_split_and_long_stories_are_cut(make: Make) -> None:
    story = {"id": "t", "lang": "en", "text": " ".join(SENTENCES)}
    done = make("--target", "lead", "--longest", "6", stories=json.dumps(story))
    row = json.loads(done.stdout)
    assert (row["sentences"], row["target"]) == (SENTENCES[:6], SENTENCES[:3])


@pytest.mark.parametrize("line", ['{"id": "a"}', "[1]", "{", '{"lang": "en", "sentences": [1]}'])
def test_a_line_that_is_no_story_is_named(make: Make, line: str) -> None:
    stories = json.dumps(STORY) + "\n" + line
    done = make("--target", "lead", stories=stories)
    assert done.returncode == 1
    assert "stories.jsonl line 2 is not a story" in done.stderr
    assert "Traceback" not in done.stderr
