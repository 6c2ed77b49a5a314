"""Distilling the encoder of a space: learning, a new language, exact resumption, and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.evaluation.space_quality import xsim
from lcm_cli.space import load_space
from lcm_cli.space.similarity import unit_length
from lcm_cli.training.loop import Run
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.trainers.concept_loss import concept_losses
from lcm_cli.training.trainers.space_student import (
    StudentTrainer,
    encoder_sizes,
    make_student_trainer,
)

NAMES = [("Tom", "Toni"), ("Mary", "Maija"), ("The cat", "Kissa"), ("The dog", "Koira")]
VERBS = [("sleeps", "nukkuu"), ("sings", "laulaa"), ("waits", "odottaa"), ("laughs", "nauraa")]
ENGLISH = [f"{name} {verb}." for name, _ in NAMES for verb, _ in VERBS]
FINNISH = [f"{name} {verb}." for _, name in NAMES for _, verb in VERBS]
RECIPE = """
kind = "space"
name = "student"
[data]
train = ["{data}"]
dev = ["{data}"]
[distill]
teacher = "{teacher}"
layers = [1]
[train]
steps = 24
batch_tokens = 120
learning_rate = 1e-2
warmup = 4
contrast = 0.1
save_every = 5
eval_every = 100
eval_sentences = 4
"""


@pytest.fixture
def recipe(tmp_path: Path, random_space: Path) -> Path:
    write(tmp_path / "text.jsonl", [{"eng_Latn": text} for text in ENGLISH])
    path = tmp_path / "student.toml"
    path.write_text(RECIPE.format(data=tmp_path / "text.jsonl", teacher=random_space))
    for name in ("run", "whole", "cut"):
        (tmp_path / name).mkdir()
    return path


def write(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def begin(recipe: Path, *changes: str) -> StudentTrainer:
    return make_student_trainer(load_recipe(recipe, changes), torch.device("cpu"))


def weights(trainer: StudentTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((unit_length(a) * unit_length(b)).sum(axis=1).mean())


def test_frozen_embeddings_stay_the_teachers(recipe):
    trainer = begin(recipe, 'train.freeze=["encoder.encoder_frontend.*"]')
    embedding = trainer.encoder.encoder_frontend.embed.weight
    before = embedding.clone()
    assert "grad_norm" in trainer.train_step() and torch.equal(embedding, before)
    size, trained = trainer.sizes
    assert size - trained == embedding.numel() and trained == weights(trainer).numel()
    assert encoder_sizes(trainer.encoder.config, trainer.options.freeze) == trainer.sizes
    with pytest.raises(IntegrityError, match="nothing to train"):
        begin(recipe, 'train.freeze=["encoder.*"]')


@pytest.mark.slow
def test_a_student_learns_the_concepts_of_its_teacher(recipe, random_space, tmp_path):
    teacher = load_space(str(random_space), device="cpu")
    wanted = teacher.encode(ENGLISH, "eng_Latn").concepts
    trainer = begin(recipe, "train.steps=60")
    before = load_space(str(trainer.export(tmp_path / "before")), device="cpu")
    assert Run(trainer, tmp_path / "run").train()
    after = load_space(str(tmp_path / "run" / "space"), device="cpu")
    first, last = (cosine(s.encode(ENGLISH, "eng_Latn").concepts, wanted) for s in (before, after))
    assert last > 0.95 and 1 - last < (1 - first) / 3
    assert len(after.encoder.encoder.layers) == 1 and after.fingerprint != teacher.fingerprint
    decoder = (tmp_path / "run" / "space" / "decoder.safetensors").read_bytes()
    assert decoder == (random_space / "decoder.safetensors").read_bytes()


def test_a_student_starts_from_layers_of_its_teacher(recipe, random_space, tmp_path):
    trainer = begin(recipe, "distill.layers=[0, 1]")
    assert trainer.losses(trainer._batch())[0] < 1e-8
    shape = ("distill.layers=[]", "shape.dim=32", "shape.heads=2", "shape.ffn_dim=16")
    new = begin(recipe, *shape, "shape.encoder_layers=1")
    assert new.losses(new._batch())[0] > 0.1


@pytest.mark.slow
def test_a_language_is_added_from_pairs(recipe, random_space, tmp_path):
    """Its sentences get the teacher's concepts of their translations, and the rest stay."""
    pairs = zip(ENGLISH, FINNISH, strict=True)
    write(tmp_path / "text.jsonl", [{"eng_Latn": e, "fin_Latn": f} for e, f in pairs])
    changes = ('languages=["fin_Latn"]', "distill.layers=[0, 1]", "train.join=0.0")
    trainer = begin(recipe, *changes, "train.steps=120")
    wanted = load_space(str(random_space), device="cpu").encode(ENGLISH, "eng_Latn").concepts
    before = load_space(str(trainer.export(tmp_path / "before")), device="cpu")
    assert Run(trainer, tmp_path / "run").train()
    after = load_space(str(tmp_path / "run" / "space"), device="cpu")
    assert after.languages[-1] == "fin_Latn" and len(after.languages) == 6
    scores = [xsim(s.encode(FINNISH, "fin_Latn").concepts, wanted) for s in (before, after)]
    assert scores[0] < 50 and scores[1] > 90
    assert cosine(after.encode(ENGLISH, "eng_Latn").concepts, wanted) > 0.95
    assert after.decode(wanted[:1], ["eng_Latn", "fin_Latn"])["fin_Latn"]


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(recipe, tmp_path):
    changes = ("train.dropout=0.1", "train.ema=0.9")
    whole = begin(recipe, *changes)
    assert Run(whole, tmp_path / "whole").train()
    first = Run(begin(recipe, *changes), tmp_path / "cut")
    original = first.trainer.train_step

    def until_then() -> dict[str, float]:
        metrics = original()
        first.stop = first.trainer.step == 7
        return metrics

    first.trainer.train_step = until_then
    assert not first.train()
    again = Run(begin(recipe, *changes), tmp_path / "cut")
    again.resume()
    assert again.trainer.step == 7 and again.train()
    assert torch.equal(weights(whole), weights(again.trainer))


def test_a_run_keeps_its_teacher(recipe, tmp_path):
    assert not Run(begin(recipe), tmp_path / "run", max_minutes=0).train()
    other = begin(recipe, 'distill.teacher="tiny"')
    with pytest.raises(LcmError, match=r"distill\.teacher cannot be changed"):
        Run(other, tmp_path / "run").resume()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distill.layers=[]", r"shape\.dim is 256, the teacher's concepts have 32"),
        ("distill.layers=[0, 2]", "the teacher has no layer 2"),
        ('start="tiny"', "cannot be combined with a teacher"),
    ],
)
def test_students_that_do_not_fit_are_refused(recipe, change, message):
    with pytest.raises(IntegrityError, match=message):
        begin(recipe, change)


def test_a_line_needs_a_language_of_the_teacher(recipe, tmp_path):
    write(tmp_path / "text.jsonl", [{"fin_Latn": text} for text in FINNISH])
    with pytest.raises(IntegrityError, match=r"text\.jsonl:1: random knows none of .* fin_Latn"):
        begin(recipe, 'languages=["fin_Latn"]')


def test_a_recipe_without_teacher_is_refused(recipe, tmp_path):
    text = recipe.read_text().replace("[distill]", "[shape]").replace("layers = [1]", "")
    recipe.write_text('languages = ["eng_Latn"]\n' + text.replace("teacher =", "#"))
    with pytest.raises(UsageError, match="names no teacher"):
        begin(recipe)


def test_rows_without_target_and_equal_rows_do_not_count():
    torch.manual_seed(0)
    found, targets = torch.randn(4, 8), torch.randn(6, 8)
    none = torch.zeros(4, 6, dtype=torch.bool)
    same = none.clone()
    same[:, 4:] = True
    plain = concept_losses(found, targets[:4], none[:, :4])
    assert torch.allclose(torch.stack(concept_losses(found, targets, same)), torch.stack(plain))
    counts = torch.tensor([True, True, True, False])
    same[:, 3:] = True
    some = concept_losses(found, targets, same, counts)
    fewer = concept_losses(found[:3], targets[:3], none[:3, :3])
    assert torch.allclose(torch.stack(some), torch.stack(fewer))


def test_the_command_distils_reports_and_inspects(recipe, random_space, tmp_path, lcm):
    done = lcm("distill", recipe, "--dry-run", "--json", "--device", "cpu")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["unit"] == "sentences"
    folder = tmp_path / "run"
    done = lcm("distill", recipe, "-o", folder, "--set", "train.steps=2", "--device", "cpu")
    assert done.code == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["student"]["parameters"] < report["teacher"]["parameters"]
    assert {"xsim", "autoencoding"} <= set(report["student"])
    shown = json.loads(lcm("inspect", folder / "space", "--json").stdout)
    assert shown["teacher"] == {
        "name": "random",
        "fingerprint": load_space(str(random_space)).fingerprint,
    }
    assert "distilled from" in lcm("inspect", folder / "space").stdout
    refused = lcm("train", recipe, "-o", tmp_path / "other")
    assert refused.code == 2 and "lcm distill" in refused.stderr
