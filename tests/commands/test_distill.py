"""lcm distill: student, twin and report; captured predictions; errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.models.checkpoint import build, load_model, save
from lcm_cli.models.config import SpaceRef, preset
from lcm_cli.space import load_space

RECIPE = """
kind = "model"
name = "student"
[data]
train = ["{folder}/data.parquet"]
validation = ["{folder}/data.parquet"]
batch_concepts = 60
wrap = 16
packing = true
[model]
architecture = "{architecture}"
size = "nano"
model_dim = 32
[train]
steps = 6
warmup = 2
save_every = 3
eval_every = 6
eval_documents = 3
[distill]
teacher = "{folder}/{architecture}"
"""
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, untrained teachers, and a recipe for each."""
    folder, tiny = tmp_path_factory.mktemp("distill"), load_space("tiny", device="cpu")
    rng = np.random.default_rng(0)
    info = SpaceInfo("tiny", tiny.fingerprint, tiny.dim)
    with open_writer(str(folder / "data.parquet"), info) as writer:
        for number in range(20):
            vectors = rng.standard_normal((int(rng.integers(3, 9)), tiny.dim)).astype(np.float16)
            words = [f"{number}.{i}" for i in range(len(vectors))]
            writer.write(Document(str(number), sentences=words, concepts=vectors))
    for kind in ("base", "two_tower"):
        torch.manual_seed(0)
        space = SpaceRef("tiny", tiny.fingerprint)
        save(build(preset(kind, "nano", concept_dim=tiny.dim, space=space)), folder / kind)
        recipe = RECIPE.format(folder=folder, architecture=kind)
        (folder / f"{kind}.toml").write_text(recipe)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "two_tower"])
def test_student_and_twin_are_trained_and_compared(
    lcm: Run, made: Path, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    done = lcm("distill", made / f"{kind}.toml", "-o", run, "--json", "--device", "cpu")
    assert done.code == 0, done.stderr
    *records, last = map(json.loads, done.stdout.splitlines())
    assert [record["model"] for record in records] == ["student", "alone"]
    assert [record["step"] for record in records] == [6, 6]
    report = last["report"]
    assert list(report) == ["teacher", "student", "alone"]
    assert report == json.loads((run / "report.json").read_text())
    assert report["student"]["parameters"] < report["teacher"]["parameters"]
    for folder in (run, run / "alone"):
        model = load_model(folder / "model", device="cpu")
        assert model.config.model_dim == 32
        assert torch.equal(model.normalizer.scale, torch.ones(384))  # the teacher's
    again = lcm("distill", made / f"{kind}.toml", "-o", run, "--device", "cpu")
    assert again.code == 2 and "--resume" in again.stderr


@pytest.mark.slow
def test_a_stopped_run_goes_on(lcm: Run, made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("distill", made / "base.toml", "-o", run, "--device", "cpu")
    stopped = lcm(*arguments, "--max-minutes", "0")
    assert stopped.code == 0 and "stopped at step 0" in stopped.stderr and not stopped.stdout
    done = lcm(*arguments, "--resume")
    assert done.code == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    losses = ["own", "prediction"]
    assert header.split() == ["parameters", "l2", "par", "ca", "to_teacher", *losses]
    assert [row.split()[0] for row in rows] == ["teacher", "student", "alone"]


@pytest.mark.slow
def test_learning_from_captured_predictions(lcm: Run, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "teacher"
    named = (
        "--device",
        "cpu",
        "--set",
        f"distill.capture={folder}",
        "--set",
        "train.sample_every=0",
    )
    arguments = ("distill", made / "two_tower.toml", *named)
    missing = lcm(*arguments, "-o", tmp_path / "run")
    assert missing.code == 3 and "--capture" in missing.stderr
    none = lcm(*arguments, "--capture", "--json", "--shard", "1/2")
    assert none.code == 0, none.stderr
    assert json.loads(none.stdout) == {
        "path": str(folder), "documents": 0, "shards": 0, "missing": 1,
    }  # fmt: skip
    assert "0 of 1 shard" in none.stderr
    missing = lcm(*arguments, "-o", tmp_path / "run")
    assert missing.code == 5 and "lacks 1 of the 1 shard" in missing.stderr
    captured = lcm(*arguments, "--capture", RANK="0", WORLD_SIZE="2")
    assert captured.code == 0, captured.stderr
    assert captured.stdout == f"{folder}\n"
    assert "predictions for 20 documents" in captured.stderr
    assert "share 0 of 2, from RANK/WORLD_SIZE" in captured.stderr
    done = lcm(*arguments, "-o", tmp_path / "run", "--resume", "--set", "distill.compare=false")
    assert done.code == 2  # nothing to resume
    done = lcm(*arguments, "-o", tmp_path / "other", "--set", "distill.compare=false", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["report"]
    assert list(report) == ["teacher", "student"]
    changed = lcm(*arguments, "-o", tmp_path / "third", "--set", "data.wrap=9")
    assert changed.code == 5 and "a different data set" in changed.stderr
    assert lcm(*arguments, "--shard", "0/2").code == 2
    unnamed = lcm("distill", made / "base.toml", "--capture")
    assert unnamed.code == 2 and "distill.capture" in unnamed.stderr


def test_recipes_for_the_other_command(lcm: Run, made: Path, tmp_path: Path) -> None:
    trained = lcm("train", made / "base.toml", "-o", tmp_path / "run")
    assert trained.code == 2 and "lcm distill" in trained.stderr
    recipe = tmp_path / "plain.toml"
    recipe.write_text((made / "base.toml").read_text().split("[distill]")[0])
    distilled = lcm("distill", recipe, "-o", tmp_path / "run")
    assert distilled.code == 2 and "[distill]" in distilled.stderr
    recipe.write_text('kind = "normalizer"\nname = "n"\n[data]\ntrain = ["x"]\n')
    assert lcm("distill", recipe, "-o", tmp_path / "run").code == 2
    assert not (tmp_path / "run").exists()


def test_a_missing_teacher(lcm: Run, made: Path, tmp_path: Path) -> None:
    change = f"distill.teacher={tmp_path / 'nobody'}"
    done = lcm("distill", made / "base.toml", "-o", tmp_path / "run", "--set", change)
    assert done.code == 3 and "nobody" in done.stderr and not (tmp_path / "run").exists()
    done = lcm("distill", made / "base.toml", "--set", "distill.teacher=runs/nobody")
    assert done.code == 3 and "train it first: lcm train RECIPE.toml -o runs/nobody" in done.stderr
