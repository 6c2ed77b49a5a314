"""Runs that are killed or run out of disk, as processes of their own, on data from files.

The helper imports torch once and forks a process for each run of `lcm train`.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.models.checkpoint import load_model
from lcm_cli.space import load_space
from lcm_cli.training.states import read_state, states

HELPER = """
import json, os, resource, signal, sys, time
import torch
from lcm_cli.app import main
from lcm_cli.space import load_space
from lcm_cli.training import concept_data, fitting, loop, prepare

torch.set_num_threads(1)
load_space("tiny", device="cpu").encode(["So that all is imported."], "eng_Latn")
for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if not child:
        if call["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (call["limit"], call["limit"]))
        error = os.open(call["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(error, 1), os.dup2(error, 2)
        os._exit(main(call["arguments"]))
    if call["seconds"]:
        while call["await"] and not os.path.exists(call["await"]):
            time.sleep(0.05)
        time.sleep(call["seconds"])
        os.kill(child, getattr(signal, call["signal"]))
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
RECIPE = """
kind = "model"
name = "micro"
[data]
train = ["{data}"]
validation = ["{data}"]
batch_concepts = 60
[model]
architecture = "{architecture}"
size = "nano"
[train]
steps = 60
warmup = 4
save_every = 7
eval_every = 25
eval_documents = 2
ema = 0.9
"""


@pytest.fixture(scope="module")
def run():
    """Call `lcm` in a forked process; returns its exit code."""
    helper = subprocess.Popen(
        [sys.executable, "-c", HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def call(
        *arguments: Any,
        errors: Path,
        seconds: float = 0,
        limit: int = 0,
        how: str = "SIGKILL",
        after: Path | None = None,
    ) -> int:
        order = {
            "arguments": [str(argument) for argument in arguments],
            "errors": str(errors),
            "seconds": seconds,
            "limit": limit,
            "signal": how,
            "await": str(after or ""),
        }
        helper.stdin.write(json.dumps(order) + "\n")
        helper.stdin.flush()
        return int(helper.stdout.readline())

    yield call
    helper.communicate(timeout=60)


def write_recipe(folder: Path, architecture: str) -> Path:
    info = SpaceInfo("tiny", load_space("tiny", device="cpu").fingerprint, 256)
    rng = np.random.default_rng(0)
    with open_writer(str(folder / "data.parquet"), info) as writer:
        for number in range(60):
            vectors = rng.standard_normal((int(rng.integers(3, 9)), 256)).astype(np.float16)
            words = [f"{number}.{i}" for i in range(len(vectors))]
            writer.write(Document(str(number), sentences=words, concepts=vectors))
    path = folder / "micro.toml"
    path.write_text(RECIPE.format(data=folder / "data.parquet", architecture=architecture))
    return path


def tensors(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [t for value in state.values() for t in tensors(value)]
    return [t for value in state for t in tensors(value)] if isinstance(state, list) else [state]


def same(left: Any, right: Any) -> bool:
    pairs = zip(tensors(left), tensors(right), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("architecture", ["base", "two_tower"])
def test_killed_again_and_again_a_run_ends_the_same(run, tmp_path, architecture):
    recipe, errors = write_recipe(tmp_path, architecture), tmp_path / "errors"
    common = ("train", recipe, "--device", "cpu", "-o")
    assert run(*common, tmp_path / "whole", errors=errors) == 0, errors.read_text()
    chance, killed = random.Random(architecture), 0
    for _ in range(6):
        begun = ["--resume"] if states(tmp_path / "run") else []
        # Also within the preparations, the first step, an evaluation, a save.
        seconds = chance.uniform(0.2, 2.0)
        code = run(*common, tmp_path / "run", *begun, errors=errors, seconds=seconds)
        killed += code == -signal.SIGKILL
        if code == 0:
            break
    begun = ["--resume"] if states(tmp_path / "run") else []
    code = run(*common, tmp_path / "run", *begun, errors=errors)
    assert code == 0 and killed, errors.read_text()
    assert same(read_state(tmp_path / "whole")["trainer"], read_state(tmp_path / "run")["trainer"])
    whole, killed_one = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")
    )
    assert whole == killed_one
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "run")]
    steps = [[json.loads(line)["step"] for line in log.splitlines()] for log in logs]
    assert steps[0] == steps[1]
    assert not list((tmp_path / "run").glob("*.part*")) or killed  # left-overs do no harm


def test_a_full_disk_is_said_and_leaves_the_last_state(run, tmp_path):
    recipe, errors = write_recipe(tmp_path, "base"), tmp_path / "errors"
    common = ("train", recipe, "--device", "cpu", "-o", tmp_path / "run")
    assert run(*common, "--set", "train.steps=10", errors=errors) == 0
    before = read_state(tmp_path / "run")
    limit = states(tmp_path / "run")[-1].stat().st_size // 2
    assert run(*common, "--resume", errors=errors, limit=limit) == 1
    message = errors.read_text()
    assert "state-000000014.pt" in message and "--resume" in message and "Traceback" not in message
    assert same(before, read_state(tmp_path / "run"))
    assert load_model(tmp_path / "run" / "model")
    assert run(*common, "--resume", errors=errors) == 0


def test_a_signal_finishes_the_step_and_saves(run, tmp_path):
    recipe, errors = write_recipe(tmp_path, "base"), tmp_path / "errors"
    common = ("train", recipe, "--device", "cpu", "-o", tmp_path / "run")
    forever = ("--set", "train.steps=1000000", "--set", "train.save_every=1000000")
    forever += ("--set", "train.eval_every=1000000")
    log = tmp_path / "run" / "metrics.jsonl"  # it exists when steps are being done
    code = run(*common, *forever, errors=errors, seconds=0.2, how="SIGTERM", after=log)
    assert code == 0, errors.read_text()
    assert "go on with: lcm train" in errors.read_text()
    step = read_state(tmp_path / "run")["trainer"]["step"]
    assert step > 0 and load_model(tmp_path / "run" / "model")
    again = ("--set", f"train.steps={step + 3}", "--resume")
    assert run(*common, *again, errors=errors) == 0
    assert read_state(tmp_path / "run")["trainer"]["step"] == step + 3
