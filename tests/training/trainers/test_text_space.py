"""Training a space: learning, exact resumption, and errors."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import additions, assert_near, rounding
from safetensors import safe_open
from safetensors.torch import load_file

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.space import load_space
from lcm_cli.training.data.parallel_text import NONE, Pairs, read_translations
from lcm_cli.training.loop import Run
from lcm_cli.training.optim import learning_rate, orthogonalize
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.states import read_state, states
from lcm_cli.training.trainers.space_parts import trainable
from lcm_cli.training.trainers.text_space import (
    SpaceTrainer,
    _uncompiled,
    center,
    make_space_trainer,
)
from lcm_cli.training.trainers.token_loss import _pure_slopes, _slopes, _TiedCrossEntropy
from lcm_cli.transfer.convert import convert

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
    return make_space_trainer(load_recipe(recipe, changes), folder, torch.device("cpu"))


def weights(trainer: SpaceTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


def test_it_starts_from_a_space_in_int8(random_space, tmp_path):
    """Finetuning starts from the space's numbers, and does not change its files."""
    convert(str(random_space), tmp_path / "int8", "int8")
    convert(str(tmp_path / "int8"), tmp_path / "float32", "float32")
    before = (tmp_path / "int8" / "encoder.safetensors").read_bytes()
    stored, plain = (trainable(load_space(str(tmp_path / n))) for n in ("int8", "float32"))
    for one, other in zip(stored, plain, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert a.requires_grad and torch.equal(a, b)
            a.data.add_(1.0)
    assert (tmp_path / "int8" / "encoder.safetensors").read_bytes() == before


@pytest.mark.slow
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


def batches(trainer: SpaceTrainer, seed: int = 0, **shares: float) -> list[Pairs]:
    shares = {"join": 0.0, "translate": trainer.options.translate} | shares
    pairs, found = trainer.data.epoch(seed, 0, trainer.options.batch_tokens, **shares)
    return [pairs[batch] for batch in found]


@pytest.mark.slow
def test_contrast_sets_other_sentences_apart(recipe, tmp_path):
    def mean_loss(weight: float) -> float:
        changes = (f"train.contrast={weight}", "train.align=0.0", "train.steps=60")
        trainer = begin(recipe, tmp_path / f"run{weight}", "train.join=0.0", *changes)
        for _ in range(trainer.steps):
            trainer.train_step()
        losses = [trainer.losses(batch)[2].item() for batch in batches(trainer, 5)]
        return float(np.mean(losses))

    assert mean_loss(1.0) < 0.3 * mean_loss(0.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_targets_are_translations_as_often_as_the_recipe_says(recipe, tmp_path, share):
    trainer = begin(recipe, tmp_path / "run", f"train.translate={share}")
    pairs = batches(trainer)[0]
    left, right = pairs.sentences_N4[:, :2], pairs.sentences_N4[:, 2:]
    wanted = [right, left] if share else [left, right]
    assert torch.equal(pairs.targets(), torch.cat(wanted))


def test_a_sentence_without_translation_is_decoded_into_itself(tmp_path, recipe):
    data = tmp_path / "alone.jsonl"
    lines = [{"eng_Latn": line["eng_Latn"]} for line in LINES]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = (f'data.train=["{data}"]', "train.translate=1.0", "shape.vocabulary=300")
    trainer = begin(recipe, tmp_path / "run", *changes)
    for pairs in batches(trainer):
        assert not pairs.aligned_N.any() and torch.equal(pairs.targets(), pairs.sides())
        token_loss, align, contrast = trainer.losses(pairs)
        assert token_loss > 0 and align == contrast == 0


def test_a_batch_filled_up_gives_the_same_numbers(recipe, tmp_path):
    changes = ("train.noise=0.0", "train.contrast=0.1", "train.smoothing=0.1", "train.join=0.5")
    trainer = begin(recipe, tmp_path / "run", *changes)
    data, o = trainer.data, trainer.options
    pairs, found = data.epoch(0, 0, o.batch_tokens, join=o.join, translate=o.translate)
    room = data.room(found, o.batch_tokens)
    for batch in found:
        results = []
        for some, place in ((pairs[batch], None), (pairs[batch].padded(room.pairs), room)):
            losses = trainer.losses(some, place)
            grads = torch.autograd.grad(sum(losses), trainer.parameters)
            results.append([*losses, *grads])
        most = max(part.detach().abs().max().item() for part in results[0])
        for plain, filled in zip(*results, strict=True):
            # Biases of keys do not change attention: their gradients are only rounding errors.
            size = max(plain.detach().abs().max().item(), most / 100)
            assert_near(filled, plain, terms=additions(trainer.encoder) * len(pairs), size=size)


def test_dropout_is_for_training_alone(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run", "train.dropout=0.3", "train.noise=0.0")
    pairs = batches(trainer)[0]
    first, second = (trainer.losses(pairs)[0].item() for _ in range(2))
    assert first != second
    with trainer.average.used(trainer.networks.values()):
        first, second = (trainer.losses(pairs)[0].item() for _ in range(2))
    assert first == second


def test_an_average_of_the_weights_is_what_is_saved(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run", "train.ema=0.9")
    for _ in range(30):
        trainer.train_step()
    weight = trainer.decoder.decoder.layers[0].ffn.inner_proj.weight
    mine = [average for p, average in zip(trainer.parameters, trainer.average.weights, strict=True)
            if p is weight]  # fmt: skip
    path = trainer.export(tmp_path / "run") / "decoder.safetensors"
    with safe_open(path, "pt") as file:
        saved = file.get_tensor("decoder.layers.0.ffn.inner_proj.weight")
    assert torch.equal(saved, mine[0].half()) and not torch.equal(saved, weight.detach().half())


@pytest.mark.slow
def test_weight_decay_shrinks_matrices_alone(recipe, tmp_path):
    def norms(decay: float) -> tuple[float, float]:
        changes = (f"train.weight_decay={decay}", "train.steps=60", "train.decay=0.0")
        trainer = begin(recipe, tmp_path / f"run{decay}", *changes)
        for _ in range(60):
            trainer.train_step()
        layer = trainer.encoder.encoder.layers[0]
        return layer.ffn.inner_proj.weight.norm().item(), layer.ffn_layer_norm.weight.norm().item()

    (matrix, norm), (plain_matrix, plain_norm) = norms(2.0), norms(0.0)
    assert matrix < 0.8 * plain_matrix and norm == pytest.approx(plain_norm, rel=0.1)


def test_centring_changes_no_text(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run")
    for _ in range(5):
        trainer.train_step()
    encoder, decoder = trainer.encoder, trainer.decoder
    rows = [[4, 5, 6, 3], [5, 7, 8, 9, 3], [6, 11, 3]]
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


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [7, 10])
def test_a_resumed_run_is_the_uninterrupted_one(recipe, tmp_path, stopped_at):
    changes = ("train.dropout=0.1", "train.ema=0.9")
    whole = begin(recipe, tmp_path / "whole", *changes)
    Run(whole, tmp_path / "whole").train()
    half = begin(recipe, tmp_path / "half", *changes)
    run = Run(half, tmp_path / "half")
    original = half.train_step

    def until_then() -> dict[str, float]:
        metrics = original()
        if half.step == stopped_at:
            raise KeyboardInterrupt  # like a kill: unsaved state is lost
        return metrics

    half.train_step = until_then
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = begin(recipe, tmp_path / "half", *changes)
    resumed = Run(again, tmp_path / "half")
    resumed.resume()
    assert again.step == 5 * ((stopped_at - 1) // 5)
    assert resumed.train()
    assert torch.equal(weights(whole), weights(again))
    for average, same in zip(whole.average.weights, again.average.weights, strict=True):
        assert torch.equal(average, same)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_stopped_process_goes_on(recipe, run, tmp_path, how):
    folder, errors = tmp_path / "run", tmp_path / "errors"
    steps = ("--set", "train.steps=60", "--set", "train.save_every=10")
    common = ("train", recipe, "-o", folder, *steps, "--device", "cpu")
    log = folder / "metrics.jsonl"  # its first record comes after the first state
    code = run(*common, errors=errors, seconds=0.05, how=how, after=log)
    if how == "SIGTERM":
        assert code == 0 and "--resume" in errors.read_text()
        assert (folder / "space" / "config.json").is_file()
    else:
        assert code == -signal.SIGKILL
    assert run(*common, "--resume", "--json", errors=errors) == 0, errors.read_text()
    assert '{"step": 60' in errors.read_text()  # stdout, too
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 60
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


def test_finetuning_starts_from_a_space(recipe, random_space, tmp_path):
    changes = (f'start="{random_space}"', "train.steps=3", "train.learning_rate=1e-4")
    trainer = begin(recipe, tmp_path / "run", *changes, "train.warmup=0")
    start = load_space(str(random_space))
    before = start.encode(["Tom sleeps."], "eng_Latn").concepts
    assert Run(trainer, tmp_path / "run").train()
    tuned = load_space(str(tmp_path / "run" / "space"))
    assert tuned.languages == start.languages and tuned.licence == "MIT"
    after = tuned.encode(["Tom sleeps."], "eng_Latn").concepts
    assert 0 < np.abs(after - before).max() < 0.5


def test_a_frozen_encoder_keeps_the_concepts(recipe, random_space, tmp_path):
    """Only the decoder is in the optimizers, so the finetuned space has the same fingerprint."""
    changes = (f'start="{random_space}"', 'train.freeze=["encoder.*"]', "train.steps=3")
    trainer = begin(recipe, tmp_path / "run", *changes)
    held = {id(p) for part in trainer.optimizers for g in part.param_groups for p in g["params"]}
    assert held == {id(p) for p in trainer.decoder.parameters()}
    assert "M of them trained" in trainer.summary
    before = weights(trainer)
    assert Run(trainer, tmp_path / "run").train()
    assert not torch.equal(weights(trainer), before)
    start, tuned = load_space(str(random_space)), load_space(str(tmp_path / "run" / "space"))
    assert start.fingerprint == tuned.fingerprint


def test_a_shared_embedding_is_frozen_by_either_name(recipe, tmp_path):
    for number, changes in enumerate(((), ("shape.tie=false",))):
        freezing = 'train.freeze=["decoder.decoder_frontend.*"]'
        trainer = begin(recipe, tmp_path / f"run{number}", freezing, *changes)
        embeddings = [trainer.encoder.encoder_frontend, trainer.decoder.decoder_frontend]
        assert [each.embed.weight.requires_grad for each in embeddings] == [number == 1, False]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [('["encodr.*"]', "no parameter matches 'encodr"), ('["*"]', "nothing to train")],
)
def test_freezing_nothing_or_everything(recipe, tmp_path, patterns, words):
    with pytest.raises(IntegrityError, match=words):
        begin(recipe, tmp_path / "run", f"train.freeze={patterns}")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_sliced_cross_entropy_is_the_plain_one(smoothing):
    torch.manual_seed(0)
    hidden, weight = torch.randn(1300, 8), torch.randn(40, 8)
    targets = torch.randint(40, (1300,))
    targets[::7] = NONE
    grads = []
    for loss_of in (
        lambda h, w: _TiedCrossEntropy.apply(h, w, targets, smoothing, False)[0] / 7,
        lambda h, w: (
            torch.nn.functional.cross_entropy(
                h @ w.T, targets, ignore_index=NONE, label_smoothing=smoothing, reduction="sum"
            )
            / 7
        ),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(h, w)
        loss.backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for ours, plain in zip(*grads, strict=True):
        assert_near(ours, plain, terms=len(targets))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_slopes_in_place_and_to_be_compiled_are_those_of_autograd(smoothing):
    """Spare columns, which pad the vocabulary to a multiple of 8, have no probability."""
    torch.manual_seed(0)
    logits, wanted, vocabulary = 5 * torch.randn(50, 40), torch.randint(37, (50, 1)), 37
    raw = logits.clone().requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        raw[:, :vocabulary], wanted[:, 0], label_smoothing=smoothing, reduction="none"
    )
    losses.sum().backward()
    for slopes in (_slopes, _pure_slopes):
        found, grad = slopes(logits.clone(), wanted, vocabulary, smoothing)
        assert_near(found[:, 0], losses.detach(), terms=vocabulary)
        assert_near(grad[:, :vocabulary], raw.grad[:, :vocabulary], terms=vocabulary)
        assert grad.isfinite().all()  # the weights of spare columns are 0, and 0 x inf is NaN


def test_torch_before_2_6_has_no_stance_of_compiled_layers(monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    with _uncompiled(True):
        pass


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
    for join in (0.0, 0.5):
        found = torch.cat([pairs.sentences_N4 for pairs in batches(trainer, join=join)])
        numbers = sorted(found[found != NONE].tolist())
        assert numbers == list(range(2 * len(LINES)))  # both sides of each pair, once
        again = torch.cat([pairs.sentences_N4 for pairs in batches(trainer, join=join)])
        other = torch.cat([pairs.sentences_N4 for pairs in batches(trainer, 1, join=join)])
        assert torch.equal(found, again)
        assert found.shape != other.shape or not torch.equal(found, other)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("train.stepz=5", IntegrityError, "steps"),
        ("train.dropout=1.0", IntegrityError, "dropout"),
        ('data.train=["a.jsonl=dev"]', IntegrityError, "splits"),
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


@pytest.mark.parametrize("line", ["{", "[1]", '{"eng_Latn": 5}', '{"eng_Latn": []}'])
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + line + "\n")
    with pytest.raises(IntegrityError, match=r"bad\.jsonl:2"):
        list(read_translations(path))


def test_a_run_is_not_overwritten(recipe, run, tmp_path):
    folder = tmp_path / "run"
    Run(begin(recipe, folder), folder).train()
    errors = tmp_path / "errors"
    assert run("train", recipe, "-o", folder, "--device", "cpu", errors=errors) == 2
    assert "--resume" in errors.read_text()


def test_a_damaged_state_is_refused(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run")
    (tmp_path / "run" / "state-000000005.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(IntegrityError, match=r"state-000000005\.pt"):
        Run(trainer, tmp_path / "run").resume()


def test_int8_trains_the_numbers_that_are_stored(recipe: Path, tmp_path: Path) -> None:
    trainer = begin(recipe, tmp_path / "run", 'train.store="int8"', "train.learning_rate=1e-4")
    exact = [p.detach().clone() for p in trainer.parameters if p.dim() == 2]
    batch = trainer._batch()
    with trainer._rounded(), torch.no_grad():
        torch.manual_seed(3)
        computed = trainer.losses(batch)
    space = trainer.export(tmp_path / "run")
    stored = load_file(space / "decoder.safetensors")
    assert stored["decoder_frontend.embed.weight"].dtype == torch.int8
    networks = trainable(load_space(str(space), device="cpu", precision="float32"))
    for network, found in zip((trainer.encoder, trainer.decoder), networks, strict=True):
        network.load_state_dict(found.state_dict())
    torch.manual_seed(3)
    with torch.no_grad():
        again = trainer.losses(batch)
    # Vectors lose digits in float16, and a new space is centred.
    assert float(again[0]) == pytest.approx(float(computed[0]), abs=2e-3)
    for matrix, before in zip((p for p in trainer.parameters if p.dim() == 2), exact, strict=True):
        with torch.no_grad():
            matrix.copy_(before)
    trainer.train_step()
    moved = [
        (p.detach() - before).abs().max() / before.abs().max()
        for p, before in zip((p for p in trainer.parameters if p.dim() == 2), exact, strict=True)
    ]
    assert 0 < max(moved) < 1 / 254  # less than the rounding, and kept


def test_adapters_are_not_trained_as_int8(recipe: Path) -> None:
    changes = ('train.store="int8"', 'start="tiny"', "adapter.rank=2")
    with pytest.raises(IntegrityError, match=r"adapter.*int8"):
        load_recipe(recipe, changes)
