"""examples/make_speech.py: its choice of sentences and, where espeak-ng is installed, its files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lcm_cli.training.data.utterances import read_audio

SCRIPT = Path(__file__).parent.parent / "examples" / "make_speech.py"
TEXTS = ["The dog ran.", "The dog sat.", "A dog sat.", "The cat ran.", "The dog ran to me."]


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    text = tmp_path / "text.jsonl"
    lines = [{"eng_Latn": line, "fra_Latn": "."} for line in [*TEXTS, TEXTS[0], "No 5.", "It is 5"]]
    text.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"fra_Latn": "Oui."}]))
    command = [sys.executable, SCRIPT, text, "-o", tmp_path / "out", "--dev", "1", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
def test_it_speaks_each_sentence_and_holds_some_out(tmp_path):
    """The words "a" and "cat" are among the rarest, and the last sentence is too long."""
    done = run(tmp_path, "--words", "3", "--known", "4")
    assert done.returncode == 0, done.stderr
    sets = {}
    for name in ("train", "dev", "dev-voices"):
        lines = (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()
        sets[name] = [json.loads(line) for line in lines]
    told = {name: {line["text"] for line in lines} for name, lines in sets.items()}
    assert told["dev"] == told["dev-voices"] and not told["dev"] & told["train"]
    assert told["dev"] | told["train"] == {"The dog ran.", "The dog sat."}
    voices = {name: {line["voice"] for line in lines} for name, lines in sets.items()}
    assert not voices["dev-voices"] & voices["train"]
    for line in sets["train"]:
        wave = read_audio(tmp_path / "out" / line["audio"])
        assert 0.4 < len(wave) / 16_000 < 2 and abs(wave).max() > 0.1


@pytest.mark.slow
def test_too_few_sentences_are_an_error(tmp_path):
    done = run(tmp_path, "--words", "2")
    assert done.returncode == 1 and "only 0 sentences fit" in done.stderr
