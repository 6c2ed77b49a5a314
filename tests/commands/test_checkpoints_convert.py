"""lcm checkpoints convert: official checkpoints, SONAR-LLM's folders, number formats."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rounding import additions, assert_near
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcm_cli.files import sha256
from lcm_cli.models import load_model
from lcm_cli.space import Space, load_space
from lcm_cli.space.decoder import DecoderCache
from lcm_cli.space.tokenizer import EOS
from lcm_cli.transfer.convert import _SENTENCES, convert
from lcm_cli.transfer.converters.foreign import read_model

GOLDEN = Path(__file__).parent.parent / "golden"
Run = Callable[..., Any]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A checkpoint of the official trainer: model.pt and model_card.yaml."""
    folder = tmp_path / "step_8"
    folder.mkdir()
    state = {f"module.{key}": value for key, value in _golden("base_model").items()}
    torch.save({"model": state, "step": 8}, folder / "model.pt")
    config = dict(_facts("base_model")["config"])
    card = {"name": "on_the_fly_lcm", "model_family": config.pop("model_type")}
    card |= {"checkpoint": "file:///runs/step_8/model.pt", "model_config": config}
    (folder / "model_card.yaml").write_text(yaml.dump(card))
    return folder


@pytest.fixture
def sonar_llm(tmp_path: Path) -> Path:
    """A SONAR-LLM folder in the Hub's layout."""
    folder = tmp_path / "sonar-llm"
    folder.mkdir()
    golden = _golden("sonar_llm")
    state = {key[3:]: value for key, value in golden.items() if key.startswith("sd/")}
    state["sonar_decoder.embed.weight"] = torch.zeros(3, 2)
    torch.save({"model_state_dict": state}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(_facts("sonar_llm")["config"]))
    return folder


def _golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def _facts(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return facts


@pytest.mark.parametrize(
    ("name", "kind"), [("base_model", "base"), ("two_tower_model", "two_tower")]
)
def test_golden_files(lcm: Run, tmp_path: Path, name: str, kind: str) -> None:
    done = lcm("checkpoints", "convert", GOLDEN / f"{name}.safetensors", "-o", tmp_path / "x")
    assert (done.code, done.stdout) == (0, f"{tmp_path / 'x'}\n")
    assert f"{kind}, concepts of width 32, space: unknown" in done.stderr
    theirs, ours = _golden(name), load_model(tmp_path / "x").state_dict()
    assert len(theirs) == len(ours)
    assert torch.equal(ours["normalizer.scale"], next(v for k, v in theirs.items() if "scale" in k))
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("source", [".", "model.pt"])
def test_official_checkpoint(lcm: Run, official: Path, tmp_path: Path, source: str) -> None:
    done = lcm("checkpoints", "convert", official / source, "-o", tmp_path / "x")
    assert done.code == 0, done.stderr
    same, _ = read_model(GOLDEN / "base_model.safetensors")
    assert load_model(tmp_path / "x").config == same


def test_sonar_llm(lcm: Run, sonar_llm: Path, tmp_path: Path) -> None:
    done = lcm("checkpoints", "convert", sonar_llm, "-o", tmp_path / "x")
    assert done.code == 0, done.stderr
    model, golden = load_model(tmp_path / "x", device="cpu"), _golden("sonar_llm")
    assert_near(model(golden["x"]), golden["out"], additions(model))


def test_a_card_that_names_its_architecture(tmp_path: Path) -> None:
    """The weights lack most of the 1.6 billion parameters: missing tensors are listed."""
    (tmp_path / "m").mkdir()
    card = {"model_family": "base_lcm", "model_arch": "base_lcm_1_6B"}
    (tmp_path / "m" / "model_card.yaml").write_text(yaml.dump(card))
    save_file({"x": torch.zeros(1)}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(Exception, match=r"missing tensors: .* and \d+ more; unknown tensors: x"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize("framed", [True, False])
def test_a_hostile_pickle_runs_nothing(
    lcm: Run, official: Path, tmp_path: Path, framed: bool
) -> None:
    """A pickle that would create a folder, plain and in the zip format of torch.save."""
    target = tmp_path / "owned"

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(target),)

    if framed:
        torch.save({"model": {"x": Hostile()}}, official / "model.pt")
    else:
        (official / "model.pt").write_bytes(pickle.dumps({"model": Hostile()}))
    done = lcm("checkpoints", "convert", official, "-o", tmp_path / "x")
    assert (done.code, done.stdout) == (5, "")
    assert "model.pt" in done.stderr
    assert not target.exists()
    assert not (tmp_path / "x").exists()


def test_a_hostile_card_runs_nothing(lcm: Run, official: Path, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    call = f"!!python/object/apply:os.mkdir [{target}]"
    (official / "model_card.yaml").write_text(f"model_config: {call}\n")
    done = lcm("checkpoints", "convert", official, "-o", tmp_path / "x")
    assert done.code == 5
    assert "cannot be read as plain data" in done.stderr
    assert not target.exists()


def test_tensors_that_do_not_fit_are_listed(lcm: Run, official: Path, tmp_path: Path) -> None:
    state = torch.load(official / "model.pt", weights_only=True)["model"]
    state["module.extra"] = state.pop("module.postnet.fc.bias")
    torch.save({"model": state}, official / "model.pt")
    done = lcm("checkpoints", "convert", official, "-o", tmp_path / "x")
    assert done.code == 5
    assert "missing tensors: postnet.fc.bias; unknown tensors: extra" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lcm": None}, "does not describe a concept model"),
        ({"model_dim": "64"}, "does not describe a concept model"),
        ({"model_type": "other"}, "model_type 'other' is not an official concept model"),
        ({"max_seq_len": 64.5}, "max_length = 64.5"),
        ({"max_seq_len": -1}, "max_length must be positive, not -1"),
        ({"lcm": {}}, "lacks the key"),
    ],
)
def test_invalid_config(
    lcm: Run, official: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = _facts("base_model")["config"] | change
    (official / "config.json").write_text(json.dumps(config))
    done = lcm("checkpoints", "convert", official, "-o", tmp_path / "x")
    assert done.code == 5
    assert message in done.stderr
    assert "config.json" in done.stderr


def test_invalid_model(lcm: Run, official: Path, tmp_path: Path) -> None:
    def convert(source: Path) -> Any:
        return lcm("checkpoints", "convert", source, "-o", tmp_path / "x")

    assert convert(tmp_path / "nowhere").code == 3
    (tmp_path / "empty").mkdir()
    bare = convert(tmp_path / "empty")
    assert bare.code == 5
    assert "there is neither config.json nor model_card.yaml" in bare.stderr
    whole = (official / "model.pt").read_bytes()
    for share in (0.0, 0.5, 0.999):
        (official / "model.pt").write_bytes(whole[: int(share * len(whole))])
        assert convert(official).code == 5
    (official / "model.pt").unlink()
    without = convert(official)
    assert without.code == 5
    assert "neither model.safetensors" in without.stderr
    assert not (tmp_path / "x").exists()


def test_output_folder(lcm: Run, official: Path, tmp_path: Path) -> None:
    def convert(target: Path, *flags: str) -> Any:
        return lcm("checkpoints", "convert", official, "-o", target, *flags)

    assert convert(tmp_path / "x").code == 0
    again = convert(tmp_path / "x")
    assert again.code == 2
    assert "already holds a checkpoint" in again.stderr
    assert convert(tmp_path / "x", "--force").code == 0
    taken = tmp_path / "file"
    taken.write_text("")
    assert convert(taken).code == 2
    shutil.copytree(tmp_path / "x", tmp_path / "ours")
    ours = lcm("checkpoints", "convert", tmp_path / "ours", "-o", tmp_path / "y")
    assert ours.code == 2
    assert "is already in lcm's layout" in ours.stderr
    assert "hint: choose a number format, as in: --store int8" in ours.stderr


# Number formats


def test_foreign_model_to_int8(lcm: Run, official: Path, tmp_path: Path) -> None:
    done = lcm("checkpoints", "convert", official, "-o", tmp_path / "x", "--store", "int8")
    assert done.code == 0, done.stderr
    assert " of weights before, " in done.stderr and "relative error 0." in done.stderr
    raw = load_file(tmp_path / "x" / "model.safetensors")
    assert raw["postnet.fc.weight"].dtype == torch.int8
    assert raw["normalizer.scale"].dtype == torch.float32
    _, exact = read_model(official)
    for name, weight in load_model(tmp_path / "x").state_dict().items():
        moved = (weight - exact[name]).abs().max()
        assert moved <= exact[name].abs().max() / 250, name


def test_cost_of_rounding_a_space(lcm: Run, random_space: Path, tmp_path: Path) -> None:
    def convert(source: Path, store: str) -> Any:
        return lcm("checkpoints", "convert", source, "-o", tmp_path / store, "--store", store)

    done = convert(random_space, "int8")
    assert (done.code, done.stdout) == (0, f"{tmp_path / 'int8'}\n")
    told = re.search(r"relative error (0\.\d\d)%, mean cosine of concepts (\d\.\d{5})", done.stderr)
    assert told and 0.1 < float(told[1]) < 1 and 0.9 < float(told[2]) <= 1
    losses = re.search(r"decoding loss (\d+\.\d{3}) before, (\d+\.\d{3}) now", done.stderr)
    assert losses and float(losses[1]) == pytest.approx(float(losses[2]), abs=0.1)
    assert "has lost much" not in done.stderr
    assert "embed the texts again" in done.stderr
    again = convert(tmp_path / "int8", "float32")
    assert again.code == 0 and "no number has changed" in again.stderr
    assert "embed the texts again" not in again.stderr
    folders = random_space, tmp_path / "int8"
    before, after = (json.loads((path / "config.json").read_text()) for path in folders)
    digests = after.pop("sha256")
    assert before == after
    assert digests["encoder"] == sha256(tmp_path / "int8" / "encoder.safetensors")
    assert lcm("checkpoints", "verify", tmp_path / "int8").stdout.count("ok ") == 3


@pytest.mark.slow
def test_a_decoder_that_rounding_spoils_is_reported(lcm: Run, tmp_path: Path) -> None:
    convert("tiny", tmp_path / "s", "float32")
    path = tmp_path / "s" / "decoder.safetensors"
    weights = load_file(path)
    for name in [name for name in weights if name.endswith("ffn.inner_proj.weight")]:
        # The decoder computes the same, but a large number in each row leaves the others no digit.
        weights[name][0] /= 1024
        weights[name.replace("weight", "bias")][0] /= 1024
        weights[name.replace("inner", "output")][:, 0] *= 1024
    save_file(weights, path)
    done = lcm("checkpoints", "convert", tmp_path / "s", "-o", tmp_path / "x", "--store", "int8")
    assert done.code == 0, done.stderr
    before, after = map(float, re.search(r"loss (\S+) before, (\S+) now", done.stderr).groups())
    assert after > before + 0.1 and "the decoder has lost much" in done.stderr
    space = load_space(str(tmp_path / "x"), device="cpu", precision="float32")
    assert after == pytest.approx(loss_of_decoding(space), abs=6e-4)


def loss_of_decoding(space: Space) -> float:
    """Feed the tokens one by one, as a search does."""
    rows = space.tokenize(_SENTENCES, "eng_Latn")
    concepts = torch.from_numpy(space.encode(_SENTENCES, "eng_Latn").concepts).float()
    losses: list[float] = []
    for concept, row in zip(concepts, rows, strict=True):
        cross = space.decoder.cross(concept[None])
        cache = DecoderCache(space.decoder.config.layers, 1)
        for given, wanted in pairwise([EOS, *row]):
            logits = space.decoder.step(torch.tensor([given]), cross, cache)[0]
            losses.append(float(-logits.float().log_softmax(0)[wanted]))
        del losses[-len(row)]  # the language token
    return sum(losses) / len(losses)


def test_a_space_without_english_has_no_cosine(random_space: Path, tmp_path: Path) -> None:
    shutil.copytree(random_space, tmp_path / "s")
    config = json.loads((random_space / "config.json").read_text())
    config["languages"][0] = "ita_Latn"
    (tmp_path / "s" / "config.json").write_text(json.dumps(config))
    cost = convert(str(tmp_path / "s"), tmp_path / "x", "int8").cost
    assert cost is not None and cost.cosine is None and cost.relative_error > 0
    assert cost.loss_before is cost.loss_after is None and not cost.decodes_worse


def test_json(lcm: Run, official: Path, random_space: Path, tmp_path: Path) -> None:
    def convert(source: Path, *more: str) -> Any:
        done = lcm("checkpoints", "convert", source, "-o", tmp_path / "x", "--json", *more)
        assert done.code == 0, done.stderr
        (line,) = done.stdout.splitlines()
        return json.loads(line)

    found = convert(random_space, "--store", "int8")
    assert (found["path"], found["kind"], found["store"]) == (str(tmp_path / "x"), "space", "int8")
    assert (found["architecture"], found["dim"], found["space"]) == (None, 32, "random")
    assert 0 < found["relative_error"] < 0.01 < 0.9 < found["cosine"] <= 1
    assert found["bytes_after"] < found["bytes_before"]
    assert found["parameters"] == sum(found["numbers"].values())
    found = convert(official, "--force")
    assert (found["kind"], found["architecture"], found["store"]) == ("model", "base", None)
    assert found["space"] is found["relative_error"] is found["bytes_before"] is None
    state = torch.load(official / "model.pt", weights_only=True)["model"]
    assert found["parameters"] == sum(tensor.numel() for tensor in state.values())


@pytest.mark.parametrize("name", ["tiny-base", "tiny-two-tower"])
def test_a_bundled_model_keeps_its_licence(lcm: Run, tmp_path: Path, name: str) -> None:
    done = lcm("checkpoints", "convert", name, "-o", tmp_path / "x", "--store", "int8")
    assert done.code == 0, done.stderr
    assert load_model(tmp_path / "x").config == load_model(name).config
    assert "CC-BY-4.0" in lcm("checkpoints", "show", tmp_path / "x").stdout
    assert lcm("checkpoints", "verify", tmp_path / "x").stdout.count("ok ") == 2


def test_a_readme_and_the_folder_of_a_run(lcm: Run, official: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lcm("checkpoints", "convert", official, "-o", run / "model").code == 0
    (run / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    done = lcm("checkpoints", "convert", run, "-o", tmp_path / "x", "--store", "float16")
    assert done.code == 0, done.stderr
    assert (tmp_path / "x" / "README.md").read_text().endswith("# Mine\n")
    assert json.loads((tmp_path / "x" / "origin.json").read_text())["licence"] == "mit"


@pytest.mark.parametrize("value", [1e9, float("nan")])
def test_numbers_out_of_range(lcm: Run, random_space: Path, tmp_path: Path, value: float) -> None:
    """No partial output is left, and existing files stay."""
    shutil.copytree(random_space, tmp_path / "s")
    state = load_file(random_space / "decoder.safetensors")
    state["decoder.layers.1.ffn.output_proj.weight"][3, 5] = value
    save_file(state, tmp_path / "s" / "decoder.safetensors")
    args = ("checkpoints", "convert", tmp_path / "s", "--store", "int8", "-o")
    done = lcm(*args, tmp_path / "x")
    assert (done.code, done.stdout) == (5, "")
    assert f"{tmp_path / 's'}: decoder.layers.1.ffn.output_proj.weight cannot be" in done.stderr
    assert not (tmp_path / "x").exists()
    shutil.copytree(random_space, tmp_path / "x")
    assert lcm(*args, tmp_path / "x", "--force").code == 5
    for path in random_space.iterdir():
        assert (tmp_path / "x" / path.name).read_bytes() == path.read_bytes()


def test_missing_source_and_source_as_output(lcm: Run, random_space: Path, tmp_path: Path) -> None:
    def convert(source: Any, *more: Any) -> Any:
        return lcm("checkpoints", "convert", source, "-o", tmp_path / "x", "--store", "int8", *more)

    absent = convert("sonar")
    assert absent.code == 3 and "lcm pull sonar" in absent.stderr
    wrong = convert("tinny")
    assert wrong.code == 3 and "did you mean tiny" in wrong.stderr
    assert lcm("checkpoints", "convert", "tiny", "-o", tmp_path / "x").code == 2
    shutil.copytree(random_space, tmp_path / "x")
    same = convert(tmp_path / "x", "--force")
    assert same.code == 2 and "choose another folder" in same.stderr


def test_defaults_from_the_config_file(lcm: Run, official: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[checkpoints.convert]\noutput = "{tmp_path / "x"}"\n')
    assert lcm("checkpoints", "convert", official, "--config", config).code == 0
    config.write_text("[checkpoints.convert]\nforec = true\n")
    done = lcm("checkpoints", "convert", official, "-o", tmp_path / "y", "--config", config)
    assert done.code == 5
    assert "'forec' is not a known option of checkpoints convert" in done.stderr
