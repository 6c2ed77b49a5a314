"""Train a small model with a large one as its teacher, and score how close it comes.

Shapes: B documents, S concepts, D concept dim.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.evaluation.next_concept import distance, next_concept_metrics
from lcm_cli.files import atomic_path
from lcm_cli.models import checkpoint
from lcm_cli.models.base_lcm import BaseLCM
from lcm_cli.models.config import SpaceRef
from lcm_cli.models.diffusion_lcm import DiffusionLCM
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.progress import StartJob, no_progress
from lcm_cli.space import load_space
from lcm_cli.training.distillation.few_steps import FewSteps, check_few_steps, sampling_in
from lcm_cli.training.distillation.predictions import (
    CapturedPredictions,
    capture,
    check_capturable,
    data_fingerprint,
    model_fingerprint,
)
from lcm_cli.training.distillation.teaching import Teaching
from lcm_cli.training.parallel import World, join_processes
from lcm_cli.training.prepare import (
    EndlessData,
    learns_tokens,
    listen,
    load_start,
    make_sampler,
    model_config,
    new_model,
    open_data,
)
from lcm_cli.training.recipe import Distillation, ModelRecipe, Training
from lcm_cli.training.samples import Sampler
from lcm_cli.training.trainers.concept_model import (
    ModelTrainer,
    Objective,
    TrainingData,
    own_loss,
    seed_everything,
)

ALONE = "alone"  # folder, within the run's, of the student trained without a teacher
UNDISTILLED = "undistilled"  # in the report, the teacher at the student's number of steps
REPORT = "report.json"


class DistillTrainer(ModelTrainer):
    """A trainer with the loss of `Teaching`, whose matrices it trains and saves as well."""

    def __init__(
        self,
        model: ConceptModel,
        data: TrainingData,
        options: Training,
        *,
        teaching: Teaching,
        sampler: Sampler | None = None,
        world: World | None = None,
    ) -> None:
        # The matrices are part of the objective, so they are distributed together with it.
        super().__init__(model, data, options, objective=teaching, sampler=sampler, world=world)
        self.teaching = teaching
        if matrices := list(teaching.matrices.parameters()):
            self.parameters += matrices
            self.names += [f"matrices.{name}" for name, _ in teaching.matrices.named_parameters()]
            if options.ema:
                self.average += [p.detach().clone() for p in matrices]
            self.optimizers.append(
                torch.optim.AdamW(
                    matrices, lr=0.0, betas=options.betas, eps=options.eps, weight_decay=0.0
                )
            )

    def train_step(self) -> dict[str, float]:
        """Do one optimizer step; the metrics include each part of the loss, unweighted.

        They also include the weights that change over the run.
        """
        self.teaching.begin(self.step, self.steps)
        found = super().train_step()
        return found | self.teaching.take(self.world) | self.teaching.scheduled

    def _held_out_loss(self, model: ConceptModel, batches: list[Batch]) -> dict[str, float]:
        """Return the model's own loss and, unless predictions are captured, the other parts."""
        found = super()._held_out_loss(model, batches)
        if self.teaching.captured is None:
            with self.autocast():
                parts = held_out_parts(self.teaching, model, batches, self.options.seed)
            found |= {name: part for name, part in parts.items() if name != "own"}
        return found

    def _tensors(self) -> dict[str, Any]:
        return super()._tensors() | {"matrices": self.teaching.matrices.state_dict()}

    def _restore_tensors(self, state: dict[str, Any]) -> None:
        super()._restore_tensors(state)
        self.teaching.matrices.load_state_dict(state["matrices"])


class Lesson:
    """A distillation: space, data, teacher and processes of a run, from its recipe.

    `student` and `alone` make trainers of the same model, with and without the teacher.
    """

    def __init__(
        self, recipe: ModelRecipe, device: torch.device, data: EndlessData | None = None
    ) -> None:
        """Load the teacher and open the data.

        Raises NotFoundError for a missing teacher, IntegrityError if it does not suit the student
        or the space, UsageError for a recipe that cannot be distilled.
        """
        self.options = distillation(recipe)
        if self.options.steps and not recipe.start:
            recipe = replace(recipe, start=self.options.teacher)
        self.recipe, self.device = recipe, device
        self.world = join_processes()
        self.space = load_space(recipe.space, device=str(device))
        self.start = load_start(recipe.start) if recipe.start else None
        self.config = model_config(recipe, self.space, self.start)
        self.teacher = load_start(self.options.teacher)
        check_teacher(self)
        if self.options.steps:
            check_few_steps(
                self.teacher, self.options.steps, self.options.teacher, recipe.data.packing
            )
            self.config = sampling_in(self.config, self.options.steps, guidance=1.0)
        self.data = data or open_data(
            recipe.data, self.space, seed=recipe.train.seed, config=self.config
        )
        if recipe.data.plan:
            self.config = replace(self.config, plans=self.data.plans)
        self._fingerprint = ""

    @property
    def twin(self) -> bool:
        """Whether the same student is also trained without a teacher."""
        return self.options.compare and not self.options.steps

    @property
    def fingerprint(self) -> str:
        """Digest of the teacher's weights."""
        self._fingerprint = self._fingerprint or model_fingerprint(self.teacher)
        return self._fingerprint

    def capture(self, *, force: bool = False, progress: StartJob = no_progress) -> tuple[Path, int]:
        """Write the teacher's predictions; return the file and its number of documents.

        Raises UsageError without `capture` in the recipe, or if the file exists, unless `force`.
        """
        if not self.options.capture:
            raise UsageError("the recipe names no file", 'set distill.capture = "teacher.parquet"')
        path = Path(self.options.capture)
        if path.exists() and not force:
            raise UsageError(f"{path} exists already", "choose another name, or add --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        teacher = self.teacher.to(self.device).eval()
        assert isinstance(teacher, BaseLCM)
        steps = self.recipe.train.steps
        count = capture(
            teacher,
            self.data,
            self.recipe.data,
            path,
            steps=steps,
            progress=progress,
            force=force,
        )
        return path, count

    def student(self) -> ModelTrainer:
        """Return a trainer of the student with its teacher.

        Raises NotFoundError for missing captured predictions, IntegrityError for those of another
        teacher or other data, and without validation data.
        """
        if not self.data.validation(1):
            raise IntegrityError(
                "data.validation is empty: nothing to compare student and teacher on",
                'validation = ["data/held-out"]',
            )
        if self.options.steps:
            return self._few_steps()
        captured, teacher = None, None
        if self.options.capture:
            data = data_fingerprint(self.recipe.data, self.data)
            captured = CapturedPredictions(Path(self.options.capture), self.fingerprint, data)
            captured(self.data.batch(0))  # fails now rather than in the first step
        else:
            teacher = self.teacher.to(self.device)
        model = self.model()
        teaching = Teaching(model, teacher, self.options, captured).to(self.device)
        return DistillTrainer(
            model,
            self.data,
            self.recipe.train,
            teaching=teaching,
            sampler=self._sampler,
            world=self.world,
        )

    def _few_steps(self) -> ModelTrainer:
        teacher = self.teacher.to(self.device)
        assert isinstance(teacher, DiffusionLCM)
        return self.alone(FewSteps(teacher, self.options.steps))

    def alone(self, objective: Objective = own_loss) -> ModelTrainer:
        """Return a trainer of the same student without a teacher, or with another objective."""
        return ModelTrainer(
            self.model(),
            self.data,
            self.recipe.train,
            objective=objective,
            sampler=self._sampler,
            world=self.world,
        )

    @cached_property
    def _sampler(self) -> Sampler:
        return make_sampler(self.recipe, self.space, self.config, self.world)

    def model(self) -> ConceptModel:
        """Return an untrained student, with the teacher's normalizer and codebooks.

        Raises IntegrityError if a model to start from has others.
        """
        torch.manual_seed(self.recipe.train.seed)
        model = new_model(self.config, self.start, self.recipe.start)
        for name in ("normalizer", "quantizer"):
            if not hasattr(model, name):
                continue
            mine, theirs = (getattr(each, name).state_dict() for each in (model, self.teacher))
            if self.start is None:
                getattr(model, name).load_state_dict(theirs)
            elif any(not torch.equal(mine[key], theirs[key]) for key in theirs):
                raise IntegrityError(
                    f"the {name} of {self.recipe.start} is not the teacher's",
                    "start from a new student, or from one trained with this teacher",
                )
        listen(model, self.space)
        return model.to(self.device)

    def report(self, models: dict[str, ConceptModel], folder: Path) -> dict[str, Any]:
        """Score the teacher and `models` on the held-out documents, and write report.json.

        For each it has the number of parameters, the scores of next-concept prediction, and
        to_teacher, the mean distance of the predictions from the teacher's; also the model's own
        loss and its prediction loss. With distill.steps, which has other losses, the teacher is
        also scored at the student's number of steps, as "undistilled".
        """
        batches = self.data.validation(self.recipe.train.eval_documents)
        seed, teacher = self.recipe.train.seed, self.teacher.to(self.device)
        if self.options.steps:
            config = sampling_in(teacher.config, self.options.steps)
            undistilled = new_model(config, teacher, self.options.teacher).to(self.device)
            models = models | {UNDISTILLED: undistilled}
        found: dict[str, Any] = {}
        for name, model in {"teacher": teacher, **models}.items():
            with evaluating(model):
                scores = next_concept_metrics(model, batches, seed=seed).means()
                far = to_teacher(model, teacher, batches, seed)
            found[name] = {"parameters": sum(p.numel() for p in model.parameters())} | scores
            found[name]["to_teacher"] = far
            if not self.options.steps:
                found[name] |= self._losses(model, batches)
        with atomic_path(folder / REPORT, force=True) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found

    def _losses(self, model: ConceptModel, batches: list[Batch]) -> dict[str, float]:
        """Return the parts of the loss that need only the model: own and prediction."""
        if learns_tokens(self.config):
            listen(model, self.space)
        options = replace(
            self.options, prediction=1.0, hidden=0.0, hidden_loss="mse", layers=(), capture=""
        )
        teaching = Teaching(model, self.teacher, options)
        with evaluating(model):
            return held_out_parts(teaching, model, batches, self.recipe.train.seed)


@torch.no_grad()
def held_out_parts(
    teaching: Teaching, model: ConceptModel, batches: Sequence[Batch], seed: int
) -> dict[str, float]:
    """Return the mean of each part of the loss over `batches`, unweighted."""
    for number, batch in enumerate(batches):
        seed_everything(seed, 0, number)
        teaching(model, batch.to(model.device))
    return teaching.take()


def distillation(recipe: ModelRecipe) -> Distillation:
    """Return the recipe's [distill] table. Raises UsageError if it cannot be distilled."""
    if recipe.distill is None:
        raise UsageError(
            f"the recipe {recipe.name} has no teacher", 'add [distill] with teacher = "runs/NAME"'
        )
    for name in ("normalizer", "quantizer"):
        if getattr(recipe, name):
            raise UsageError(f"{name} = {getattr(recipe, name)!r}: a student has its teacher's")
    return recipe.distill


def check_teacher(lesson: Lesson) -> None:
    """Raise IntegrityError if the teacher's outputs are not comparable with the student's."""
    mine, theirs, source = lesson.config, lesson.teacher.config, lesson.options.teacher
    space = lesson.space
    try:
        checkpoint.check_model_space(theirs, SpaceRef(space.name, space.fingerprint), space.dim)
    except LcmError as error:
        hint = f'set space = "{theirs.space.name or "NAME"}" in the recipe'
        raise IntegrityError(f"the teacher {source}: {error.message}", hint) from error
    if lesson.options.capture:
        check_capturable(theirs.architecture)
    for name in ("architecture", "normalizer", "flavour", "codebooks", "units", "schedule"):
        if getattr(mine, name, None) != (wanted := getattr(theirs, name, None)):
            raise IntegrityError(
                f"the student's {name} is {getattr(mine, name, None)}, "
                f"that of the teacher {source} is {wanted}",
                f"give the student the same {name} in [model]",
            )
    if theirs.max_length < mine.max_length and theirs.max_length < lesson.recipe.data.wrap:
        raise IntegrityError(
            f"the teacher {source} reads {theirs.max_length} concepts, fewer than data.wrap",
            f"set data.wrap = {theirs.max_length}",
        )


@contextmanager
def evaluating(model: ConceptModel) -> Iterator[None]:
    """Use a model in evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def to_teacher(
    model: ConceptModel, teacher: ConceptModel, batches: Sequence[Batch], seed: int = 0
) -> float:
    """Return the mean distance between the predictions of two models, given the same noise."""
    far, count = 0.0, 0
    for number, batch in enumerate(batches):
        rows = range(seed + 1000 * number, seed + 1000 * number + len(batch.lengths_B))
        placed = batch.to(model.device)
        predicted = [
            each.predict(placed, each.options(), Noise(rows, each.device))
            for each in (model, teacher)
        ]
        learned_BS = placed.learned(first=1)[:, 1:]
        distances_N = distance(predicted[0][learned_BS], predicted[1][learned_BS])
        far, count = far + float(distances_N.sum()), count + len(distances_N)
    return far / max(count, 1)
