"""Concept models as systems: small random ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_cli.documents import Document
from lcm_cli.errors import IntegrityError
from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.named_systems import load_systems
from lcm_cli.evaluation.systems import Settings
from lcm_cli.evaluation.tasks import Context, SharedSpace, Work, run_task
from lcm_cli.models.checkpoint import build, save
from lcm_cli.models.config import preset
from lcm_cli.space import load_space
from lcm_cli.writing.writer import Writer

DATA = Path(__file__).resolve().parent.parent.parent / "examples" / "eval.jsonl"


@pytest.fixture(scope="module")
def space(random_space):
    return load_space(str(random_space), device="cpu")


@pytest.fixture(scope="module", params=["base", "two_tower"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    config = preset(request.param, "nano", concept_dim=32)
    model = build(replace(config, prompts={"summarize": "Summarize:"}))
    path = tmp_path_factory.mktemp("model") / request.param
    save(model, path)
    return path


@pytest.mark.slow
def test_a_model_is_evaluated_beside_baselines(lcm, folder, random_space):
    call = ("evaluate", folder, "copy-last", "lead-2", "--task", "next-concept", "--task")
    call = (*call, "summarize", "--data", DATA, "--limit", "1", "--length", "2", "--json")
    call = (*call, "--space", random_space)
    result = lcm(*call)
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)
    about = found["systems"][str(folder)]
    assert about["kind"] == "concept model" and len(about["sha256"]) == 64
    mine = {(e["task"], e["metric"]) for e in found["results"] if e["system"] == str(folder)}
    assert ("next-concept", "l2") in mine and ("summarize", "source_coverage") in mine
    assert lcm(*call).stdout == result.stdout


def test_its_tasks_are_those_that_it_was_finetuned_for(folder, space):
    (system,) = load_systems([str(folder)], space, Settings())
    assert system.tasks == ("next-concept", "summarize")


def test_a_model_of_another_width_is_refused(tmp_path, space):
    save(build(preset("base", "nano", concept_dim=8)), tmp_path / "other")
    with pytest.raises(IntegrityError, match="width 8"):
        load_systems([str(tmp_path / "other")], space, Settings())


def test_weights_in_several_files(folder, tmp_path, space):
    state = load_file(folder / "model.safetensors")
    for number, half in enumerate((list(state)[::2], list(state)[1::2])):
        save_file({name: state[name] for name in half}, tmp_path / f"model-{number}.safetensors")
    index = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(state)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    whole, parts = load_systems([str(folder), str(tmp_path)], space, Settings())
    assert len(parts.about()["sha256"]) == 64
    assert parts.about()["sha256"] != whole.about()["sha256"]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name])


def test_the_text_that_opens_prompts_precedes_each_document(tmp_path):
    """As in training and generation; only sentences are scored."""
    config = replace(preset("sonar_llm", "nano", concept_dim=384), begin_text="Begin of text.")
    save(build(config), tmp_path / "model")
    tiny = load_space("tiny", device="cpu")
    (system,) = load_systems([str(tmp_path / "model")], tiny, Settings())
    space, said = SharedSpace(tiny), ("The cat sleeps.", "A dog comes in.", "The cat runs away.")
    example = Example(1, "s", "fra_Latn", said, paragraphs=(0, 0, 1))
    own_SD = space.concepts(said, "fra_Latn")
    batch = system.batch([own_SD], [example], space)
    writer = Writer(system.model, tiny)
    prompt_SD = writer.prompt(Document("s", "fra_Latn", sentences=list(said), concepts=own_SD))
    assert torch.equal(batch.concepts_BSD[0], prompt_SD)
    assert batch.woven_BS.tolist() == [[True, False, False, False]]
    assert system.max_length == config.max_length - 1
    (record,) = run_task("next-concept", system, [example], Context(space, Work()))
    predicted_SD = system.predict(batch, [1])[0, 1:]
    far = float((predicted_SD - torch.from_numpy(own_SD[1:])).norm(dim=-1).mean())
    assert record["scores"]["l2"] == pytest.approx(far, rel=1e-3)
    assert len(record["prediction"]) == 2


@pytest.mark.slow
def test_documents_are_cut_to_the_length_of_the_shortest_model(lcm, tmp_path, random_space):
    config = preset("sonar_llm", "nano", concept_dim=32)
    save(build(replace(config, max_length=4)), tmp_path / "short")
    call = ("evaluate", tmp_path / "short", "copy-last", "--task", "next-concept", "--data", DATA)
    result = lcm(*call, "--limit", "2", "-o", tmp_path / "report", "--space", random_space)
    assert result.code == 0, result.stderr
    lines = (tmp_path / "report" / "examples.jsonl").read_text().splitlines()
    assert {len(json.loads(line)["source"]) for line in lines} == {3}
