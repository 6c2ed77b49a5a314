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

from lcm_cli.documents.shares import Share
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.next_concept import distance, next_concept_metrics
from lcm_cli.files import atomic_path
from lcm_cli.models import checkpoint
from lcm_cli.models.config import OneTowerConfig, SpaceRef, TwoTowerConfig
from lcm_cli.models.diffusion_lcm import DiffusionLCM
from lcm_cli.models.interface import Batch, ConceptModel, Noise
from lcm_cli.progress import StartJob, no_progress
from lcm_cli.space import load_space
from lcm_cli.training.data.batches import ConceptData
from lcm_cli.training.distillation.capturing import Capture, Captured, begin
from lcm_cli.training.distillation.draws import DocumentDraws, noise_settings
from lcm_cli.training.distillation.few_steps import FewSteps, check_few_steps, sampling_in
from lcm_cli.training.distillation.predictions import (
    FIRST,
    SHARD_BYTES,
    VERSION,
    CapturedPredictions,
    Plan,
    Settings,
    TaughtData,
    check_capturable,
    check_same,
    data_fingerprint,
    model_fingerprint,
    read_settings,
)
from lcm_cli.training.distillation.teaching import Teaching
from lcm_cli.training.parallel import World, join_processes
from lcm_cli.training.prepare import (
    EndlessData,
    add_token_loss,
    learns_tokens,
    load_start,
    make_sampler,
    model_config,
    new_model,
    open_data,
)
from lcm_cli.training.recipes.model import Distillation, ModelRecipe, Training
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
        if self.teaching.has_teacher:
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

    def capture(
        self, share: Share | None = None, *, force: bool = False, progress: StartJob = no_progress
    ) -> Captured:
        """Capture the teacher's predictions, or the shards of a `share`, in the recipe's folder.

        Shards that exist are kept, unless `force`. Raises UsageError without `capture` in the
        recipe, or if the folder holds anything else.
        """
        if not self.options.capture:
            raise UsageError("the recipe names no folder", 'set distill.capture = "data/teacher"')
        folder = Path(self.options.capture)
        settings = begin(folder, self._settings(), force=force)
        plan = Plan.of(folder, settings, self._documents, self.recipe.train.steps)
        teacher = self.teacher.to(self.device)
        capture = Capture(teacher, self._documents, self._noise(settings.seed), plan)
        return capture.run(share or Share(0, 1), progress, force=force)

    @property
    def _documents(self) -> ConceptData:
        assert isinstance(self.data, ConceptData)
        return self.data

    def _settings(self) -> Settings:
        """Return the settings with which the recipe captures predictions."""
        o, train, dim = self.options, self.recipe.train, self.config.concept_dim
        noise = noise_settings(self.config)
        return Settings(
            VERSION,
            teacher=self.fingerprint,
            data=data_fingerprint(self._documents, self.config.max_length),
            dim=dim,
            noise=noise,
            seed=train.seed if noise else 0,
            draws=o.draws,
            store=o.capture_store,
            precision=train.precision,
            shard_concepts=max(1, SHARD_BYTES // (2 * dim * o.draws)),
        )

    def _noise(self, seed: int) -> DocumentDraws | None:
        if isinstance(self.config, OneTowerConfig | TwoTowerConfig):
            return DocumentDraws(self.config, seed)
        return None

    def _taught(self) -> TaughtData:
        """Return the data with captured predictions, of which the first batch is checked."""
        folder, settings = Path(self.options.capture), self._settings()
        if (found := read_settings(folder)) is None:
            raise NotFoundError(f"no captured predictions: {folder}", FIRST)
        check_same(folder, found, settings)
        plan = Plan.of(folder, found, self._documents, self.recipe.train.steps)
        captured, noise = CapturedPredictions(plan), self._noise(found.seed)
        data = TaughtData(self._documents, self.config, noise, captured, found.draws)
        data.batch(0)  # fails now rather than in the first step
        return data

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
        captured = bool(self.options.capture)
        data = self._taught() if captured else self.data
        teacher = None if captured else self.teacher.to(self.device)
        model = self.model()
        teaching = Teaching(model, teacher, self.options).to(self.device)
        return DistillTrainer(
            model,
            data,
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
        add_token_loss(model, self.space)
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
            add_token_loss(model, self.space)
        live = replace(self.options, capture="", draws=1)
        options = replace(live, prediction=1.0, hidden=0.0, hidden_loss="mse", layers=())
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
            raise UsageError(f"{name} = {getattr(recipe, name)!r}: a student uses its teacher's")
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
        check_capturable(theirs.architecture, lesson.options.draws)
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
        # Both models draw the same noise. Batches of at most 1000 rows share none.
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
