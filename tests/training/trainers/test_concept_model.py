"""Training concept models: learning, exact resumption, and errors."""

import json
import math

import numpy as np
import pytest
import torch

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.next_concept import next_concept_metrics
from lcm_cli.models.checkpoint import load_model
from lcm_cli.models.diffusion_training import Draws
from lcm_cli.training.loop import Run
from lcm_cli.training.states import states

FLOW = ('model.schedule.name="straight"', 'model.schedule.prediction="flow"')
ARCHITECTURES = ("base", "one_tower", "two_tower", "quant", "sonar_llm")


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def train(trainer, folder, **options):
    records = []
    run = Run(trainer, folder, report=records.append, **options)
    finished = run.train()
    return finished, records


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("base", ())]
    + [
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (
            ("base", ('train.optimizer="muon"',)),
            ("two_tower", ()),
            ("one_tower", ()),
            ("one_tower", FLOW),
            ("two_tower", FLOW),
            ("quant", ('model.flavour="continuous"',)),
            ("quant", ('space="tiny"',)),  # its codes say little in a few dimensions
            ("sonar_llm", ()),
        )
    ],
)
def test_every_model_learns(start, tmp_path, architecture, changes):
    steps = ("train.steps=80", "train.warmup=0", "train.learning_rate=3e-3", "train.eval_every=80")
    space, dim = ("tiny", 384) if 'space="tiny"' in changes else ("random", 32)
    trainer = start(tmp_path, *steps, *changes, architecture=architecture, dim=dim)
    finished, records = train(trainer, tmp_path)
    losses = [record["loss"] for record in records if "loss" in record]
    assert finished and losses[-1] < 0.8 * losses[0]
    scores = records[-1]["eval"]
    assert 0 < scores["loss"] < losses[0] and {"l2", "l2_r", "par", "ca"} <= set(scores)
    model = load_model(tmp_path / "model")
    assert model.config.space.name == space and model.config.space.fingerprint
    assert torch.equal(torch.cat([p.flatten() for p in model.parameters()]), weights(trainer))
    if architecture != "sonar_llm":
        assert not torch.equal(model.normalizer.scale, torch.ones(dim))  # it was fitted
    assert log_of(tmp_path) == records


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["base", "two_tower", "quant"])
def test_a_resumed_run_is_the_uninterrupted_one(start, tmp_path, architecture):
    extra = ("train.ema=0.9", "train.accumulate=2", "train.eval_every=7")
    whole = start(tmp_path / "whole", *extra, architecture=architecture)
    train(whole, tmp_path / "whole")
    half = start(tmp_path / "half", *extra, architecture=architecture)
    step = half.train_step

    def killed():
        if half.step == 14:
            raise KeyboardInterrupt  # unsaved state is lost
        return step()

    half.train_step = killed
    with pytest.raises(KeyboardInterrupt):
        Run(half, tmp_path / "half").train()
    again = start(tmp_path / "half", *extra, architecture=architecture)
    run = Run(again, tmp_path / "half")
    run.resume()
    assert again.step == 10 and run.train()
    assert torch.equal(weights(whole), weights(again))
    for left, right in zip(whole.average, again.average, strict=True):
        assert torch.equal(left, right)
    steps = [
        [(record["step"], record.get("eval")) for record in log_of(tmp_path / name)]
        for name in ("whole", "half")
    ]
    assert steps[0] == steps[1]


def test_states_are_few_and_the_best_model_is_kept(start, tmp_path):
    trainer = start(tmp_path, "train.steps=23", "train.keep=3")
    train(trainer, tmp_path)
    assert [path.name[-5:-3] for path in states(tmp_path)] == ["15", "20", "23"]
    assert load_model(tmp_path / "best" / "model").config == trainer.model.config


def test_parts_of_a_batch_add_up(start, tmp_path):
    """A batch in two micro-batches has the gradient of the whole (without randomness)."""
    dry = ("model.transformer.dropout=0.0", "train.clip=0.0")
    whole = start(tmp_path / "a", *dry)
    parts = start(tmp_path / "b", *dry, "train.accumulate=4")
    for _ in range(3):
        losses = whole.train_step()["loss"], parts.train_step()["loss"]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-3, atol=1e-5)


def drawn_by_document(model, batch):
    """Return the loss with random numbers that depend on the document, not on its micro-batch."""
    x0_BSD, _ = batch.targets(model.normalized(batch.concepts_BSD))
    noise_BSD, timesteps_BS = torch.zeros_like(x0_BSD), torch.zeros(x0_BSD.shape[:2]).long()
    for row, concepts_SD in enumerate(batch.concepts_BSD):
        rng = np.random.default_rng(concepts_SD[0].numpy().view(np.uint32))
        timesteps_BS[row] = torch.from_numpy(rng.integers(100, size=99))[: x0_BSD.shape[1]]
        noise_BSD[row] = torch.from_numpy(rng.standard_normal(x0_BSD.shape[1:]))
    return model.loss(batch, draws=Draws(noise_BSD, timesteps_BS, None))


@pytest.mark.parametrize("weighting", ["clamped_snr", "none"])
def test_weights_of_noise_levels_do_not_depend_on_accumulate(start, tmp_path, weighting):
    gradients, losses = [], []
    for accumulate in (1, 2, 3):
        trainer = start(
            tmp_path / str(accumulate),
            f'model.objective.weighting="{weighting}"',
            "model.objective.snr_min=0.001",
            "model.transformer.dropout=0.0",
            f"train.accumulate={accumulate}",
            architecture="one_tower",
        )
        assert trainer.model.config.schedule.steps == 100
        trainer.loss_module.objective = drawn_by_document
        trainer._update = lambda rate, own=trainer: gradients.append(
            torch.cat([p.grad.flatten() for p in own.parameters if p.grad is not None])
        )
        losses.append(trainer.train_step()["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lower_precision_trains(start, tmp_path, architecture, precision):
    full = start(tmp_path / "full", architecture=architecture)
    half = start(tmp_path / "half", f'train.precision="{precision}"', architecture=architecture)
    # Rounded concepts may get other codes, each of which moves the loss by a step.
    rel = 0.04 if architecture == "quant" else 0.02
    assert half.train_step()["loss"] == pytest.approx(full.train_step()["loss"], rel=rel)
    before = weights(half)
    for _ in range(12):  # the first steps overflow in float16, and the loss scale falls
        half.train_step()
    assert not torch.equal(before, weights(half)) and torch.isfinite(weights(half)).all()
    assert weights(half).dtype == torch.float32


def test_recomputed_activations_change_nothing(start, tmp_path):
    plain, again = start(tmp_path / "a"), start(tmp_path / "b", "train.checkpointing=true")
    for _ in range(3):
        plain.train_step(), again.train_step()
    assert torch.equal(weights(plain), weights(again))


FROZEN = ("frontend.*", "lcm.layers.0.*")


def test_frozen_parameters_stay(start, tmp_path):
    """They keep every bit, are in no optimizer, and a stopped run resumes exactly."""
    changes = (f"train.freeze={json.dumps(FROZEN)}", "train.ema=0.9", 'train.optimizer="muon"')
    whole, half, again = (start(tmp_path / "run", *changes) for _ in range(3))
    before = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    held = {p for part in whole.optimizers for group in part.param_groups for p in group["params"]}
    for _ in range(4):
        whole.train_step()
    saved = load_model(whole.export(tmp_path / "whole")).state_dict()
    for name, p in whole.model.named_parameters():
        frozen = name.startswith(("frontend.", "lcm.layers.0."))
        assert torch.equal(p, before[name]) == torch.equal(saved[name], before[name]) == frozen
        assert (p in held) != frozen
    half.train_step(), half.train_step()
    assert not train(half, tmp_path / "run", max_minutes=0)[0]
    Run(again, tmp_path / "run").resume()
    again.train_step(), again.train_step()
    assert again.step == 4 and torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("pattern", ["*.weight", "*.bias"])
def test_muon_without_matrices_or_anything_else(start, tmp_path, pattern):
    """An optimizer that has nothing to train is left out."""
    trainer = start(tmp_path, f'train.freeze=["{pattern}"]', 'train.optimizer="muon"')
    before = weights(trainer).clone()
    trainer.train_step(), trainer.train_step()
    assert not torch.equal(weights(trainer), before)


def test_freezing_what_is_not_there(start, tmp_path):
    with pytest.raises(IntegrityError, match=r"no parameter matches 'fronted.\*' or 'x'") as caught:
        start(tmp_path, 'train.freeze=["fronted.*", "postnet.*", "x"]')
    assert "frontend" in caught.value.hint
    with pytest.raises(IntegrityError, match=r"\['\*'\] leaves nothing to train"):
        start(tmp_path, 'train.freeze=["*"]')


def test_a_run_without_progress_ends_early(start, tmp_path):
    changes = ("train.learning_rate=0.0", "train.initial_rate=0.0", "train.final_rate=0.0")
    trainer = start(tmp_path, *changes, "train.eval_every=3", "train.patience=2")
    finished, _ = train(trainer, tmp_path)
    assert finished and trainer.step == 9


def test_a_bad_batch_stops_the_run_and_is_named(start, tmp_path):
    trainer = start(tmp_path)
    trainer.data.poisoned = {7}
    with pytest.raises(LcmError, match=r"step 7, batch 7 \(8 documents.*not all.*finite") as error:
        Run(trainer, tmp_path).train()
    assert "on_nan" in error.value.hint and states(tmp_path)[-1].name == "state-000000005.pt"


def test_bad_batches_can_be_skipped(start, tmp_path):
    trainer = start(tmp_path, 'train.on_nan="skip"')
    trainer.data.poisoned = {7, 8}
    assert train(trainer, tmp_path)[0] and trainer.skipped == 2
    assert torch.isfinite(weights(trainer)).all()


def test_nothing_but_bad_batches_is_an_error(start, tmp_path):
    trainer = start(tmp_path, 'train.on_nan="skip"', "train.steps=60")
    trainer.data.poisoned = set(range(100))
    with pytest.raises(LcmError, match="nan"):
        Run(trainer, tmp_path).train()


def test_an_exploding_loss_is_noticed(start, tmp_path):
    trainer = start(tmp_path, "train.steps=150", "train.eval_every=1000")
    while trainer.step < 105:
        trainer.train_step()
    with torch.no_grad():
        trainer.model.postnet.fc.weight.mul_(1000)
    with pytest.raises(LcmError, match="usually"):
        trainer.train_step()


@pytest.mark.slow
def test_finetuning_goes_on_from_a_run(start, tmp_path):
    first = start(tmp_path / "first", architecture="two_tower")
    train(first, tmp_path / "first")
    changes = (f'start="{tmp_path / "first"}"', 'model.prompts={summarize="[SUMMARY]:"}')
    tuned = start(tmp_path / "tuned", *changes, architecture="two_tower")
    assert torch.equal(weights(first), weights(tuned))
    assert torch.equal(first.model.normalizer.scale, tuned.model.normalizer.scale)
    train(tuned, tmp_path / "tuned")
    assert load_model(tmp_path / "tuned").config.prompts == {"summarize": "[SUMMARY]:"}
    with pytest.raises(IntegrityError, match="two_tower"):
        start(tmp_path / "other", changes[0], architecture="base")
    with pytest.raises(IntegrityError, match="wrong shapes"):
        wider = "model.denoiser.inner_dim=128"
        start(tmp_path / "other", changes[0], wider, architecture="two_tower")


@pytest.mark.parametrize("architecture", ["one_tower", "two_tower"])
def test_finetuning_adds_self_conditioning(start, tmp_path, architecture):
    first = start(tmp_path / "first", architecture=architecture)
    first.export(tmp_path / "first")
    origin = f'start="{tmp_path / "first"}"'
    more = (origin, "model.self_conditioning=true")
    tuned = start(tmp_path / "tuned", *more, architecture=architecture)
    before, after = (each.model.state_dict() for each in (first, tuned))
    (added,) = set(after) - set(before)
    assert not after[added].any()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    tuned.train_step(), tuned.train_step()
    tuned.export(tmp_path / "tuned")
    assert load_model(tmp_path / "tuned").state_dict()[added].any()
    back = f'start="{tmp_path / "tuned"}"', "model.self_conditioning=false"
    with pytest.raises(IntegrityError, match=rf"unknown tensors: {added}"):
        start(tmp_path / "back", *back, architecture=architecture)


def test_samples_are_text(start, tmp_path):
    trainer = start(tmp_path, "train.sample_every=24")
    _, records = train(trainer, tmp_path)
    sample = next(record["sample"] for record in records if "sample" in record)
    assert set(sample) == {"prompt", "text", "truth"} and len(sample["prompt"]) >= 1
    assert all(isinstance(text, str) for text in sample["text"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ('model.architecture="two_towr"', UsageError, "two_tower"),
        ('model.size="huge"', UsageError, "39M"),
        ("model.modl_dim=8", IntegrityError, "model_dim"),
        ("model.transformer.layrs=8", IntegrityError, "layers"),
        ("model.concept_dim=8", IntegrityError, "concept_dim"),
        ("train.stepz=8", IntegrityError, "steps"),
        ("train.steps=0", IntegrityError, "at least 1"),
        ("train.ema=1.0", IntegrityError, "ema"),
        ('kind="modl"', IntegrityError, "model"),
        ('space="tinny"', LcmError, "tiny"),
        ('start="nowhere"', LcmError, "nowhere"),
        ('normalizer="nowhere"', LcmError, "nowhere"),
    ],
)
def test_bad_recipes(start, tmp_path, change, error, words):
    with pytest.raises(error) as caught:
        start(tmp_path / "run", change)
    assert words in caught.value.message + caught.value.hint


def test_the_state_of_other_shapes_is_refused(start, tmp_path):
    train(start(tmp_path), tmp_path)
    other = start(tmp_path, "model.model_dim=32")
    with pytest.raises(IntegrityError, match="cannot resume"):
        Run(other, tmp_path).resume()


def test_nan_scores_do_not_reach_the_log(start, tmp_path):
    _, records = train(start(tmp_path), tmp_path)
    numbers = [value for record in records for value in record.values()]
    assert all(math.isfinite(n) for n in numbers if isinstance(n, float))


def test_samples_are_in_a_language_of_the_space(start, tmp_path):
    trainer = start(tmp_path / "a", "train.sample_to=french")
    assert trainer.sampler.to == "fra_Latn"
    assert start(tmp_path / "b").sampler.to == "eng_Latn"
    with pytest.raises(NotFoundError, match="xx"):
        start(tmp_path / "c", "train.sample_to=xx")


def test_what_a_recipe_names_in_vain_is_an_error(start, tmp_path):
    with pytest.raises(IntegrityError, match="quantizer"):
        start(tmp_path / "a", "quantizer=runs/quantizer")
    with pytest.raises(NotFoundError) as missing:
        start(tmp_path / "b", "start=runs/not-there")
    assert "pull" not in missing.value.hint


def test_what_is_decoded_for_l2_r_is_spread_over_all_documents(start, tmp_path, monkeypatch):
    """Held-out documents are sorted by length, the shortest first."""
    monkeypatch.setattr("lcm_cli.training.samples.RECONSTRUCTED", 5)
    trainer = start(tmp_path)
    batches = trainer.data.validation(6) * 2
    each = sum(int(length) - 1 for length in batches[0].lengths_B)
    again = trainer.sampler.reconstruction(2 * each)
    metrics = next_concept_metrics(trainer.model, batches, reconstruct=again)
    expected = [place * 2 * each // 5 for place in range(5)]
    assert (~metrics.l2_r.isnan()).nonzero()[:, 0].tolist() == expected
    seen = []
    real = trainer.sampler.reconstruction
    monkeypatch.setattr(trainer.sampler, "reconstruction", lambda n: seen.append(n) or real(n))
    trainer.evaluate(tmp_path)
    assert seen == [each]
