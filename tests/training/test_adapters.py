"""Adapters: what is trained and stored, exact resumption, merging, and errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import additions, assert_near
from safetensors.torch import load_file, save_file

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.hub.locate import locate_model, locate_space
from lcm_cli.models.checkpoint import build, load_model, save
from lcm_cli.models.config import SpaceRef, preset
from lcm_cli.space import load_space
from lcm_cli.space.adapters import AdaptedLinear, attach, read_updates
from lcm_cli.training.loop import Run
from lcm_cli.training.recipes.adapter import AdapterOptions
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.states import read_state, states
from lcm_cli.training.trainers.space_parts import trainable
from lcm_cli.training.trainers.text_space import make_space_trainer
from lcm_cli.transfer.convert import convert
from lcm_cli.transfer.export import export

CPU = torch.device("cpu")
LINES = [
    {"eng_Latn": "Tom sleeps.", "fra_Latn": "Tom dort."},
    {"eng_Latn": "The dog waits.", "fra_Latn": "Le chien attend."},
    {"eng_Latn": "My cat sings.", "fra_Latn": "Mon chat chante."},
    {"eng_Latn": "A friend laughs."},
]
SPACE_RECIPE = """
kind = "space"
name = "my-adapter"
start = "{start}"
[data]
train = ["{data}"]
dev = ["{data}"]
[train]
steps = 6
batch_tokens = 60
optimizer = "adamw"
learning_rate = 1e-2
warmup = 1
save_every = 2
eval_every = 100
eval_sentences = 2
[adapter]
rank = 4
"""
MODEL_RECIPE = """
kind = "model"
name = "my-adapter"
space = "{space}"
start = "{start}"
[data]
train = ["in memory"]
[train]
steps = 6
learning_rate = 1e-2
warmup = 1
save_every = 2
eval_every = 100
[adapter]
rank = 4
"""


@pytest.fixture(scope="module")
def space_recipe(tmp_path_factory: pytest.TempPathFactory, random_space: Path) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    path = folder / "space.toml"
    path.write_text(SPACE_RECIPE.format(start=random_space, data=data))
    return path


@pytest.fixture(scope="module")
def adapter(space_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter of the space's decoder; tests leave it unchanged."""
    return space_adapter(space_recipe, tmp_path_factory.mktemp("adapter"))[1]


@pytest.fixture(scope="module")
def adapter_of_both(space_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter of encoder and decoder; tests leave it unchanged."""
    folder = tmp_path_factory.mktemp("both")
    return space_adapter(space_recipe, folder, 'adapter.modules=["*"]')[1]


@pytest.fixture(params=["base", "two_tower", "quant", "sonar_llm"])
def base_model(request, tmp_path: Path, random_space: Path) -> Path:
    """The folder of a model with random weights in the small space."""
    space = load_space(str(random_space), device="cpu")
    reference = SpaceRef(space.name, space.fingerprint)
    torch.manual_seed(0)
    changes = {"loss": "squared"} if request.param == "sonar_llm" else {}
    config = preset(request.param, "nano", concept_dim=space.dim, space=reference, **changes)
    save(build(config), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def of_model(start, base_model: Path):
    """Prepare a run that adapts the model."""
    architecture = load_model(base_model, device="cpu").config.architecture
    own = (f'start="{base_model}"', "train.steps=6", "train.save_every=2", "adapter.rank=4")
    return lambda folder, *changes: start(folder, *own, *changes, architecture=architecture)


def of_space(recipe, folder, *changes):
    folder.mkdir(parents=True, exist_ok=True)
    return make_space_trainer(load_recipe(recipe, changes), folder, CPU)


def space_adapter(recipe, folder, *changes):
    """Train an adapter of a space; return its trainer and its folder."""
    trainer = of_space(recipe, folder, *changes)
    assert Run(trainer, folder).train()
    return trainer, folder / "space"


def frozen_and_trained(networks):
    named = [(name, p) for net in networks for name, p in net.named_parameters()]
    adapters = {name for name, _ in named if ".lora_" in name}
    return {name for name, p in named if p.requires_grad}, adapters, named


def test_only_the_adapters_of_a_space_train(space_recipe, random_space, tmp_path):
    before = {path.name: path.read_bytes() for path in random_space.iterdir()}
    trainer = of_space(space_recipe, tmp_path / "run")
    networks = (trainer.encoder, trainer.decoder)
    trained, adapters, named = frozen_and_trained(networks)
    assert trained == adapters and len(adapters) == 2 * 2 * 8  # layers, A and B, maps of a layer
    old = {name: p.detach().clone() for name, p in named}
    assert Run(trainer, tmp_path / "run").train()
    moved = {name for name, p in named if not torch.equal(p, old[name])}
    assert moved == adapters
    assert {path.name: path.read_bytes() for path in random_space.iterdir()} == before


def test_states_and_checkpoints_hold_the_adapters_alone(space_recipe, tmp_path):
    trainer, folder = space_adapter(space_recipe, tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {"adapter.safetensors", "config.json"}
    assert set(load_file(folder / "adapter.safetensors")) == {
        name for name, _ in trainer.decoder.named_parameters() if ".lora_" in name
    }
    state = read_state(tmp_path / "run")[0]["trainer"]
    assert state["encoder"] == {} and all(".lora_" in name for name in state["decoder"])
    size = 4 * sum(p.numel() for p in trainer.parameters)
    assert states(tmp_path / "run")[-1].stat().st_size < 4 * size + 30_000
    assert not (tmp_path / "run" / "tokenizer.model").exists()


def test_only_the_adapters_of_a_model_train(of_model, tmp_path):
    trainer = of_model(tmp_path / "run")
    trained, adapters, named = frozen_and_trained([trainer.model])
    assert trained == adapters
    old = {name: p.detach().clone() for name, p in named}
    assert Run(trainer, tmp_path / "run").train()
    moved = {name for name, p in named if not torch.equal(p, old[name])}
    assert moved and moved <= adapters
    files = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert files == {"adapter.safetensors", "config.json"}
    assert all(".lora_" in name for name in read_state(tmp_path / "run")[0]["trainer"]["model"])


@pytest.mark.parametrize("ema", [0.0, pytest.param(0.9, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_adapters(space_recipe, tmp_path, ema):
    changes = (f"train.ema={ema}", "adapter.dropout=0.1")
    _, whole = space_adapter(space_recipe, tmp_path / "whole", *changes)
    folder = tmp_path / "parts"
    first = of_space(space_recipe, folder, *changes)
    run = Run(first, folder, report=lambda record: None)
    run.live = lambda record: setattr(run, "stop", record["step"] == 3)
    assert not run.train()
    second = Run(of_space(space_recipe, folder, *changes), folder)
    second.resume()
    assert second.train()
    name = "adapter.safetensors"
    assert (folder / "space" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_resumed_run_of_a_model_ends_with_the_same_adapters(of_model, tmp_path):
    changes = ('train.optimizer="muon"',)
    assert Run(of_model(tmp_path / "whole", *changes), tmp_path / "whole").train()
    folder = tmp_path / "parts"
    run = Run(of_model(folder, *changes), folder)
    run.live = lambda record: setattr(run, "stop", record["step"] == 3)
    assert not run.train()
    second = Run(of_model(folder, *changes), folder)
    second.resume()
    assert second.train()
    found = [
        (tmp_path / name / "model" / "adapter.safetensors").read_bytes()
        for name in ("parts", "whole")
    ]
    assert found[0] == found[1]


def test_a_run_does_not_resume_on_another_base_or_with_other_adapters(
    space_recipe, random_space, tmp_path
):
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(random_space, base)
    here = f'start="{base}"'
    space_adapter(space_recipe, folder, here)
    for change, message in (
        ("adapter.rank=2", "rank"),
        ('adapter.modules=["*.q_proj"]', "modules"),
    ):
        with pytest.raises(IntegrityError, match=f"the rank and the modules .*|{message}"):
            Run(of_space(space_recipe, folder, here, change), folder).resume()
    whole = replace(load_recipe(space_recipe, (here,)), adapter=None)
    with pytest.raises(IntegrityError, match="cannot be added or removed"):
        Run(make_space_trainer(whole, folder, CPU), folder).resume()
    change_weights(base / "decoder.safetensors")
    with pytest.raises(IntegrityError, match="weights of its start have changed"):
        Run(of_space(space_recipe, folder, here), folder).resume()


def change_weights(path):
    state = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(state, path)


def test_a_loaded_adapter_computes_what_the_trained_network_does(space_recipe, tmp_path):
    changes = ('adapter.modules=["*"]', "train.noise=0.0")
    trainer, folder = space_adapter(space_recipe, tmp_path / "run", *changes)
    encoder, decoder = (net.eval() for net in (trainer.encoder, trainer.decoder))
    merged = trainable(load_space(str(folder), device="cpu"))
    rows = [[5, 6, 7, 8], [5, 9, 10]]
    with torch.no_grad():
        ours = encoder(rows), merged[0].eval()(rows)
        theirs = decoder(ours[0], rows), merged[1].eval()(ours[0], rows)
    for unmerged, plain in (ours, theirs):
        assert_near(plain, unmerged, sum(map(additions, merged)))
    with torch.no_grad():
        base = trainable(load_space(str(load_recipe(space_recipe).start), device="cpu"))
        assert not torch.allclose(base[0].eval()(rows), ours[0], atol=1e-3)


@pytest.mark.slow
def test_a_loaded_model_computes_what_the_trained_one_does(of_model, tmp_path):
    trainer = of_model(tmp_path / "run")
    assert Run(trainer, tmp_path / "run").train()
    merged = load_model(tmp_path / "run", device="cpu")
    batch = trainer.data.batch(0)
    losses = []
    for model in (trainer.model.eval(), merged):
        torch.manual_seed(1)
        losses.append(model.loss(batch).value.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert merged.config == trainer.model.config
    assert not any(isinstance(part, AdaptedLinear) for part in merged.modules())


def test_an_adapter_of_the_decoder_keeps_the_fingerprint(adapter, adapter_of_both, random_space):
    base, adapted = load_space(str(random_space)), load_space(str(adapter))
    assert adapted.fingerprint == base.fingerprint
    concepts = [s.encode(["A red boat."], "eng_Latn").concepts for s in (base, adapted)]
    assert (concepts[0] == concepts[1]).all()
    assert load_space(str(adapter_of_both)).fingerprint != base.fingerprint


def test_concept_files_of_the_base_stay_valid(
    lcm, adapter, adapter_of_both, random_space, tmp_path
):
    concepts = tmp_path / "boat.safetensors"
    made = lcm(
        "embed", "-", "--from", "eng", "-o", concepts, "--space", random_space, input=b"A red boat."
    )
    assert made.code == 0, made.stderr
    decoded = lcm("decode", concepts, "--to", "fra", "--space", adapter)
    assert decoded.code == 0, decoded.stderr
    assert lcm("decode", concepts, "--to", "fra", "--space", adapter_of_both).code == 5


@pytest.mark.parametrize("store", [None, "float32", "float16", "int8"])
def test_convert_merges(adapter, tmp_path, store):
    convert(str(adapter), tmp_path / "merged", store)
    assert locate_space(str(tmp_path / "merged")).adapter is None
    adapted, merged = (
        load_space(str(path), device="cpu") for path in (adapter, tmp_path / "merged")
    )
    assert (merged.fingerprint == adapted.fingerprint) == (store in (None, "float32"))
    weights = trainable(adapted)[1].state_dict(), trainable(merged)[1].state_dict()
    step = {None: 0.0, "float32": 0.0, "float16": 2.0**-10, "int8": 1 / 100}[store]
    for name, tensor in weights[0].items():
        assert (weights[1][name] - tensor).abs().max() <= step * tensor.abs().max(), name


@pytest.mark.slow
def test_convert_merges_models(of_model, tmp_path):
    assert Run(of_model(tmp_path / "run"), tmp_path / "run").train()
    convert(str(tmp_path / "run" / "model"), tmp_path / "merged")
    assert "adapter" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    one, other = load_model(tmp_path / "run"), load_model(tmp_path / "merged")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_export_merges(adapter, random_space, tmp_path):
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    found = []
    for source in (adapter, random_space):
        export(str(source), tmp_path / f"{source.name}-hf")
        found.append(load_file(tmp_path / f"{source.name}-hf" / "model.safetensors")[name])
    merged = trainable(load_space(str(adapter)))[1].state_dict()
    assert torch.equal(found[0], merged[name.removeprefix("model.")])
    assert not torch.equal(found[0], found[1])


def test_a_base_in_int8(space_recipe, random_space, tmp_path):
    """Adapters add to the dequantized matrices, also in a space that computes in int8."""
    convert(str(random_space), tmp_path / "int8", "int8")
    start = f'start="{tmp_path / "int8"}"'
    _, folder = space_adapter(space_recipe, tmp_path / "run", start)
    base, merged = (
        trainable(load_space(str(path), device="cpu"))[1].state_dict()
        for path in (tmp_path / "int8", folder)
    )
    for name, (up, down) in read_updates(locate_space(str(folder)).adapter).items():
        assert torch.equal(merged[name], torch.addmm(base[name], up, down))
    concepts = load_space(str(folder)).encode(["A red boat."], "eng_Latn").concepts
    texts = [
        load_space(str(folder), precision=precision).decode(concepts, ["fra_Latn"])["fra_Latn"][0][
            0
        ]
        for precision in ("float32", "int8")
    ]
    assert texts[1].score == pytest.approx(texts[0].score, abs=0.2)
    convert(str(folder), tmp_path / "merged")
    types = {str(t.dtype) for t in load_file(tmp_path / "merged" / "decoder.safetensors").values()}
    assert types == {"torch.int8", "torch.float16"}


def test_a_wrong_base_is_refused(space_recipe, random_space, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(random_space, base)
    _, folder = space_adapter(space_recipe, tmp_path / "run", f'start="{base}"')
    load_space(str(folder))
    change_weights(base / "decoder.safetensors")
    with pytest.raises(
        IntegrityError, match=r"an adapter of .*base' with the weights [0-9a-f]{16}, but"
    ):
        load_space(str(folder))
    shutil.rmtree(base)
    with pytest.raises(NotFoundError, match=r"is an adapter of .*base', which is missing"):
        load_space(str(folder))


def test_a_wrong_base_of_a_model_is_refused(of_model, base_model, tmp_path):
    assert Run(of_model(tmp_path / "run"), tmp_path / "run").train()
    assert locate_model(str(tmp_path / "run")).adapter.config.base == str(base_model)
    change_weights(base_model / "model.safetensors")
    with pytest.raises(IntegrityError, match="but its weights here are"):
        load_model(tmp_path / "run")


def test_adapters_of_adapters_are_refused(space_recipe, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    with pytest.raises(IntegrityError, match="is an adapter itself") as error:
        of_space(space_recipe, tmp_path / "again", f'start="{folder}"')
    assert "convert" in error.value.hint
    config = json.loads((folder / "config.json").read_text())
    config["adapter"]["base"] = str(folder)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="which is an adapter itself"):
        load_space(str(folder))


def test_finetuning_starts_from_an_adapter(space_recipe, adapter, tmp_path):
    """Without [adapter], all weights of the merged networks are trained."""
    recipe = replace(load_recipe(space_recipe, (f'start="{adapter}"',)), adapter=None)
    (tmp_path / "whole").mkdir()
    trainer = make_space_trainer(recipe, tmp_path / "whole", CPU)
    merged = trainable(load_space(str(adapter)))[1].state_dict()
    assert all(torch.equal(t, merged[name]) for name, t in trainer.decoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("adapter.rank=0", "adapter.rank must be at least 1, not 0"),
        ("adapter.rank=-1", "adapter.rank must be at least 1, not -1"),
        ("adapter.rank=500", "adapter.rank = 500 is above"),
        ("adapter.alpha=0.0", "adapter.alpha must be a positive number"),
        ("adapter.dropout=1.0", r"adapter.dropout must be in \[0, 1\)"),
        ('adapter.modules=["decoder.*.quarry"]', "'decoder.*.quarry' matches no linear map"),
        ('adapter.modules=["*embed.weight"]', "matches no linear map"),
        ("adapter.ranks=4", "ranks"),
        ('start=""', "needs start|needs languages"),
    ],
)
def test_clear_errors(space_recipe, tmp_path, change, message):
    with pytest.raises(IntegrityError, match=message.replace("*", r"\*")):
        of_space(space_recipe, tmp_path / "run", change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('train.parallel="fsdp"', "fsdp"),
        ('normalizer="runs/n"', "normalizer"),
        ('start=""', "needs start"),
        ("distill.teacher=other", "teacher"),
    ],
)
def test_clear_errors_of_models(tmp_path, change, message):
    path = tmp_path / "model.toml"
    path.write_text(MODEL_RECIPE.format(space="tiny", start="tiny-base"))
    with pytest.raises(IntegrityError, match=message):
        load_recipe(path, (change,))


def test_a_damaged_adapter_is_an_error(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value, message in (
        ("rank", 5, "is not an adapter of rank 5"),
        ("rank", 0, "rank must be at least 1"),
        ("alpha", -1.0, "alpha must be a positive number"),
        ("base", 3, "base"),
    ):
        table = config["adapter"] | {key: value}
        (folder / "config.json").write_text(json.dumps(config | {"adapter": table}))
        with pytest.raises(IntegrityError, match=message):
            load_space(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "adapter.safetensors")
    name = min(tensors)
    for damaged in (
        {},
        {key: tensor for key, tensor in tensors.items() if key != name},
        tensors | {name: tensors[name][0]},
        tensors
        | {"other.lora_a.weight": torch.zeros(4, 3), "other.lora_b.weight": torch.zeros(3, 4)},
    ):
        save_file(damaged, folder / "adapter.safetensors")
        with pytest.raises(IntegrityError, match=r"not an adapter of rank 4|no matrix other"):
            load_space(str(folder))
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"adapter.safetensors is missing"):
        load_space(str(folder))


def test_an_adapter_is_zero_at_first():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    x = torch.randn(3, 6)
    before = network(x)
    attach([network], ["0", "2.weight"], rank=2, alpha=4.0)
    assert torch.equal(network(x), before)
    assert [type(part) for part in network] == [AdaptedLinear, torch.nn.ReLU, AdaptedLinear]


def test_the_command_trains_resumes_and_describes(lcm, space_recipe, random_space, tmp_path):
    run = tmp_path / "run"
    estimate = json.loads(
        lcm("train", space_recipe, "--dry-run", "--json", "--set", "adapter.rank=2").stdout
    )
    assert estimate["trained"] < estimate["parameters"] / 5
    assert lcm("train", space_recipe, "-o", run).code == 0
    assert lcm("train", run, "--resume", "--set", "train.steps=8").code == 0
    shown = json.loads(lcm("inspect", run / "space", "--json").stdout)["adapter"]
    assert shown["base"] == str(random_space) and shown["rank"] == 4
    assert shown["parameters"] == sum(
        t.numel() for t in load_file(run / "space" / "adapter.safetensors").values()
    )
    for command in (("inspect",), ("checkpoints", "show")):
        assert (
            f"{random_space}, weights {shown['fingerprint']}"
            in lcm(*command, run / "space", COLUMNS="300").stdout
        )
    listed = json.loads(lcm("checkpoints", "show", run / "space", "--json").stdout)
    assert listed["adapter"]["rank"] == 4 and AdapterOptions().rank == 8
    assert np.isfinite(listed["bytes"])


@pytest.mark.gpu
def test_a_gpu_computes_with_the_adapters(space_recipe, tmp_path):
    """There, attention multiplies by three matrices at once, unless these are adapted."""
    encoder = of_space(space_recipe, tmp_path / "run", 'adapter.modules=["*"]').encoder.eval()
    rows = [[5, 6, 7, 8], [5, 9, 10]]
    before = encoder(rows).detach()
    for name, p in encoder.named_parameters():
        if name.endswith("lora_b.weight"):
            torch.nn.init.normal_(p)
    ours, on_gpu = encoder(rows).detach(), encoder.to("cuda")(rows).detach().cpu()
    assert not torch.allclose(ours, before, atol=1e-2)
    torch.testing.assert_close(on_gpu, ours, atol=1e-3, rtol=1e-3)
