"""Runs in separate processes that are killed or run out of disk space."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lcm_cli.models.checkpoint import load_model
from lcm_cli.training.states import read_state, states


def tensors(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [t for value in state.values() for t in tensors(value)]
    return [t for value in state for t in tensors(value)] if isinstance(state, list) else [state]


def same(left: Any, right: Any) -> bool:
    pairs = zip(tensors(left), tensors(right), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def log_without_times(folder: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    timed = ("second", "minutes")
    return [{k: v for k, v in r.items() if not any(word in k for word in timed)} for r in records]


@pytest.mark.parametrize("architecture", ["base", "two_tower"])
@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_the_same(run, write_recipe, tmp_path, architecture):
    recipe, errors = write_recipe(architecture), tmp_path / "errors"
    often = ("--set", "train.save_every=4", "--set", "train.eval_every=12")
    common = ("train", recipe, "--device", "cpu", "--set", "train.steps=30", *often, "-o")
    begun_at = time.monotonic()
    assert run(*common, tmp_path / "whole", errors=errors) == 0, errors.read_text()
    took = time.monotonic() - begun_at
    chance, killed = random.Random(architecture), 0
    for _ in range(6):
        begun = ["--resume"] if states(tmp_path / "run") else []
        # Kills also hit the preparation, the first step, an evaluation and a save.
        seconds = chance.uniform(0.1, 0.9) * took
        code = run(*common, tmp_path / "run", *begun, errors=errors, seconds=seconds)
        killed += code == -signal.SIGKILL
        if code == 0 and not killed:  # faster than the first run: start over, with an earlier kill
            shutil.rmtree(tmp_path / "run")
            took /= 2
        elif code == 0:
            break
    begun = ["--resume"] if states(tmp_path / "run") else []
    code = run(*common, tmp_path / "run", *begun, errors=errors)
    assert code == 0 and killed, errors.read_text()
    assert same(
        read_state(tmp_path / "whole")[0]["trainer"], read_state(tmp_path / "run")[0]["trainer"]
    )
    whole, killed_one = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")
    )
    assert whole == killed_one
    assert log_without_times(tmp_path / "whole") == log_without_times(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.part*"))  # unfinished files are removed


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_the_last_state(run, write_recipe, tmp_path):
    recipe, errors = write_recipe("base"), tmp_path / "errors"
    common = ("train", recipe, "--device", "cpu", "-o", tmp_path / "run")
    assert run(*common, "--set", "train.steps=10", errors=errors) == 0
    before = read_state(tmp_path / "run")[0]
    limit = states(tmp_path / "run")[-1].stat().st_size // 2
    assert run(*common, "--resume", errors=errors, limit=limit) == 1
    message = errors.read_text()
    assert "state-000000014.pt" in message and "--resume" in message and "Traceback" not in message
    assert same(before, read_state(tmp_path / "run")[0])
    assert load_model(tmp_path / "run" / "model")
    assert run(*common, "--resume", "--set", "train.steps=20", errors=errors) == 0


def test_a_signal_before_the_first_step_ends_the_run(lcm, write_recipe, tmp_path, monkeypatch):
    from lcm_cli.training import prepare

    def interrupted(*arguments, prepare_run=prepare.prepare_run):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare_run(*arguments)

    monkeypatch.setattr(prepare, "prepare_run", interrupted)
    done = lcm("train", write_recipe("base"), "--device", "cpu", "-o", tmp_path / "run")
    assert (done.code, done.stderr) == (143, "")
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not states(tmp_path / "run")


def test_a_second_signal_stops_at_once(monkeypatch):
    from types import SimpleNamespace

    from lcm_cli import app
    from lcm_cli.commands._training import stopping_on_signal

    monkeypatch.setattr(app, "REPEATED", 0.0)
    run = SimpleNamespace(stop=False)
    with pytest.raises(app.Stopped) as caught, stopping_on_signal(run):
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_a_signal_finishes_the_step_and_saves(run, write_recipe, tmp_path):
    recipe, errors = write_recipe("base"), tmp_path / "errors"
    common = ("train", recipe, "--device", "cpu", "-o", tmp_path / "run")
    forever = ("--set", "train.steps=1000000", "--set", "train.save_every=1000000")
    forever += ("--set", "train.eval_every=1000000")
    log = tmp_path / "run" / "metrics.jsonl"  # it exists once steps are done
    code = run(*common, *forever, errors=errors, seconds=0.2, how="SIGTERM", after=log)
    assert code == 0, errors.read_text()
    assert "continue with: lcm train" in errors.read_text()
    step = read_state(tmp_path / "run")[0]["trainer"]["step"]
    assert step > 0 and load_model(tmp_path / "run" / "model")
    again = ("--set", f"train.steps={step + 3}", "--resume")
    assert run(*common, *again, errors=errors) == 0
    assert read_state(tmp_path / "run")[0]["trainer"]["step"] == step + 3
