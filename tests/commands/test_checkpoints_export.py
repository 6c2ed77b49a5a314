"""lcm checkpoints export: a folder that transformers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_export_prints_the_folder(lcm: Run, random_space: Path, tmp_path: Path) -> None:
    folder = tmp_path / "port"
    done = lcm("checkpoints", "export", random_space, "--format", "hf", "-o", folder)
    assert (done.code, done.stdout) == (0, f"{folder}\n")
    assert "random in the M2M-100 layout" in done.stderr
    assert json.loads((folder / "config.json").read_text())["model_type"] == "m2m_100"


def test_json_lists_the_files(lcm: Run, random_space: Path, tmp_path: Path) -> None:
    folder = tmp_path / "port"
    done = lcm("checkpoints", "export", random_space, "-o", folder, "--json")
    found = json.loads(done.stdout)
    assert (found["space"], found["format"], found["path"]) == ("random", "hf", str(folder))
    assert found["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}


def test_existing_folder_needs_force(lcm: Run, random_space: Path, tmp_path: Path) -> None:
    command = ("checkpoints", "export", random_space, "-o", tmp_path / "port")
    assert lcm(*command).code == 0
    again = lcm(*command)
    assert again.code == 2 and "already holds a checkpoint" in again.stderr
    assert lcm(*command, "--force").code == 0


def test_a_model_is_refused(lcm: Run, tmp_path: Path) -> None:
    done = lcm("checkpoints", "export", "tiny-base", "-o", tmp_path / "port")
    assert done.code == 2 and "tiny-base is a model, not a space" in done.stderr


def test_an_exported_folder_is_not_a_space(lcm: Run, random_space: Path, tmp_path: Path) -> None:
    """The error names the way back."""
    lcm("checkpoints", "export", random_space, "-o", tmp_path / "port")
    done = lcm("checkpoints", "export", tmp_path / "port", "-o", tmp_path / "again")
    assert done.code != 0 and "M2M-100 layout" in done.stderr
