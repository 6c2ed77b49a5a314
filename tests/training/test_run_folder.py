"""The folder of a run: its recipe, resuming with another one, locking, files of killed runs."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.run_folder import changes, hold, write_recipe
from lcm_cli.training.states import read_state

Run = Callable[..., Any]
FEW = ("--device", "cpu", "--set", "train.steps=3", "--set", "train.save_every=2")


def test_a_run_keeps_its_recipe_and_can_be_repeated_from_it(
    lcm: Run, write_recipe: Run, tmp_path: Path
) -> None:
    recipe = write_recipe("base")
    first, second = tmp_path / "first", tmp_path / "second"
    assert lcm("train", recipe, *FEW, "--set", "train.seed=7", "-o", first).code == 0
    kept = json.loads((first / "recipe.json").read_text())
    assert (kept["train"]["steps"], kept["train"]["seed"], kept["train"]["ema"]) == (3, 7, 0.9)
    done = lcm("train", first, "-o", second, "--device", "cpu")
    assert done.code == 0, done.stderr
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    assert (second / "recipe.json").read_text() == (first / "recipe.json").read_text()
    again = lcm("train", first, "--set", "train.steps=4", "--resume", "--device", "cpu")
    assert again.code == 0 and (first / "state-000000004.pt").is_file(), again.stderr


def test_the_command_to_go_on_with_has_the_changes(
    lcm: Run, write_recipe: Run, tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    changed = ("--set", "train.steps=50", "--set", 'train.freeze=["postnet.*"]')
    common = ("train", write_recipe("base"), "--device", "cpu", "-o", run)
    stopped = lcm(*common, *changed, "--max-minutes", "0")
    assert stopped.code == 0, stopped.stderr
    command = shlex.split(stopped.stderr.partition("continue with: ")[2])
    assert command[0] == "lcm"
    done = lcm(*command[1:], "--device", "cpu")
    assert done.code == 0, done.stderr
    assert "warning" not in done.stderr
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 50


def test_going_on_with_another_recipe_is_said(lcm: Run, write_recipe: Run, tmp_path: Path) -> None:
    common = ("train", write_recipe("base"), "-o", tmp_path / "run")
    assert lcm(*common, *FEW).code == 0
    done = lcm(*common, *FEW, "--set", "train.steps=4", "--set", "train.seed=1", "--resume")
    assert done.code == 0
    assert "train.steps was 3 and is 4; train.seed was 0 and is 1" in done.stderr
    other = lcm(*common, *FEW, "--set", "model.model_dim=32", "--resume")
    assert other.code == 5
    assert "model.model_dim was not set and is 32" in other.stderr
    kept = json.loads(
        (tmp_path / "run" / "recipe.json").read_text()
    )  # still the recipe of the states
    assert kept["train"]["steps"] == 4 and "model_dim" not in kept["model"]
    assert "wrong shapes" in other.stderr and len(other.stderr) < 2000


def test_two_runs_in_a_folder_are_refused(lcm: Run, write_recipe: Run, tmp_path: Path) -> None:
    with hold(tmp_path / "run"):
        refused = lcm("train", write_recipe("base"), "-o", tmp_path / "run", *FEW)
    assert refused.code == 1
    assert "another run is using" in refused.stderr
    with hold(tmp_path / "run"), pytest.raises(LcmError), hold(tmp_path / "run"):
        pass


def test_unfinished_files_are_removed_on_resuming(tmp_path: Path) -> None:
    halves = [
        tmp_path / ".state-000000002.pt.x1.part",
        tmp_path / "model" / ".model.safetensors.x1.part",
        tmp_path / "best" / "model" / ".model.safetensors.x1.part",
        tmp_path / ".state-000000002.part" / "rest.pt",
        tmp_path / "alone" / "best" / "model" / ".model.safetensors.x1.part",
    ]
    others = [tmp_path / "state-000000001.pt", tmp_path / "data" / ".data-00000.parquet.x1.part"]
    for path in (*halves, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with hold(tmp_path):
        assert not any(path.exists() for path in halves)
        assert all(path.exists() for path in others)


def test_paths_that_are_not_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    for name, wrong in (("a", "a"), ("a/run", "a"), ("b", "b"), ("b/run", "b")):
        with pytest.raises(UsageError, match=f"{wrong} is not a folder"), hold(tmp_path / name):
            pass


def test_every_kind_of_recipe_can_be_read_again(tmp_path: Path) -> None:
    recipes = Path(__file__).parent.parent.parent / "examples" / "recipes"
    for path in sorted(recipes.glob("*.toml")):
        recipe = load_recipe(path)
        write_recipe(tmp_path, recipe)
        assert load_recipe(tmp_path / "recipe.json") == recipe
        assert changes(tmp_path, recipe) == []


def test_a_damaged_recipe_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"kind": ')
    with pytest.raises(IntegrityError, match="not valid JSON"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text("[1]")
    recipes = Path(__file__).parent.parent.parent / "examples" / "recipes"
    assert changes(tmp_path, load_recipe(recipes / "sonar-llm.toml")) == []
    with pytest.raises(IntegrityError, match="not a recipe"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"(\xff", b"PK\x03\x04"])
def test_a_damaged_state(tmp_path: Path, content: bytes) -> None:
    for step in (2, 3):
        (tmp_path / f"state-{step:09}.pt").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"state-000000003\.pt is damaged: \w+ \w+") as caught:
        read_state(tmp_path)
    assert caught.value.hint == "remove it to resume from state-000000002.pt"


def test_a_state_without_a_key(lcm: Run, write_recipe: Run, tmp_path: Path) -> None:
    recipe, run = write_recipe("base"), tmp_path / "run"
    assert lcm("train", recipe, *FEW, "-o", run).code == 0
    torch.save({"seconds": 1.0}, run / "state-000000004.pt")
    done = lcm("train", recipe, *FEW, "-o", run, "--resume")
    assert done.code == 5 and f"cannot resume the run in {run}: its state lacks 'trainer'\n" in (
        done.stderr
    )
