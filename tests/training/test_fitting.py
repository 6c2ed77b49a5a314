"""Recipes that fit a normalizer or a quantizer, and models trained with these."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.errors import IntegrityError
from lcm_cli.models.checkpoint import load_model, load_quantizer
from lcm_cli.space import load_space
from lcm_cli.training.recipes.load import load_recipe

DIM, CODEBOOKS, UNITS = 384, 4, 8
FITS = """
kind = "{kind}"
name = "fit"
[data]
train = ["{data}"]
validation = ["{data}"]
suffix = []
"""
SHAPES = f"[quantizer]\ncodebooks = {CODEBOOKS}\nunits = {UNITS}\niterations = 5\n"
MODEL = f"""
kind = "model"
name = "model"
normalizer = "{{folder}}/normalizer"
quantizer = "{{folder}}/quantizer"
[data]
train = ["{{data}}"]
validation = ["{{data}}"]
batch_concepts = 60
[model]
architecture = "quant"
size = "nano"
codebooks = {CODEBOOKS}
units = {UNITS}
[train]
steps = 3
warmup = 1
eval_documents = 2
"""


def spread() -> tuple[np.ndarray, np.ndarray]:
    """Center and scale of each channel, far from 0 and 1."""
    return np.linspace(-2, 2, DIM), np.linspace(0.1, 3, DIM)


@pytest.fixture(scope="module")
def fits(tmp_path_factory) -> Path:
    """A folder with data and a recipe of each kind."""
    folder = tmp_path_factory.mktemp("fits")
    data = folder / "data.parquet"
    info = SpaceInfo("tiny", load_space("tiny", device="cpu").fingerprint, DIM)
    write(data, info)
    for kind, more in (("normalizer", ""), ("quantizer", SHAPES)):
        (folder / f"{kind}.toml").write_text(FITS.format(kind=kind, data=data) + more)
    (folder / "model.toml").write_text(MODEL.format(folder=folder, data=data))
    return folder


def write(path: Path, info: SpaceInfo, documents: int = 60) -> None:
    rng = np.random.default_rng(0)
    center, scale = (part[: info.dim] for part in spread())
    with open_writer(str(path), info) as writer:
        for number in range(documents):
            drawn = rng.standard_normal((int(rng.integers(3, 9)), info.dim)) * scale + center
            words = [f"{number}.{i}" for i in range(len(drawn))]
            concepts = drawn.astype(np.float16)
            writer.write(Document(str(number), sentences=words, concepts=concepts))


@pytest.fixture
def fitted(fits: Path, lcm: Callable[..., Any]) -> Path:
    """The same folder, with a normalizer and a quantizer fitted by `lcm train`."""
    for kind in ("normalizer", "quantizer"):
        if not (fits / kind).exists():
            done = lcm("train", fits / f"{kind}.toml", "-o", fits / kind, "--device", "cpu")
            assert done.code == 0, done.stderr
            assert done.stdout == f"{fits / kind / kind}\n"
    return fits


@pytest.fixture
def train(fitted: Path, lcm: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Train the recipe's model with the fitted checkpoints, and with changes."""

    def run(*changes: str) -> Any:
        sets = [word for change in changes for word in ("--set", change)]
        return lcm("train", fitted / "model.toml", "-o", tmp_path / "run", "--device", "cpu", *sets)

    return run


def test_a_normalizer_knows_the_data(fitted):
    state = load_file(fitted / "normalizer" / "normalizer" / "model.safetensors")
    center, scale = (torch.from_numpy(part).float() for part in spread())
    torch.testing.assert_close(state["center"], center, atol=1.0, rtol=0)
    assert torch.corrcoef(torch.stack([state["scale"], scale]))[0, 1] > 0.97


def test_what_was_fitted_is_told(fits, lcm, tmp_path):
    arguments = ("--device", "cpu", "--json", "-o", tmp_path)
    told = json.loads(lcm("train", fits / "normalizer.toml", *arguments).stdout)
    assert told["path"] == str(tmp_path / "normalizer") and 0.9 < told["deviation"] < 1.3
    told = json.loads(lcm("train", fits / "quantizer.toml", *arguments).stdout)
    assert told["path"] == str(tmp_path / "quantizer") and len(told["lost"]) == CODEBOOKS
    assert all(0 < more < less for less, more in zip(told["lost"], told["lost"][1:], strict=False))
    shown = lcm("train", fits / "quantizer.toml", "--device", "cpu", "-o", tmp_path / "again")
    for depth in (1, 2, 4):  # the same numbers, in the text output
        line = f"{depth} codebooks leave {told['lost'][depth - 1]:.1%} of the variance"
        assert line in shown.stderr


def test_a_model_is_trained_on_them(fitted, train, tmp_path):
    done = train()
    assert done.code == 0, done.stderr
    model = load_model(tmp_path / "run", device="cpu")
    quantizer = load_quantizer(fitted / "quantizer" / "quantizer")
    assert torch.equal(model.quantizer.codebooks_CUD, quantizer.codebooks_CUD)
    state = load_file(fitted / "normalizer" / "normalizer" / "model.safetensors")
    assert torch.equal(model.normalizer.center, state["center"])
    assert torch.equal(model.normalizer.scale, state["scale"])
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("loss", 0.0)) for line in records)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("model.units=16", 5, ("has units 8, the model 16", "units = 8")),
        ("model.codebooks=2", 5, ("has codebooks 4, the model 2", "codebooks = 4")),
        ('model.normalizer.method="standard"', 5, ("has method = 'gaussian_robust'", "standard")),
        ("quantizer={}/normalizer", 3, ("no quantizer at", 'kind = "quantizer"')),
        ("quantizer={}/data.parquet", 3, ("no quantizer at", 'kind = "quantizer"')),
        ("normalizer={}/quantizer", 3, ("no normalizer at", 'kind = "normalizer"')),
        ("normalizer={}/quantizer/quantizer", 5, ("is not a normalizer", 'kind = "normalizer"')),
        ("normalizer={}/nowhere", 3, ("no normalizer at", "nowhere")),
    ],
)
def test_what_does_not_suit_a_model(fitted, train, change, code, words):
    done = train(change.format(fitted))
    assert done.code == code and not done.stdout
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["normalizer", "quantizer"])
def test_those_of_another_space_are_refused(fitted, train, tmp_path, kind):
    folder = fitted / kind / kind
    other = tmp_path / kind
    other.mkdir()
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["space"]["fingerprint"] = "feedbeef"
    (other / "config.json").write_text(json.dumps(config))
    done = train(f"{kind}={other}")
    assert done.code == 5 and "in a different space (feedbeef) from 'tiny'" in done.stderr


@pytest.mark.parametrize("kind", ["normalizer", "quantizer"])
@pytest.mark.parametrize("damage", ["shape", "cut", "config"])
def test_damaged_ones_are_refused(fitted, train, tmp_path, kind, damage):
    folder = fitted / kind / kind
    other = tmp_path / kind
    other.mkdir()
    (other / "config.json").write_text((folder / "config.json").read_text())
    whole = (folder / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(whole[:-9] if damage == "cut" else whole)
    if damage == "config":
        (other / "config.json").write_text("[]")
    if damage == "shape":
        state = load_file(folder / "model.safetensors")
        narrow = {key: tensor[..., :-1].contiguous() for key, tensor in state.items()}
        save_file(narrow, other / "model.safetensors")
    done = train(f"{kind}={other}")
    assert done.code == 5 and str(other) in done.stderr and "Traceback" not in done.stderr
    if damage == "shape":
        assert "wrong shapes" in done.stderr


def test_data_of_another_space_or_width(fits, lcm, tmp_path):
    write(tmp_path / "other.parquet", SpaceInfo("other", "feedbeef", DIM), 3)
    write(tmp_path / "narrow.parquet", SpaceInfo("other", "feedbeef", 64), 3)
    for name, word in (("other", "feedbeef"), ("narrow", "64")):
        change = f'data.train=["{tmp_path / name}.parquet"]'
        done = lcm("train", fits / "quantizer.toml", "-o", tmp_path / name, "--set", change)
        assert done.code == 5 and word in done.stderr, done.stderr


def test_too_few_concepts_for_the_units(fits, lcm, tmp_path):
    many = ("--set", "quantizer.units=5000", "-o", tmp_path, "--device", "cpu")
    done = lcm("train", fits / "quantizer.toml", *many)
    assert done.code == 2 and "too few for codebooks of 5000 units" in done.stderr


@pytest.mark.parametrize("kind", ["normalizer", "quantizer"])
def test_a_fit_has_no_steps(fitted, lcm, tmp_path, kind):
    for flag in ("--dry-run", "--resume"):
        done = lcm("train", fitted / f"{kind}.toml", flag, "-o", tmp_path / "run")
        assert done.code == 2 and flag in done.stderr and not (tmp_path / "run").exists()
    done = lcm("train", fitted / f"{kind}.toml", "-o", fitted / kind)
    assert done.code == 2 and "-o" in done.stderr and "--resume" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("normalizer", "concepts=0"),
        ("quantizer", "quantizer.concepts=0"),
        ("quantizer", "quantizer.iterations=-1"),
        ("quantizer", "quantizer.units=0"),
        ("quantizer", "quantizer.codebooks=0"),
    ],
)
def test_numbers_that_cannot_be(fits, kind, change):
    with pytest.raises(IntegrityError, match="at least 1"):
        load_recipe(fits / f"{kind}.toml", [change])
