"""Small random concept models as systems."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_cli.errors import IntegrityError
from lcm_cli.evaluation.resolve import systems
from lcm_cli.evaluation.systems import Settings
from lcm_cli.models.checkpoint import build, save
from lcm_cli.models.config import preset
from lcm_cli.space import load_space

DATA = Path(__file__).resolve().parent.parent.parent / "examples" / "eval.jsonl"


@pytest.fixture(scope="module", params=["base", "two_tower"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    config = preset(request.param, "nano", concept_dim=256)
    model = build(replace(config, prompts={"summarize": "Summarize:"}))
    path = tmp_path_factory.mktemp("model") / request.param
    save(model, path)
    return path


def test_a_model_is_beside_the_baselines(lcm, folder):
    call = ("evaluate", folder, "copy-last", "lead-2", "--task", "next-concept", "--task")
    result = lcm(*call, "summarize", "--data", DATA, "--limit", "2", "--length", "2", "--json")
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)
    about = found["systems"][str(folder)]
    assert about["kind"] == "concept model" and len(about["sha256"]) == 64
    mine = {(e["task"], e["metric"]) for e in found["results"] if e["system"] == str(folder)}
    assert ("next-concept", "l2") in mine and ("summarize", "source_coverage") in mine
    again = lcm(*call, "summarize", "--data", DATA, "--limit", "2", "--length", "2", "--json")
    assert again.stdout == result.stdout


def test_what_it_can_do_is_what_it_was_finetuned_for(folder):
    space = load_space("tiny", device="cpu")
    (system,) = systems([str(folder)], space, Settings())
    assert system.tasks == ("next-concept", "summarize")


def test_a_model_of_another_width_is_refused(tmp_path):
    save(build(preset("base", "nano", concept_dim=8)), tmp_path / "other")
    space = load_space("tiny", device="cpu")
    with pytest.raises(IntegrityError, match="width 8"):
        systems([str(tmp_path / "other")], space, Settings())


def test_weights_in_several_files(folder, tmp_path):
    state = load_file(folder / "model.safetensors")
    for number, half in enumerate((list(state)[::2], list(state)[1::2])):
        save_file({name: state[name] for name in half}, tmp_path / f"model-{number}.safetensors")
    index = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(state)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    space = load_space("tiny", device="cpu")
    whole, parts = systems([str(folder), str(tmp_path)], space, Settings())
    assert len(parts.about()["sha256"]) == 64
    assert parts.about()["sha256"] != whole.about()["sha256"]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name])
