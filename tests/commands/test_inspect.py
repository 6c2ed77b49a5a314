"""The command lcm inspect."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lcm_cli.documents import Document, SpaceInfo, open_writer


@pytest.fixture
def report(lcm):
    """Run lcm inspect --json and return its report."""

    def run(target):
        result = lcm("inspect", target, "--json")
        assert result.code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def rows(result):
    """Return the rows of the table by their first cell."""
    pairs = (line.split("  ", 1) for line in result.stdout.splitlines())
    return {what: found.strip() for what, found in pairs}


def embed(path, name="tiny", value=0.5):
    document = Document("x", "eng_Latn", sentences=["One.", "Two."])
    document.concepts = np.full((2, 4), value, np.float32)
    with open_writer(str(path), SpaceInfo(name, "0123456789abcdef", 4)) as writer:
        writer.write(document)
    return path


def test_concepts_as_a_table(lcm, tmp_path):
    result = lcm("inspect", embed(tmp_path / "a.parquet"))
    assert (result.code, result.stderr) == (0, "")
    found = rows(result)
    assert found["kind"] == "concepts, parquet"
    assert found["concepts"] == "2 x 4 float16"
    assert found["space"] == "tiny, weights 0123456789abcdef"
    assert found["licence of the space"].startswith("CC-BY")
    assert found["languages"] == "eng_Latn 1"
    assert found["norm of a concept"] == "1 to 1, 1 on average"
    assert found["NaN or infinite"] == "0 concepts"


def test_splits_targets_and_plans(lcm, report, tmp_path):
    lines = [
        {"text": "A dog ran off.", "target": "A dog.", "split": "train"},
        {"text": "He came back.", "plans": ["He is found."], "split": "train"},
        {"text": "It rains.", "target": "Rain.", "split": "dev"},
        {"text": "It snows."},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = rows(lcm("inspect", file))
    assert found["splits"] == "train 2, dev 1"
    assert (found["documents with targets"], found["documents with plans"]) == ("2", "1")
    told = report(file)
    assert (told["targets"], told["plans"], told["splits"]) == (2, 1, {"train": 2, "dev": 1})


def test_unknown_space_has_no_licence(report, tmp_path):
    assert report(embed(tmp_path / "a.parquet", name="mine"))["licence"] is None


def test_text_and_problems(lcm, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "T."}\noops\n')
    result = lcm("inspect", tmp_path / "a.jsonl")
    assert result.code == 0
    assert rows(result)["problems"] == "1"
    assert "line 2 is not valid JSON" in result.stderr


def test_data_set(lcm, tmp_path):
    found = rows(lcm("inspect", embed(tmp_path / "set")))
    assert found["kind"] == "dataset, 1 shard of parquet"


def test_the_bundled_space(lcm, report):
    found = report("tiny")
    assert (found["kind"], found["name"], found["present"]) == ("space", "tiny", True)
    assert found["parameters"]["encoder"] > 1e6
    assert found["encoder"]["layers"] > 0
    assert "eng_Latn" in found["languages"]
    assert found["non_finite"] == {}
    assert found["licence"].startswith("CC-BY")
    assert rows(lcm("inspect", "tiny"))["fingerprint"] == found["fingerprint"]
    assert rows(lcm("inspect", "tiny"))["decoder"].endswith(", scores_language no")


def test_card_of_an_absent_checkpoint(lcm, report):
    found = report("sonar")
    assert (found["present"], found["languages"]) == (False, 202)
    assert found["licence"] == "CC-BY-NC-4.0"
    assert "lcm pull sonar" in rows(lcm("inspect", "sonar"))["on this machine"]


def test_weights(lcm, report, tmp_path):
    path = tmp_path / "w.safetensors"
    bad = np.ones((2, 3), np.float32)
    bad[0] = np.nan
    half = np.array([1, np.inf], np.float16)
    tensors = {"a": bad, "b": half, "c": np.array([1, 2])}
    save_file(tensors, path, {"licence": "MIT"})
    found = report(path)
    assert (found["kind"], found["parameters"], found["licence"]) == ("checkpoint", 10, "MIT")
    assert found["dtypes"] == {"F16": 2, "F32": 6, "I64": 2}
    assert found["tensors"]["a"] == [2, 3]
    assert found["non_finite"] == {"a": 3, "b": 1}
    assert rows(lcm("inspect", path))["NaN or infinite"] == "a 3, b 1"


def test_bfloat16_weights(report, tmp_path):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    values = np.array([0x3F80, 0x7FC0, 0xFF80], "<u2")  # 1, NaN, -inf
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    assert report(path)["non_finite"] == {"w": 2}
    assert report(path)["dtypes"] == {"BF16": 3}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.safetensors", "w.safetensors"])
def test_cut_off(lcm, tmp_path, name):
    path = tmp_path / name
    if name.startswith("w"):
        save_file({"a": np.ones(9)}, path)
    else:
        embed(path)
    path.write_bytes(path.read_bytes()[:-3])
    result = lcm("inspect", path)
    assert result.code == 5
    assert str(path) in result.stderr
    assert "hint: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tinny", "did you mean tiny?"),
        ("nosuch.parquet", "paths are relative to the current folder, /"),
    ],
)
def test_unknown_name(lcm, tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    result = lcm("inspect", name)
    assert result.code == 3
    assert f"no such file: {name}, and no checkpoint has that name" in result.stderr
    assert f"hint: {hint}" in result.stderr


def test_model(lcm, tmp_path):
    """The folder of a model: its architecture and the space of its concepts."""
    from lcm_cli.models.checkpoint import build, save
    from lcm_cli.models.config import SpaceRef, preset

    space = SpaceRef("tiny", "0123456789abcdef")
    model = build(preset("base", "nano", concept_dim=16, space=space, prompts={"expand": "More:"}))
    save(model, tmp_path / "m")
    save(model, tmp_path / "run" / "model")
    of_run = json.loads(lcm("inspect", tmp_path / "run", "--json").stdout)
    assert of_run["architecture"] == "base"
    shown = lcm("inspect", tmp_path / "m")
    assert shown.code == 0, shown.stderr
    rows = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert rows["kind"] == "model, base"
    assert rows["space"] == "tiny, weights 0123456789abcdef"
    assert rows["normalizer"] == "method gaussian_robust, spread quartiles"
    assert rows["layers"] == f"transformer {model.config.transformer.layers}; of width 64"
    assert "sampling" not in rows
    report = json.loads(lcm("inspect", tmp_path / "m", "--json").stdout)
    assert report["parameters"] == sum(t.numel() for t in model.state_dict().values())
    assert (report["kind"], report["dim"], report["prompts"]) == ("model", 16, {"expand": "More:"})
    (tmp_path / "m" / "model.safetensors").unlink()
    assert lcm("inspect", tmp_path / "m").code == 3


def test_a_model_that_denoises(lcm, report, tmp_path):
    """Both towers, and the sampling that the model was distilled for."""
    from lcm_cli.models.checkpoint import build, save
    from lcm_cli.models.config import SamplingConfig, preset

    sampling = SamplingConfig(steps=4, guidance=1.0)
    save(build(preset("two_tower", "nano", concept_dim=16, sampling=sampling)), tmp_path / "m")
    lines = lcm("inspect", tmp_path / "m").stdout.splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert shown["layers"] == "contextualizer 2, denoiser 2; of width 64"
    assert shown["sampling"] == "steps 4, guidance 1"
    assert report(tmp_path / "m")["sampling"] == {"steps": 4, "guidance": 1.0}


def test_a_model_in_several_files(lcm, report, tmp_path):
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_tensors

    from lcm_cli.models.checkpoint import build, save
    from lcm_cli.models.config import preset

    save(build(preset("base", "nano", concept_dim=16)), tmp_path / "m")
    whole = report(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    state = load_file(weights)
    weight_map = {key: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, key in enumerate(state)}
    for name in set(weight_map.values()):
        part = {key: state[key].clone() for key in state if weight_map[key] == name}
        save_tensors(part, weights.with_name(name))
    weights.unlink()
    index = {"weight_map": weight_map}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    parts = report(tmp_path / "m")
    sizes = [path.stat().st_size for path in weights.parent.glob("*.safetensors")]
    assert (parts.pop("bytes"), len(sizes)) == (sum(sizes), 2)
    del whole["bytes"]  # one header instead of two
    assert parts == whole
    weights.with_name("model-00002-of-00002.safetensors").unlink()
    lacking = lcm("inspect", tmp_path / "m")
    assert lacking.code == 3
    assert "model-00002-of-00002.safetensors" in lacking.stderr
    assert "hint: the checkpoint is incomplete" in lacking.stderr
