"""Training a space: it learns, it stops and goes on exactly, it says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import additions, assert_near, rounding

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.space import load_space
from lcm_cli.training.loop import Run
from lcm_cli.training.optim import learning_rate, orthogonalize
from lcm_cli.training.parallel_text import ParallelText, read_translations
from lcm_cli.training.recipe import load_recipe
from lcm_cli.training.space import SpaceTrainer, center, make_trainer
from lcm_cli.training.states import read_state, states
from lcm_cli.training.token_loss import _TiedCrossEntropy

NAMES = ["Tom", "Mary", "the cat", "the dog", "my friend"]
NOMS = ["Tom", "Marie", "le chat", "le chien", "mon ami"]
VERBS = ["sleeps", "sings", "waits", "laughs"]
VERBES = ["dort", "chante", "attend", "rit"]
LINES = [
    {"eng_Latn": f"{name} {verb}.", "fra_Latn": f"{nom} {verbe}."}
    for name, nom in zip(NAMES, NOMS, strict=True)
    for verb, verbe in zip(VERBS, VERBES, strict=True)
]
RECIPE = """
kind = "space"
name = "micro"
licence = "MIT"
languages = ["eng_Latn", "fra_Latn"]
[data]
train = ["{data}"]
dev = ["{data}"]
[shape]
vocabulary = 340
dim = 32
heads = 2
ffn_dim = 64
encoder_layers = 1
decoder_layers = 1
max_length = 32
[train]
steps = 24
batch_tokens = 120
learning_rate = 1e-2
warmup = 4
noise = 0.1
save_every = 5
eval_every = 100
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    path = tmp_path / "micro.toml"
    path.write_text(RECIPE.format(data=data))
    return path


def begin(recipe: Path, folder: Path, *changes: str) -> SpaceTrainer:
    folder.mkdir(exist_ok=True)
    return make_trainer(load_recipe(recipe, changes), folder, torch.device("cpu"))


def weights(trainer: SpaceTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


def test_it_learns_to_say_and_to_translate(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run", "train.steps=200", "train.join=0.0")
    records = []
    assert Run(trainer, tmp_path / "run", report=records.append).train()
    scores = records[-1]["eval"]
    assert scores["autoencoding"] > 90 and scores["translation"] > 90 and scores["xsim"] > 90
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0] / 4
    space = load_space(str(tmp_path / "run" / "space"))
    found = space.decode(space.encode(["the cat sings."], "eng_Latn").concepts, ["fra_Latn"])
    assert found["fra_Latn"][0][0].text == "le chat chante."
    concepts = space.encode([line["eng_Latn"] for line in LINES], "eng_Latn").concepts
    assert np.linalg.norm(concepts.mean(0)) < 0.5 * np.linalg.norm(concepts, axis=1).mean()


def test_contrast_sets_other_sentences_apart(recipe, tmp_path):
    def mean_loss(weight: float) -> float:
        changes = (f"train.contrast={weight}", "train.align=0.0", "train.steps=60")
        trainer = begin(recipe, tmp_path / f"run{weight}", "train.join=0.0", *changes)
        for _ in range(trainer.steps):
            trainer.train_step()
        losses = [trainer._losses([trainer.data.example(item) for item in batch], rng())[2].item()
                 for batch in trainer.data.batches(5, 0, 120, 0.0)]  # fmt: skip
        return float(np.mean(losses))

    def rng() -> np.random.Generator:
        return np.random.default_rng(0)

    assert mean_loss(1.0) < 0.3 * mean_loss(0.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_targets_are_translations_as_often_as_the_recipe_says(recipe, tmp_path, share):
    trainer = begin(recipe, tmp_path / "run", f"train.translate={share}")
    examples = [trainer.data.example(item) for item in trainer.data.batches(0, 0, 120, 0.0)[0]]
    seen: list[list[list[int]]] = []
    original = trainer._decoding_loss

    def look(concepts_RD: torch.Tensor, targets: list[list[int]]) -> torch.Tensor:
        seen.append(targets)
        return original(concepts_RD, targets)

    trainer._decoding_loss = look
    trainer._losses(examples, np.random.default_rng(0))
    own = [e.left for e in examples] + [e.right for e in examples]
    other = [e.right for e in examples] + [e.left for e in examples]
    assert seen == [other if share else own]


def test_centring_changes_no_text(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run")
    for _ in range(5):
        trainer.train_step()
    encoder, decoder = trainer.encoder, trainer.decoder
    rows = [trainer.data.example(item).left for item in trainer.data.batches(0, 0, 120, 0.0)[0]]
    with torch.no_grad():
        before = decoder.project(decoder(encoder(rows), rows))
        states = encoder.state_dict(), decoder.state_dict()
        center(*states, encoder(rows).mean(dim=0))
        encoder.load_state_dict(states[0])
        decoder.load_state_dict(states[1])
        concepts, terms = encoder(rows), additions(encoder) + additions(decoder)
        assert concepts.mean(dim=0).abs().max() < rounding(terms) * concepts.abs().max()
        after = decoder.project(decoder(concepts, rows))
    assert_near(after, before, terms)


@pytest.mark.parametrize("stopped_at", [7, 10])
def test_a_resumed_run_is_the_uninterrupted_one(recipe, tmp_path, stopped_at):
    whole = begin(recipe, tmp_path / "whole")
    Run(whole, tmp_path / "whole").train()
    half = begin(recipe, tmp_path / "half")
    run = Run(half, tmp_path / "half")
    original = half.train_step

    def until_then() -> dict[str, float]:
        metrics = original()
        if half.step == stopped_at:
            raise KeyboardInterrupt  # as after a kill: whatever was not saved is gone
        return metrics

    half.train_step = until_then
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = begin(recipe, tmp_path / "half")
    resumed = Run(again, tmp_path / "half")
    resumed.resume()
    assert again.step == 5 * ((stopped_at - 1) // 5)
    assert resumed.train()
    assert torch.equal(weights(whole), weights(again))


def lcm(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lcm_cli", "train", *arguments, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env=environment)  # fmt: skip


def wait_for_state(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not states(folder) and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_goes_on(recipe, tmp_path, how):
    folder = tmp_path / "run"
    steps = ("--set", "train.steps=150", "--set", "train.save_every=10")
    process = lcm(str(recipe), "-o", str(folder), *steps)
    wait_for_state(folder)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert process.returncode == 0 and "--resume" in errors
        assert (folder / "space" / "config.json").is_file()
    resumed = lcm(str(recipe), "-o", str(folder), *steps, "--resume", "--json")
    out, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert json.loads(out.splitlines()[-1])["step"] == 150
    whole = begin(recipe, tmp_path / "whole", *steps[1::2])
    Run(whole, tmp_path / "whole").train()
    state = read_state(folder)[0]["trainer"]
    for key, value in whole.state()["decoder"].items():
        assert torch.equal(value, state["decoder"][key])


def test_max_minutes_stops_and_saves(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run")
    assert not Run(trainer, tmp_path / "run", max_minutes=0).train()
    assert states(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run")
    trainer.train_step()
    trainer.encoder.layer_norm.weight.data.fill_(float("nan"))
    with pytest.raises(LcmError, match="step 2"):
        Run(trainer, tmp_path / "run").train()
    assert not states(tmp_path / "run")


def test_finetuning_starts_from_a_space(recipe, tmp_path):
    changes = ('start="tiny"', "train.steps=3", "train.learning_rate=1e-4", "train.warmup=0")
    trainer = begin(recipe, tmp_path / "run", *changes)
    tiny = load_space("tiny")
    before = tiny.encode(["Tom sleeps."], "eng_Latn").concepts
    assert Run(trainer, tmp_path / "run").train()
    tuned = load_space(str(tmp_path / "run" / "space"))
    assert tuned.languages == tiny.languages and tuned.licence == "MIT"
    after = tuned.encode(["Tom sleeps."], "eng_Latn").concepts
    assert 0 < np.abs(after - before).max() < 0.5


def test_the_sliced_cross_entropy_is_the_plain_one():
    torch.manual_seed(0)
    hidden, weight = torch.randn(1300, 8), torch.randn(40, 8)
    targets = torch.randint(40, (1300,))
    grads = []
    for loss_of in (
        lambda h, w: _TiedCrossEntropy.apply(h, w, targets)[0] / 7,
        lambda h, w: torch.nn.functional.cross_entropy(h @ w.T, targets, reduction="sum") / 7,
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(h, w)
        loss.backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for ours, plain in zip(*grads, strict=True):
        assert_near(ours, plain, terms=len(targets))


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 6, 6)])
def test_orthogonalize_makes_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    rates = [learning_rate(step, 100, 1.0, 10, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:80] == [1.0] * 71
    assert rates[90] == pytest.approx(0.5) and rates[100] == 0


def test_batches_hold_every_line_once_and_depend_on_the_seed(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run")
    data: ParallelText = trainer.data
    for join in (0.0, 0.5):
        batches = data.batches(0, 0, 60, join)
        seen = sorted(i // 2 for batch in batches for item in batch for i in item)
        lines = {sentence: g for g, group in enumerate(data._groups) for sentence in group}
        groups = sorted(lines[i] for batch in batches for item in batch for i in item)
        assert groups == sorted(2 * list(range(len(LINES)))) and len(seen) == len(groups)
        assert batches == data.batches(0, 0, 60, join) != data.batches(0, 1, 60, join)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("train.stepz=5", IntegrityError, "steps"),
        ("train.steps=many", IntegrityError, "many"),
        ("nonsense", UsageError, "key=value"),
        ("shape.heads=3", IntegrityError, "multiple"),
        ('languages=["eng_Latn"]', IntegrityError, "fra_Latn"),
        ("shape.vocabulary=20", IntegrityError, "vocabulary"),
        ('data.train=["nowhere.jsonl"]', NotFoundError, "nowhere.jsonl"),
        ('start="tinny"', NotFoundError, "tinny"),
    ],
)
def test_bad_recipes(recipe, tmp_path, change, error, words):
    with pytest.raises(error) as caught:
        begin(recipe, tmp_path / "run", change)
    assert words in caught.value.message + caught.value.hint


@pytest.mark.parametrize("line", ["{", "[1]", '{"eng_Latn": 5}'])
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + line + "\n")
    with pytest.raises(IntegrityError, match=r"bad\.jsonl:2"):
        list(read_translations([path]))


def test_a_run_is_not_overwritten(recipe, tmp_path):
    folder = tmp_path / "run"
    Run(begin(recipe, folder), folder).train()
    process = lcm(str(recipe), "-o", str(folder))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "--resume" in errors


def test_a_damaged_state_is_refused(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run")
    (tmp_path / "run" / "state-000000005.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(IntegrityError, match=r"state-000000005\.pt"):
        Run(trainer, tmp_path / "run").resume()
