"""examples/back_translate.py: text of one language as training pairs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lcm_cli.training.data.parallel_text import human, read_translations

SCRIPT = Path(__file__).parent.parent / "examples" / "back_translate.py"


def run(text: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(text), "--device", "cpu", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_sentences_without_a_translation_get_one(tmp_path: Path) -> None:
    lines = [
        {"eng_Latn": "The cat sleeps."},
        {"nld_Latn": ["De kat slaapt.", "Het regent."]},
        {"eng_Latn": "Good day.", "fra_Latn": "Bonjour."},
    ]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = run(text, "--least", "0")
    assert done.returncode == 0, done.stderr
    assert "3 translations of 3 sentences" in done.stderr
    (tmp_path / "back.jsonl").write_text(done.stdout, encoding="utf-8")
    found = list(read_translations(tmp_path / "back.jsonl"))
    texts = {text for line in found for sentences in human(line).values() for text in sentences}
    assert texts == {"De kat slaapt.", "Het regent.", "The cat sleeps."}
    for line in found:
        [(code, _)] = human(line).items()
        [machine] = set(line) - {code}
        assert machine == "machine:eng_Latn" if code == "nld_Latn" else machine != f"machine:{code}"
    assert run(text, "--least", "1.1").stdout == ""


@pytest.mark.slow
def test_a_language_that_the_space_does_not_know_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"swh_Latn": "Habari."}\n', encoding="utf-8")
    done = run(tmp_path / "text.jsonl")
    assert done.returncode == 1 and "swh_Latn" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
