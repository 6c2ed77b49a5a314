"""The loss of a student that learns a teacher's predictions and hidden states.

    loss = own L(student) + prediction P(student, teacher) + hidden H(student, teacher)

    P = mse     |z - z_teacher|^2, summed over channels like the models' own losses
        cosine  1 - cos(x, x_teacher), of concepts as they are in the space
        kl      KL(p_teacher || p), over the units of a codebook (discrete Quant-LCM)
    H = mean over pairs of layers of |W h - h_teacher|^2 / |h_teacher|^2, W learned

z is the output of a model: the normalized next concept (Base-LCM), or the denoiser's output for a
noised one. Student and teacher get the same noise at the same timesteps and the same codebooks, and
drop their context at the same positions. All parts are sums over the concepts to learn, so that
their weights are comparable.

Shapes: B documents, S concepts, D concept dim, M model dim, N targets, V outputs of a model's head.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.errors import IntegrityError
from lcm_cli.models.diffusion_lcm import DiffusionLCM
from lcm_cli.models.interface import Batch, ConceptModel, Loss, squared_error
from lcm_cli.models.quant_lcm import QuantLCM
from lcm_cli.training.distillation.draws import given_draws
from lcm_cli.training.parallel import World
from lcm_cli.training.recipe import Distillation

# The last module of each architecture, whose output is the model's.
HEADS = {
    "base": "postnet",
    "sonar_llm": "postnet",
    "one_tower": "postnet",
    "two_tower": "denoiser.final_proj",
    "quant": "head",
}

OUTPUTS = "teacher"  # column of a batch: a teacher's captured output for each concept, (B, S, D)


class Recorder:
    """Records the output and hidden states of a model while it computes its loss."""

    def __init__(self, model: ConceptModel, layers: Sequence[int]) -> None:
        self.recording = False
        self.output: Tensor | None = None
        self.hidden: dict[int, Tensor] = {}
        model.get_submodule(HEADS[model.config.architecture]).register_forward_hook(self._hook())
        blocks = [layer for stack in stacks(model) for layer in stack]
        for number in layers:
            blocks[number].register_forward_hook(self._hook(number))

    def _hook(self, number: int | None = None) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.recording and number is None:
                self.output = output
            elif self.recording and number is not None:
                self.hidden[number] = output

        return record

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record for a while; earlier records are discarded."""
        self.recording, self.output, self.hidden = True, None, {}
        try:
            yield
        finally:
            self.recording = False


class Teaching(nn.Module):
    """The loss of a student with a teacher; `matrices` are the learned maps W of hidden states.

    Without a teacher, batches hold its captured outputs.
    """

    def __init__(
        self,
        student: ConceptModel,
        teacher: ConceptModel | None,
        options: Distillation,
    ) -> None:
        super().__init__()
        self.options = options
        self.kind = prediction_loss(student, options)
        pairs: Sequence[tuple[int, int]] = ()
        widths = 0, 0
        if options.hidden and teacher is not None:
            pairs = options.layers or partners(student, teacher)
            _check_pairs(pairs, student, teacher)
            widths = student.config.model_dim, teacher.config.model_dim
        self.pairs = pairs
        self.matrices = nn.ModuleList(nn.Linear(*widths, bias=False) for _ in pairs)
        # In a list, so that the teacher does not become a submodule and get trained or saved.
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]
        self._recorder = Recorder(student, sorted({mine for mine, _ in pairs}))
        theirs = sorted({number for _, number in pairs})
        self._teacher_recorders = [Recorder(each, theirs) for each in self._teacher]
        self._sums = {"own": 0.0, "prediction": 0.0, "hidden": 0.0}
        self._weights = 0.0

    def forward(self, model: ConceptModel, batch: Batch) -> Loss:
        """Return the weighted sum of the losses, with the errors of the model's own loss."""
        draws, o = shared_draws(model, batch), self.options
        with self._recorder.active():
            own = model.loss(batch, **draws)
        for teacher, recorder in zip(self._teacher, self._teacher_recorders, strict=True):
            with torch.no_grad(), recorder.active():
                teacher.loss(batch, **draws)
        parts = {"own": own.value}
        if o.prediction:
            parts["prediction"] = self._prediction(model, batch, own)
        if o.hidden:
            parts["hidden"] = self._hidden(batch, own.targets)
        mean_weight = None if self.partial else own.mean_weight
        scale = 1.0 if mean_weight is None else float(mean_weight)
        for name, value in parts.items():
            self._sums[name] += float(value.detach()) * scale
        self._weights += own.targets * scale
        weighted = [getattr(o, name) * value for name, value in parts.items() if getattr(o, name)]
        total = torch.stack(weighted).sum()
        return Loss(total, own.errors_N, own.timesteps_N, own.terms, own.weights_N, mean_weight)

    @property
    def partial(self) -> bool:
        """Whether some parameters get no gradient: the head, if only hidden states are learned."""
        return not self.options.own and not self.options.prediction

    def take(self, world: World | None = None) -> dict[str, float]:
        """Return the mean of each part since the last call, over all processes."""
        *sums, count = (world or World()).sum([*self._sums.values(), self._weights])
        means = dict(zip(self._sums, (total / (count or 1.0) for total in sums), strict=True))
        weights = {"own": 1.0, "prediction": self.options.prediction, "hidden": self.options.hidden}
        self._sums, self._weights = dict.fromkeys(self._sums, 0.0), 0.0
        return {name: mean for name, mean in means.items() if weights[name]}

    def _prediction(self, model: ConceptModel, batch: Batch, own: Loss) -> Tensor:
        assert self._recorder.output is not None
        mine_NV = chosen(model, batch, self._recorder.output)
        if self._teacher:
            assert self._teacher_recorders[0].output is not None
            theirs_NV = chosen(model, batch, self._teacher_recorders[0].output)
        else:
            theirs_NV = captured_outputs(model, batch)
        errors_N = distances(model, self.kind, mine_NV, theirs_NV)
        return (errors_N if own.weights_N is None else errors_N * own.weights_N).sum()

    def _hidden(self, batch: Batch, targets: int) -> Tensor:
        mine, theirs = self._recorder.hidden, self._teacher_recorders[0].hidden
        errors = [
            _hidden_error(matrix, batch, mine[ours], theirs[number])
            for matrix, (ours, number) in zip(self.matrices, self.pairs, strict=True)
        ]
        return torch.stack(errors).mean() * targets


def prediction_loss(student: ConceptModel, options: Distillation) -> str:
    """Return the kind of prediction loss. Raises IntegrityError if the model's output has none."""
    discrete = isinstance(student, QuantLCM) and student.config.flavour == "discrete"
    kind = options.prediction_loss
    if kind == "auto":
        return "kl" if discrete else "mse"
    if (kind == "kl") != discrete and options.prediction:
        what = "chooses units: use kl" if discrete else "predicts concepts: use mse or cosine"
        raise IntegrityError(
            f'distill.prediction_loss = "{kind}": a {student.config.architecture} model {what}'
        )
    return kind


def distances(model: ConceptModel, kind: str, mine_NV: Tensor, theirs_NV: Tensor) -> Tensor:
    """Return the distance of each output from the teacher's, (N,), as the module defines it."""
    mine_NV, theirs_NV = mine_NV.float(), theirs_NV.float()
    if kind == "kl":
        logs_NV, wanted_NV = mine_NV.log_softmax(dim=-1), theirs_NV.log_softmax(dim=-1)
        return F.kl_div(logs_NV, wanted_NV, reduction="none", log_target=True).sum(dim=-1)
    if kind == "cosine":
        mine_ND, theirs_ND = map(model.normalizer.denormalize, (mine_NV, theirs_NV))
        return 1 - F.cosine_similarity(mine_ND, theirs_ND, dim=-1)
    return squared_error(mine_NV, theirs_NV)


def shared_draws(model: ConceptModel, batch: Batch) -> dict[str, Any]:
    """Draw the random numbers that student and teacher share, as keyword arguments of `loss`.

    A batch with captured outputs holds those of a diffusion model.
    """
    if (given := given_draws(batch)) is not None:
        return {"draws": given}
    if isinstance(model, DiffusionLCM):
        x0_BSD, _ = batch.targets(model.normalized(batch.concepts_BSD))
        return {"draws": model.draw(x0_BSD, None, shared=batch.sources_B is None)}
    if isinstance(model, QuantLCM):
        _, target_BS = batch.targets(batch.concepts_BSD)
        return {"draws": model.draw(target_BS.shape)}
    return {}


def chosen(model: ConceptModel, batch: Batch, out_BSV: Tensor) -> Tensor:
    """Return the outputs for the concepts to learn, (N, V)."""
    if isinstance(model, DiffusionLCM | QuantLCM):
        return out_BSV[batch.targets(batch.concepts_BSD)[1]]
    # Base-LCM's output at a concept predicts the next one.
    return out_BSV[:, :-1][_learned(model, batch)[:, 1:]]


def predicted(model: ConceptModel, batch: Batch, out_BSV: Tensor) -> Tensor:
    """Return the outputs for all concepts that such models can learn, (N, V).

    These are more than `chosen` returns for a model that learns only later concepts.
    """
    if isinstance(model, DiffusionLCM):
        return chosen(model, batch, out_BSV)
    return out_BSV[:, :-1][batch.learned(first=1)[:, 1:]]


def captured_outputs(model: ConceptModel, batch: Batch) -> Tensor:
    """Return the captured outputs for the concepts to learn, (N, V)."""
    outputs = batch.columns[OUTPUTS]
    assert isinstance(outputs, Tensor)
    return outputs[_learned(model, batch)]


def _learned(model: ConceptModel, batch: Batch) -> Tensor:
    """Return which concepts of a batch a model other than a Quant-LCM learns, (B, S)."""
    return batch.learned(first=getattr(model.config.objective, "min_context", 0))  # type: ignore[union-attr]


def stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Return a model's stacks of Transformer layers."""
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)]


def partners(student: nn.Module, teacher: nn.Module) -> list[tuple[int, int]]:
    """Pair every layer of the student with a layer of the teacher, evenly within each stack."""
    pairs: list[tuple[int, int]] = []
    mine = theirs = 0
    for ours, other in zip(stacks(student), stacks(teacher), strict=True):
        share = len(other) / len(ours)
        pairs += [(mine + i, theirs + math.ceil((i + 1) * share) - 1) for i in range(len(ours))]
        mine, theirs = mine + len(ours), theirs + len(other)
    return pairs


def _check_pairs(pairs: Sequence[tuple[int, int]], student: nn.Module, teacher: nn.Module) -> None:
    counts = [sum(map(len, stacks(model))) for model in (student, teacher)]
    for pair in pairs:
        for number, count, who in zip(pair, counts, ("student", "teacher"), strict=True):
            if not 0 <= number < count:
                raise IntegrityError(
                    f"distill.layers: the {who} has no layer {number}",
                    f"its layers are 0 to {count - 1}",
                )


def _hidden_error(matrix: nn.Module, batch: Batch, mine_BSM: Tensor, theirs_BSM: Tensor) -> Tensor:
    """Return the mean squared error of hidden states, relative to the teacher's mean square."""
    real_BS = batch.positions() < batch.lengths_B[:, None]
    if mine_BSM.shape[:2] != real_BS.shape:
        # A tower that reads clean concepts before noised ones, or targets only: keep the last.
        real_BS = batch.targets(batch.concepts_BSD)[1]
        count = real_BS.shape[1]
        mine_BSM, theirs_BSM = mine_BSM[:, -count:], theirs_BSM[:, -count:]
    mapped_NM, goal_NM = matrix(mine_BSM[real_BS]).float(), theirs_BSM[real_BS].float()
    return squared_error(mapped_NM, goal_NM).sum() / (goal_NM**2).sum().clamp(min=1e-6)
