"""Distillation of a sampler into fewer steps."""

import json

import pytest
import torch
from rounding import assert_near

from lcm_cli.errors import IntegrityError, LcmError
from lcm_cli.models.checkpoint import build, load_model, save
from lcm_cli.models.config import SamplingConfig, preset
from lcm_cli.models.diffusion import DiffusionOptions, sample, step_pairs
from lcm_cli.training.distillation.distill import Lesson
from lcm_cli.training.distillation.few_steps import FewSteps, denoised, end_points, path

from ..conftest import Memory

CPU = torch.device("cpu")
QUICK = ("train.learning_rate=3e-3", "train.warmup=0", "train.eval_every=1000")


@pytest.fixture(scope="module")
def taught():
    """Folders of teachers, trained on first use."""
    return {}


@pytest.fixture
def lesson(start, taught, tmp_path, model_recipe):
    """Prepare the distillation of a nano teacher's sampler."""

    def make(architecture: str, *changes: str, form: tuple[str, ...] = ()) -> Lesson:
        kind = architecture, form
        if kind not in taught:
            # Ten steps instead of 40: the teacher's run is most of the cost.
            few = ("model.sampling.steps=10",) if architecture != "base" else ()
            shape = (*form, *few)
            trainer = start(tmp_path, "train.steps=60", *QUICK, *shape, architecture=architecture)
            for _ in range(60):
                trainer.train_step()
            taught[kind] = trainer.model
        source = tmp_path / "teacher"
        save(taught[kind], source, force=True)
        names = (f'distill.teacher="{source}"', "distill.steps=2", "train.steps=30", *QUICK)
        return Lesson(model_recipe(*names, *changes, architecture=architecture), CPU, Memory())

    return make


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["one_tower", "two_tower"])
def test_a_distilled_sampler_beats_the_undistilled_one_at_equal_steps(
    lesson, tmp_path, architecture
):
    made = lesson(architecture)
    trainer = made.student()
    for _ in range(30):
        trainer.train_step()
    trainer.export(tmp_path)
    student = load_model(tmp_path / "model", device="cpu")
    assert student.options().steps == 2 and not student.options().guided
    assert student.options(steps=5).steps == 5
    report = made.report({"student": student}, tmp_path)
    assert list(report) == ["teacher", "student", "undistilled"]
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["teacher"]["to_teacher"] == 0
    assert report["student"]["to_teacher"] < report["undistilled"]["to_teacher"]


def test_a_step_with_the_target_arrives_where_the_teacher_does(lesson):
    model = lesson("two_tower").teacher
    torch.manual_seed(0)
    x_BSD = model.normalized(Memory().batch(0).concepts_BSD)
    points = path(model, x_BSD, model.options(), 5)
    assert len(points) == 3
    few = DiffusionOptions(steps=2, guidance=1.0)
    goals = iter(end_points(model.schedule, points, step_pairs(100, few), few))
    reached = []
    found = sample(
        model.schedule,
        few,
        points[0] / few.initial_noise,
        lambda x, t, guided, estimate: (next(goals), None),
        lambda: points[0],
        lambda step: reached.append(step.previous),
    )
    for mine, theirs in zip(reached, points[1:], strict=True):
        assert_near(mine, theirs, terms=100)
    assert_near(found, points[-1], terms=100)


@pytest.mark.parametrize("architecture", ["one_tower", "two_tower"])
def test_the_student_predicts_in_training_as_it_does_when_it_samples(lesson, architecture):
    model = lesson(architecture).teacher.eval()
    torch.manual_seed(0)
    x_BSD = model.normalized(Memory().batch(0).concepts_BSD)
    noisy_BKPD = torch.randn(len(x_BSD), 2, *x_BSD[:, 1:].shape[1:])
    with torch.no_grad():
        out_BKPD = denoised(model, x_BSD, noisy_BKPD, torch.tensor([99, 49]))
        predict = model.teacher(x_BSD, model.options())
        for k, t in enumerate((99, 49)):
            assert_near(out_BKPD[:, k], predict(noisy_BKPD[:, k], t, False)[0], terms=1000)


@pytest.mark.parametrize("architecture", ["one_tower", "two_tower"])
def test_a_student_with_self_conditioning_reads_the_target_of_the_step_before(architecture):
    torch.manual_seed(0)
    sampling = SamplingConfig(steps=4)
    given = {"concept_dim": 32, "sampling": sampling, "self_conditioning": True}
    model = build(preset(architecture, "nano", **given))
    for name, parameter in model.named_parameters():
        if "modulator" in name or "estimate" in name:  # they start at zero
            torch.nn.init.normal_(parameter, std=0.1)
    batch = Memory().batch(0)
    x_BSD = model.normalized(batch.concepts_BSD)
    torch.manual_seed(1)
    loss = FewSteps(model, 2)(model, batch)
    torch.manual_seed(1)
    points = path(model, x_BSD, model.options(), 2)
    few = DiffusionOptions(steps=2, guidance=1.0)
    goals = end_points(model.schedule, points, step_pairs(100, few), few)
    predict = model.teacher(x_BSD, few)
    with torch.no_grad():
        first, _ = predict(points[0], 99, False)
        second, _ = predict(points[1], 49, False, goals[0])
        unaware, _ = predict(points[1], 49, False)
    real = (batch.positions() < batch.lengths_B[:, None])[:, 1:]
    errors = [
        ((out - goal) ** 2).sum(-1)[real].sum()
        for out, goal in zip((first, second), goals, strict=True)
    ]
    assert_near(loss.value, sum(errors), terms=1000)
    assert (second - unaware).norm() > 0.1 * second.norm()


FORMS = [
    ('model.schedule.prediction="v"',),
    ('model.schedule.prediction="flow"', 'model.schedule.name="straight"'),
]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=["v", "flow"])
def test_other_predictions_are_distilled_as_x0(lesson, form):
    """The loss compares concepts, whatever the network predicts."""
    made = lesson("two_tower", form=form)
    trainer = made.student()
    losses = [trainer.train_step()["loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_padding_is_not_learned(lesson):
    made = lesson("two_tower")
    batch, model = Memory().batch(0), made.model()
    loss = FewSteps(made.teacher, 2)(model, batch)
    assert loss.targets == 2 * int((batch.lengths_B - 1).sum())
    assert set(loss.timesteps_N.tolist()) == {99, 49}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["distill.steps=3"], "does not divide the 10 steps"),
        (["distill.steps=10"], "does not divide the 10 steps"),
        (["distill.steps=-1"], "must not be negative"),
        (["distill.own=0.5"], "replaces all other losses"),
        (["data.packing=true"], "rows of one document"),
    ],
)
def test_what_cannot_be_distilled(lesson, changes, message):
    with pytest.raises(LcmError, match=message):
        lesson("two_tower", *changes)


def test_only_diffusion_models_have_a_sampler(lesson):
    with pytest.raises(IntegrityError, match="a base model, which has no denoising steps"):
        lesson("base")


def test_the_config_checks_the_sampler():
    for bad in ({"steps": 0}, {"guidance": -1.0}):
        with pytest.raises(IntegrityError):
            SamplingConfig(**bad)
