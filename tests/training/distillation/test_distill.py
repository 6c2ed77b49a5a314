"""Distillation: losses, what students learn, and teachers that do not suit."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rounding import assert_near, rounding
from torch.nn import functional as F

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.models.checkpoint import load_model, save
from lcm_cli.models.interface import Batch
from lcm_cli.training.distillation.distill import Lesson, to_teacher
from lcm_cli.training.distillation.teaching import Teaching, distances, hidden_error, partners
from lcm_cli.training.loop import Run
from lcm_cli.training.recipes.model import Distillation
from lcm_cli.training.trainers.concept_model import seed_everything

from ..conftest import Memory

CPU = torch.device("cpu")
SMALLER = {
    "base": ("model.model_dim=32", "model.transformer.layers=1"),
    "sonar_llm": ("model.model_dim=32", "model.transformer.layers=1"),
    "one_tower": ("model.model_dim=32", "model.transformer.layers=1"),
    "two_tower": ("model.model_dim=32", "model.denoiser.layers=1"),
    "quant": ("model.model_dim=32", "model.transformer.layers=1"),
}
Made = Callable[..., Lesson]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of teachers, trained on first use."""
    return {"": tmp_path_factory.mktemp("teachers")}


@pytest.fixture
def teacher(start, taught) -> Callable[..., Path]:
    """Return a briefly trained nano teacher."""

    def make(architecture: str, steps: int = 60, *changes: str) -> Path:
        name = "-".join([architecture, str(steps), *changes])
        if name not in taught:
            folder = taught[""] / str(len(taught))
            rate = ("train.warmup=0", "train.learning_rate=3e-3", "train.eval_every=1000")
            long = f"train.steps={steps}"
            trainer = start(folder, long, *rate, *changes, architecture=architecture)
            for _ in range(steps):
                trainer.train_step()
            taught[name] = trainer.export(folder)
        return taught[name]

    return make


@pytest.fixture
def lesson(model_recipe, teacher) -> Made:
    """Prepare a smaller student of a teacher."""

    def make(*changes: str, architecture: str = "base", source: Path | None = None, data=None):
        source = source or teacher(architecture)
        names = (f'distill.teacher="{source}"', *SMALLER[architecture], *changes)
        recipe = model_recipe(*names, architecture=architecture)
        return Lesson(recipe, CPU, data or Memory())

    return make


def train(trainer, steps: int):
    for _ in range(steps):
        record = trainer.train_step()
    return record


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["base", "one_tower", "two_tower", "quant", "sonar_llm"])
def test_a_student_comes_closer_with_a_teacher_than_without(lesson, architecture):
    quick = ("train.learning_rate=3e-3", "train.warmup=0", "distill.own=0.0", "train.steps=60")
    made = lesson(*quick, architecture=architecture)
    student, alone = made.student(), made.alone()
    with torch.no_grad():
        assert torch.equal(*(torch.cat([p.flatten() for p in t.model.parameters()])
                             for t in (student, alone)))  # fmt: skip
    first = student.train_step()["prediction"]
    last = train(student, 50)["prediction"]
    train(alone, 51)
    assert last < 0.9 * first
    batches = made.data.validation(6)
    if architecture in ("base", "sonar_llm", "quant"):  # predictions from noise vary too much
        far = [to_teacher(t.model.eval(), made.teacher, batches) for t in (student, alone)]
        assert far[0] < far[1] or architecture == "quant"
    if architecture == "quant":
        batch = batches[0]
        apart = []
        for trainer in (student, alone):
            seed_everything(5)
            teaching = Teaching(trainer.model.eval(), made.teacher, made.options)
            teaching(trainer.model, batch)
            apart.append(teaching.take()["prediction"])
        assert apart[0] < apart[1]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergences_are_those_of_the_softmaxes(temperature):
    torch.manual_seed(0)
    mine, theirs = torch.randn(5, 32) * 3, torch.randn(5, 32) * 3
    scores = [(x.double() / temperature).exp() for x in (theirs, mine)]
    p, q = (x / x.sum(-1, keepdim=True) for x in scores)
    m, square = (p + q) / 2, temperature**2
    kl = square * (p * (p / q).log()).sum(-1)
    jsd = square * (p * (p / m).log() + q * (q / m).log()).sum(-1) / 2
    for name, by_hand in {"kl": kl, "jsd": jsd}.items():
        # Each of the 32 terms is a probability times a difference of logarithms, up to this large.
        size = square * p.log().abs().max()
        found = distances(None, name, mine, theirs, temperature)
        assert found.dtype == torch.float32
        assert_near(found.double(), by_hand, terms=32, size=size)
        assert distances(None, name, mine, mine, temperature).abs().max() < size * rounding(32)
    other_way = distances(None, "jsd", theirs, mine, temperature)
    assert_near(other_way.double(), jsd, terms=32, size=size)
    assert other_way.max() < square * math.log(2)


def test_the_gradient_of_a_divergence_does_not_vanish_at_high_temperatures():
    """It tends to that of a squared error of centred logits (Hinton et al. 2015, equation 4)."""
    mine, theirs = torch.randn(5, 32, requires_grad=True), torch.randn(5, 32)
    (found,) = torch.autograd.grad(distances(None, "kl", mine, theirs, 1e3).sum(), mine)
    apart = (mine - theirs).detach()
    expected = (apart - apart.mean(-1, keepdim=True)) / 32
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def test_errors_of_hidden_states():
    torch.manual_seed(0)
    mine, theirs, matrix = torch.randn(6, 8), torch.randn(6, 16), torch.randn(16, 8)
    mapped, goal = mine.double() @ matrix.double().T, theirs.double()
    squared = ((mapped - goal) ** 2).sum() / (goal**2).sum()
    lengths = mapped.norm(dim=-1) * goal.norm(dim=-1)
    cosine = (1 - (mapped * goal).sum(-1) / lengths).mean()
    for kind, by_hand in {"mse": squared, "cosine": cosine}.items():
        found = hidden_error(kind, matrix, mine, theirs)
        assert_near(found.double(), by_hand, terms=8 + 16 * 6)
        assert hidden_error(kind, matrix, mine[:0], theirs[:0]) == 0  # a part without documents


def test_the_cosine_is_that_of_raw_concepts(lesson):
    model = lesson().model()
    mine, theirs = torch.randn(4, 32), torch.randn(4, 32)
    raw = [x * model.normalizer.scale + model.normalizer.center for x in (mine, theirs)]
    expected = 1 - F.cosine_similarity(*raw, dim=-1)
    assert_near(distances(model, "cosine", mine, theirs), expected, terms=32)
    far = distances(model, "mse", mine, theirs)
    assert_near(far, ((mine - theirs) ** 2).sum(-1), terms=32)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["base", "one_tower", "two_tower", "quant"])
def test_a_model_agrees_with_itself(lesson, teacher, architecture):
    """With the same noise, timesteps and codebooks, a model and its copy have distance 0."""
    source = teacher(architecture)
    made = lesson(architecture=architecture)
    model = load_model(source, device="cpu")
    copied = copy.deepcopy(model).eval()
    options = Distillation("it", prediction=1.0, hidden=1.0)
    teaching = Teaching(model.eval(), copied, options)
    for matrix in teaching.matrices:
        torch.nn.init.eye_(matrix.weight)
    for batch in (made.data.batch(0), Batch.of([made.data.document(n) for n in (1, 2)], [1, 2])):
        teaching(model, batch)
        parts = teaching.take()
        assert parts["own"] > 0.01
        assert parts["prediction"] < 1e-5 and parts["hidden"] < 1e-5


@pytest.mark.slow
def test_only_the_own_loss_is_ordinary_training(lesson):
    """The parts add up with their weights, and draws are those of ordinary training."""
    made = lesson("distill.prediction=0.0", "distill.hidden=1e-30", architecture="two_tower")
    student, alone = made.student(), made.alone()
    for _ in range(3):
        assert student.train_step()["loss"] == pytest.approx(alone.train_step()["loss"], rel=1e-6)
    both = lesson("distill.own=0.5", "distill.prediction=2.0", "distill.hidden=3.0")
    found = both.student().train_step()
    sum_ = 0.5 * found["own"] + 2 * found["prediction"] + 3 * found["hidden"]
    assert found["loss"] == pytest.approx(sum_, rel=1e-5)
    assert not any("weight" in name for name in found)


def test_weights_follow_their_schedules(lesson):
    """The loss of each step is the sum of its parts with the weights that the log gives."""
    ramps = (
        "distill.own={start=0.0,end=1.0}",
        'distill.prediction={start=2.0,end=0.0,schedule="cosine"}',
    )
    student = lesson(*ramps, "distill.hidden=0.5", "train.steps=3").student()
    for own, prediction in ((0.0, 2.0), (0.5, 1.0), (1.0, 0.0)):
        found = student.train_step()
        assert "hidden_weight" not in found
        weights = found["own_weight"], found["prediction_weight"]
        assert weights == pytest.approx((own, prediction), abs=1e-15)
        sum_ = own * found["own"] + prediction * found["prediction"] + 0.5 * found["hidden"]
        assert found["loss"] == pytest.approx(sum_, rel=1e-5)


def test_held_out_parts_are_unweighted(lesson):
    """Student and twin have the same loss of their own before training, whatever its weight."""
    made = lesson("distill.own=0.25", "distill.prediction=9.0", "distill.hidden=3.0")
    student, alone = made.student(), made.alone()
    scores, others = (t.evaluate(Path())["eval"] for t in (student, alone))
    assert scores["loss"] == others["loss"] and "prediction" not in others
    seed_everything(0, 0, 0)
    student.teaching(student.model.eval(), made.data.validation(6)[0])
    parts = student.teaching.take()
    assert parts["prediction"] == scores["prediction"] and parts["hidden"] == scores["hidden"]
    assert parts["own"] == pytest.approx(scores["loss"], rel=1e-6)


def test_hidden_states_are_learned_by_maps(lesson):
    quick = ("train.warmup=0", "train.steps=60", "train.learning_rate=5e-3")
    student = lesson("distill.prediction=0.0", "distill.hidden=100.0", *quick).student()
    assert [(m.in_features, m.out_features) for m in student.teaching.matrices] == [(32, 64)]
    before = student.teaching.matrices[0].weight.clone()
    first = student.train_step()["hidden"]
    assert train(student, 40)["hidden"] < 0.8 * first
    assert not torch.equal(before, student.teaching.matrices[0].weight)
    assert not any("matrices" in name for name in student.model.state_dict())


def test_layers_find_partners(lesson):
    stack = [torch.nn.ModuleList(torch.nn.Identity() for _ in range(n)) for n in (2, 5, 1, 3)]
    small, large = torch.nn.Sequential(stack[0]), torch.nn.Sequential(stack[1])
    assert partners(small, large) == [(0, 2), (1, 4)]
    assert partners(large, small) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]
    small, large = torch.nn.Sequential(stack[0], stack[2]), torch.nn.Sequential(stack[1], stack[3])
    assert partners(small, large) == [(0, 2), (1, 4), (2, 7)]
    made = lesson("distill.hidden=1.0", "distill.layers=[[0, 2]]")
    with pytest.raises(IntegrityError, match="teacher has no layer 2"):
        made.student()


SCHEDULED = (
    "distill.own={start=0.0,end=1.0}",
    'distill.hidden={start=1.0,end=0.2,schedule="cosine"}',
    'distill.hidden_loss="cosine"',
    'train.freeze=["frontend.*"]',
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "changes"), [("base", SCHEDULED), ("two_tower", ("distill.hidden=1.0",))]
)
def test_a_resumed_run_is_the_uninterrupted_one(lesson, tmp_path, architecture, changes):
    extra = (*changes, "train.ema=0.9", "train.steps=12", "train.eval_every=50")
    made = lesson(*extra, architecture=architecture)
    whole = made.student()
    folders = [tmp_path / "whole", tmp_path / "half"]
    for folder in folders:
        folder.mkdir()
    assert Run(whole, folders[0]).train()
    half = made.student()
    train(half, 5)
    run = Run(half, folders[1], max_minutes=0)
    assert not run.train()
    again = made.student()
    resumed = Run(again, folders[1])
    resumed.resume()
    assert again.step == 5 and resumed.train()
    for left, right in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(left, right)
    for left, right in zip(whole.average, again.average, strict=True):
        assert torch.equal(left, right)


def test_what_cannot_be_captured(lesson):
    with pytest.raises(UsageError, match="quant model cannot be captured"):
        lesson('distill.capture="x"', architecture="quant")


def test_teachers_that_do_not_suit(lesson, teacher, tmp_path):
    with pytest.raises(LcmError, match="nowhere"):
        lesson(source=tmp_path / "nowhere")
    with pytest.raises(IntegrityError, match="architecture is base"):
        lesson(source=teacher("two_tower"))
    with pytest.raises(IntegrityError, match="schedule"):
        lesson("model.schedule.steps=50", architecture="two_tower")
    with pytest.raises(IntegrityError, match="units"):
        lesson("model.units=16", architecture="quant")
    model = load_model(teacher("base"), device="cpu")
    for name, changes in {
        "another space": {"space": dataclasses.replace(model.config.space, fingerprint="0")},
        "narrow": {"concept_dim": 128},
    }.items():
        other = type(model)(dataclasses.replace(model.config, **changes))
        save(other, tmp_path / name)
        with pytest.raises(IntegrityError, match="space") as caught:
            lesson(source=tmp_path / name)
        assert "recipe" in caught.value.hint


def test_a_student_to_finetune_needs_the_teachers_numbers(lesson, teacher, tmp_path):
    started = lesson(f'start="{teacher("base")}"', "model.model_dim=64",
                     "model.transformer.layers=2")  # fmt: skip
    assert started.student().train_step()["prediction"] >= 0
    model = load_model(teacher("base"), device="cpu")
    model.normalizer.scale += 1
    save(model, tmp_path / "other")
    with pytest.raises(IntegrityError, match="the normalizer of"):
        lesson(f'start="{tmp_path / "other"}"', "model.model_dim=64",
               "model.transformer.layers=2").student()  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("distill.prediction=-1.0", "prediction must be 0 or a positive number, not -1"),
        ("distill.prediction=nan", "prediction"),
        ("distill.prediction=0.0", "nothing is learned"),
        ("distill.layers=[[0, 0]]", "hidden"),
        (
            'distill.hidden_loss="cosine"',
            "distill.hidden_loss has no effect without distill.hidden",
        ),
        ("distill.temperature=0.0", "temperature must be positive"),
        ("distill.own={start=0.0,end=-1.0}", "own must be 0 or a positive number, not -1"),
        ("distill.prediction={start=0.0,end=0.0}", "nothing is learned"),
        ("distill.own={start=0.0,ende=1.0}", "did you mean end"),
        ('distill.own={start=0.0,end=1.0,schedule="sine"}', "'linear' or 'cosine'"),
        ("distill.tacher=1", "teacher"),
        ('normalizer="x"', "normalizer"),
    ],
)
def test_bad_tables(lesson, change, words):
    with pytest.raises(LcmError) as caught:
        lesson(change)
    assert words in caught.value.message + caught.value.hint


def test_losses_that_do_not_suit_the_outputs(lesson):
    for architecture, kind in (("base", "kl"), ("base", "jsd"), ("quant", "mse")):
        made = lesson(f'distill.prediction_loss="{kind}"', architecture=architecture)
        with pytest.raises(IntegrityError, match=f'"{kind}": a {architecture} model'):
            made.student()
    with pytest.raises(IntegrityError, match='the loss "mse" has no temperature'):
        lesson("distill.temperature=2.0").student()


def test_the_cosine_needs_concepts(lesson, teacher):
    velocity = 'model.schedule.prediction="v"'
    source = teacher("one_tower", 1, velocity)
    kind = 'distill.prediction_loss="cosine"'
    made = lesson(kind, velocity, architecture="one_tower", source=source)
    with pytest.raises(IntegrityError, match="predicts v, not concepts"):
        made.student()


def test_a_discrete_student_learns_by_a_tempered_divergence(lesson):
    changes = ('distill.prediction_loss="jsd"', "distill.temperature=2.0", "distill.own=0.0")
    quick = ("train.learning_rate=3e-3", "train.warmup=0", "train.steps=60")
    student = lesson(*changes, *quick, architecture="quant").student()
    first = student.train_step()["prediction"]
    assert train(student, 30)["prediction"] < 0.9 * first


def test_the_report_compares_three_models(lesson, tmp_path):
    made = lesson()
    student, alone = made.student(), made.alone()
    report = made.report({"student": student.model, "alone": alone.model}, tmp_path)
    assert list(report) == ["teacher", "student", "alone"]
    assert report["teacher"]["to_teacher"] == 0 < report["student"]["to_teacher"]
    assert report["teacher"]["parameters"] > report["student"]["parameters"]
    assert {"l2", "par", "ca", "own", "prediction"} <= set(report["alone"])
    assert report["teacher"]["prediction"] == 0 < report["student"]["prediction"]
    assert report["student"]["own"] == report["alone"]["own"] > 0  # neither is trained
    assert student.model.training  # restored
