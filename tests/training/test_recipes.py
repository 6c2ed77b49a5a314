"""The recipes in examples/ are valid, and describe the paper's models."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcm_cli.app import main
from lcm_cli.errors import IntegrityError
from lcm_cli.models.checkpoint import build, save
from lcm_cli.models.config import SpaceRef, preset
from lcm_cli.space import load_space
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.recipes.model import ModelRecipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))
CARDS = [
    path
    for path in sorted((ROOT / "checkpoints").glob("*.toml"))
    if "kind" in tomllib.loads(path.read_text()).get("recipe", {})
]


@pytest.mark.parametrize("path", [*RECIPES, *CARDS], ids=lambda path: path.name)
def test_a_recipe_describes_something_that_can_be_built(path):
    recipe = load_recipe(path)
    if not isinstance(recipe, ModelRecipe):
        return
    few_steps = recipe.distill is not None and recipe.distill.steps  # starts as the teacher
    if not recipe.start and not few_steps:
        with torch.device("meta"):
            model = build(recipe.config({"concept_dim": 1024}))
        size = sum(p.numel() for p in model.parameters()) / 1e9
        wanted = {"1.6B": (1.5, 1.8), "7B": (6.5, 7.2), "5M": (0.003, 0.02)}
        low, high = wanted[str(recipe.model["size"])]
        assert low < size < high


def test_there_are_recipes_and_cards():
    assert len(RECIPES) >= 8 and CARDS


@pytest.mark.parametrize("change", ["train.ema=1.0", "train.decay=1.5", "train.decay=-0.1"])
def test_shares_are_shares(change):
    with pytest.raises(IntegrityError, match=change.partition("=")[0]):
        load_recipe(ROOT / "examples" / "recipes" / "small.toml", [change])


def without_teacher(path):
    data = tomllib.loads(path.read_text())
    return data["kind"] == "model" and "distill" not in data


@pytest.mark.parametrize("path", [*filter(without_teacher, RECIPES)], ids=lambda path: path.name)
def test_a_dry_run_needs_neither_space_nor_data(path, lcm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    done = lcm("train", path, "--dry-run", "--json", "--offline")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["steps"], report["unit"]) == (recipe.train.steps, "concepts")
    assert report["per_step"] == recipe.data.batch_concepts
    measured = ("memory_bytes", "seconds_per_step", "minutes", "epochs")
    assert all(report[name] is None for name in measured)
    unknown = "\n".join(report["not_known"])
    assert ("run: lcm pull sonar" in unknown) == (recipe.space == "sonar")
    assert "lcm embed TEXT -o" in unknown
    arithmetic = ("parameters", "trained", "state_bytes", "disk_bytes")
    if recipe.start:
        assert f"there is no run in {recipe.start}; train it first: lcm train" in unknown
        assert all(report[name] is None for name in arithmetic)
        return
    with torch.device("meta"):
        model = build(recipe.config({"concept_dim": 1024 if recipe.space == "sonar" else 384}))
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    saved = 4 * (report["parameters"] + (3 if recipe.train.ema else 2) * report["trained"])
    assert report["state_bytes"] == saved + 4 * report["trained"]
    assert report["disk_bytes"] > (recipe.train.keep + 1) * saved


def test_what_a_dry_run_says_without_space_and_data(lcm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "examples" / "recipes" / "base-1.6B.toml"
    done = lcm("train", path, "--dry-run")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["parameters", "state", "disk", "steps", "a"]
    warnings = done.stderr.splitlines()
    assert len(warnings) == 2 and all(
        "not known: time, peak memory, epochs: " in w for w in warnings
    )
    assert (
        "sonar is not on this machine" in warnings[0] and "no such file: fineweb-edu" in warnings[1]
    )
    real = lcm("train", path)
    assert (real.code, real.stdout) == (3, "") and "run: lcm pull sonar" in real.stderr


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("space=sonarr", 3),
        ("start=nonesuch", 3),
        ("space=sonar-llm-100m", 2),
        ("model.architecture=bass", 2),
        ("model.transformer.layer=2", 5),
        ("model.concept_dim=3", 5),
        ("quantizer=runs/quantizer", 5),
        ("data.filter=1 +", 5),
        ('train.freeze=["nothing.*"]', 5),
        ('data.train=[{path="pairs/", task="sing"}]', 5),
    ],
)
def test_wrong_recipes_fail_without_space_and_data(lcm, tmp_path, monkeypatch, change, code):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "examples" / "recipes" / "base-1.6B.toml"
    done = lcm("train", path, "--dry-run", "--set", change)
    assert (done.code, done.stdout) == (code, ""), done.stderr


@pytest.mark.parametrize("started", [False, True])
def test_a_dry_run_with_data_agrees_with_one_without(
    lcm, write_recipe, random_space, tmp_path, started
):
    """The calculated numbers are those of the run's own model; the others are measured."""
    common = ("train", write_recipe("two_tower"), "--dry-run", "--json")
    if started:
        space = load_space(str(random_space), device="cpu")
        reference = SpaceRef(space.name, space.fingerprint)
        config = preset("two_tower", "nano", concept_dim=space.dim, space=reference)
        save(build(replace(config, model_dim=48)), tmp_path / "start")
        common += ("--set", f"start={tmp_path / 'start'}")
    known = json.loads(lcm(*common).stdout)
    assert known["not_known"] == [] and known["seconds_per_step"] > 0 and known["epochs"] > 0
    data = f'data.train=["{tmp_path / "nowhere"}"]'
    reckoned = json.loads(lcm(*common, "--set", data).stdout)
    for name in ("parameters", "trained", "state_bytes", "disk_bytes", "steps", "unit"):
        assert known[name] == reckoned[name]
    assert set(known) == set(reckoned)


def test_a_dry_run_of_what_does_not_fit_into_memory(lcm, write_recipe, monkeypatch):
    monkeypatch.setattr("lcm_cli.training.dry_run.ROOM", 0.0)
    done = lcm("train", write_recipe("base"), "--dry-run")
    assert done.code == 0 and "parameters" in done.stdout and "time" not in done.stdout
    assert "the state does not fit into the free memory" in done.stderr


@pytest.mark.parametrize("kind", ["quantizer", "normalizer"])
def test_a_dry_run_of_what_is_fitted_is_refused(kind, tmp_path, capsys):
    recipe = ROOT / "examples" / "recipes" / f"{kind}.toml"
    assert main(["train", str(recipe), "-o", str(tmp_path / "run"), "--dry-run"]) == 2
    assert f"does not work for a {kind}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["sonar.toml", "sonar-llm-100m.toml"])
def test_cards_of_what_others_trained_are_no_recipes(name):
    with pytest.raises(IntegrityError, match="is a card without a recipe"):
        load_recipe(ROOT / "checkpoints" / name)


@pytest.mark.parametrize(
    "change",
    [
        "train.learning_rate=nan",
        "train.learning_rate=inf",
        "train.clip=nan",
        "train.initial_rate=-1.0",
        "train.eps=-1e-5",
        "train.betas=[0.9, 1.5]",
        "train.seed=-1",
        "name=../elsewhere",
        'name=""',
        "name=..",
    ],
)
def test_numbers_and_names_that_cannot_be(change):
    with pytest.raises(IntegrityError, match=change.partition("=")[0]):
        load_recipe(ROOT / "examples" / "recipes" / "small.toml", [change])


@pytest.mark.parametrize(
    "change",
    ["train.steps=0", "train.learning_rate=nan", "train.translate=2", "train.max_tokens=0"],
)
def test_numbers_of_spaces_that_cannot_be(change):
    with pytest.raises(IntegrityError, match=change.partition("=")[0]):
        load_recipe(ROOT / "checkpoints" / "tiny.toml", [change])
