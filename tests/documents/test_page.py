"""The snippets in docs/formats.md do what the page says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.hub.layouts import SPACE_FILES as FILES
from lcm_cli.transfer.convert import convert

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_space):
    """Return a folder with the files that the page mentions."""
    folder = tmp_path_factory.mktemp("page")
    convert(str(random_space), folder / "space", "int8")
    (folder / "space" / FILES["encoder"]).rename(folder / FILES["encoder"])
    shutil.rmtree(folder / "space")
    document = Document("story.txt", "eng_Latn", sentences=["One.", "Two."])
    document.concepts = np.ones((2, 4), np.float32)
    for name in ("story.jsonl", "story.parquet", "story.arrow", "story.safetensors", "corpus"):
        with open_writer(str(folder / name), SpaceInfo("tiny", "f", 4)) as writer:
            writer.write(document)
    return folder


def test_every_format_has_a_snippet():
    assert len(SNIPPETS) == PAGE.count("```python") == 7


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_snippet(folder, title, code):
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    expected = {
        "JSON Lines": "story.txt One. (2, 4)\n",
        "Parquet": "b'tiny'\nstory.txt One. (2, 4)\n",
        "Data sets": "1 documents\n",
        "Arrow IPC stream": "story.txt 2 concepts\n",
        "safetensors": "(2, 4) One.\n",
        "Weights": "torch.int8 (64, 32)\n",
        "From Python, with lcm": "tiny story.txt One. (2, 4)\n" * 2,
    }
    assert shown == expected[title]
