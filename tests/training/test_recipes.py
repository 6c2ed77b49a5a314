"""The recipes in examples/: they can be read, and describe the paper's models."""

import tomllib
from pathlib import Path

import pytest
import torch

from lcm_cli.app import main
from lcm_cli.errors import IntegrityError
from lcm_cli.models.checkpoint import build
from lcm_cli.training.recipe import ModelRecipe, load_recipe

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
    if isinstance(recipe, ModelRecipe) and not recipe.start:
        with torch.device("meta"):
            model = build(recipe.config({"concept_dim": 1024}))
        size = sum(p.numel() for p in model.parameters()) / 1e9
        wanted = {"1.6B": (1.5, 1.8), "7B": (6.5, 7.2), "5M": (0.003, 0.02)}
        low, high = wanted[str(recipe.model["size"])]
        assert low < size < high


def test_there_are_recipes_and_cards():
    assert len(RECIPES) >= 8 and CARDS


def test_what_fsdp_cannot_do(tmp_path):
    path = ROOT / "examples" / "recipes" / "base-1.6B.toml"
    with pytest.raises(IntegrityError, match="muon"):
        load_recipe(path, ['train.optimizer="muon"'])


@pytest.mark.parametrize("change", ["train.ema=1.0", "train.decay=1.5", "train.decay=-0.1"])
def test_shares_are_shares(change):
    with pytest.raises(IntegrityError, match=change.partition("=")[0]):
        load_recipe(ROOT / "examples" / "recipes" / "small.toml", [change])


@pytest.mark.parametrize("kind", ["quantizer", "normalizer"])
def test_a_dry_run_of_what_is_fitted_is_refused(kind, tmp_path, capsys):
    recipe = ROOT / "examples" / "recipes" / f"{kind}.toml"
    assert main(["train", str(recipe), "-o", str(tmp_path / "run"), "--dry-run"]) == 2
    assert f"not for a {kind}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["sonar.toml", "sonar-llm-100m.toml"])
def test_cards_of_what_others_trained_are_no_recipes(name):
    with pytest.raises(IntegrityError, match="is a card, and holds no recipe"):
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
