"""The loss of a student that learns a teacher's predictions and hidden states.

    loss = own L(student) + prediction P(student, teacher) + hidden H(student, teacher)

    P = mse     |z - z_t|^2, summed over channels like the models' own losses
        cosine  1 - cos(x, x_t), of concepts as they are in the space
        kl      T^2 KL(p_t || p), over the units of a codebook (discrete Quant-LCM)
        jsd     T^2 (KL(p || m) + KL(p_t || m)) / 2, where m = (p + p_t) / 2 (likewise)
    H = mean over pairs of layers of
        mse     |W h - h_t|^2 / |h_t|^2, each summed over the batch
        cosine  1 - cos(W h, h_t), averaged over the batch

The subscript t is the teacher's. z is the output of a model: the normalized next concept
(Base-LCM), or the denoiser's output for a noised one; x is z in the space, p = softmax(z / T), h a
hidden state, and W a learned map. The gradient of a divergence falls as 1 / T^2, hence the factor
(Hinton et al. 2015, arXiv 1503.02531). Student and teacher get the same noise at the same timesteps
and the same codebooks, and drop their context at the same positions. All parts are sums over the
concepts to learn, so that their weights are comparable.

Shapes: B documents, S concepts, D concept dim, M model dim, N targets, V outputs of a model's head.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.errors import IntegrityError
from lcm_cli.models.diffusion_lcm import DiffusionLCM
from lcm_cli.models.interface import Batch, ConceptModel, Loss, squared_error
from lcm_cli.models.layers import stacks
from lcm_cli.models.quant_lcm import QuantLCM
from lcm_cli.training.distillation.draws import given_draws
from lcm_cli.training.parallel import World, gathered
from lcm_cli.training.recipes.model import Distillation, Ramp
from lcm_cli.training.schedules import loss_weight

# The last module of each architecture, whose output is the model's.
HEADS = {
    "base": "postnet",
    "sonar_llm": "postnet",
    "one_tower": "postnet",
    "two_tower": "denoiser.final_proj",
    "quant": "head",
}

PARTS = ("own", "prediction", "hidden")  # of the loss
DIVERGENCES = ("kl", "jsd")  # losses of distributions

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
        self._recorders: WeakKeyDictionary[ConceptModel, Recorder] = WeakKeyDictionary()
        self._recorder_of(student)  # before layers are compiled, which ignore later hooks
        theirs = sorted({number for _, number in pairs})
        self._teacher_recorders = [Recorder(each, theirs) for each in self._teacher]
        self._sums, self._count = dict.fromkeys(PARTS, 0.0), 0.0
        self.begin(0, 1)

    def begin(self, step: int, steps: int) -> None:
        """Use the weights of step number `step` of `steps` from now on."""
        self.weights = {
            name: loss_weight(getattr(self.options, name), step, steps) for name in PARTS
        }

    @property
    def scheduled(self) -> dict[str, float]:
        """The current weights that change over the run, as `own_weight` and so on."""
        ramps = [name for name in PARTS if isinstance(getattr(self.options, name), Ramp)]
        return {f"{name}_weight": self.weights[name] for name in ramps}

    def forward(self, model: ConceptModel, batch: Batch) -> Loss:
        """Return the weighted sum of the losses, with the errors of the model's own loss.

        `model` is the student, or a copy of it.
        """
        draws, o = shared_draws(model, batch), self.options
        mine = self._recorder_of(model)
        with mine.active():
            own = model.loss(batch, **draws)
        for teacher, recorder in zip(self._teacher, self._teacher_recorders, strict=True):
            with torch.no_grad(), recorder.active():
                teacher.loss(batch, **draws)
        parts = {"own": own.value}
        if o.prediction:
            assert mine.output is not None
            parts["prediction"] = self._prediction(model, batch, mine.output, own)
        if o.hidden:
            parts["hidden"] = self._hidden(batch, mine.hidden, own.targets)
        mean_weight = None if self.partial else own.mean_weight
        scale = 1.0 if mean_weight is None else float(mean_weight)
        for name, value in parts.items():
            self._sums[name] += float(value.detach()) * scale
        self._count += own.targets * scale
        # A part whose weight is 0 only for now stays in the graph: with DDP, every parameter must
        # get a gradient in every step, if any.
        weighted = [self.weights[name] * part for name, part in parts.items() if getattr(o, name)]
        total = torch.stack(weighted).sum()
        return Loss(total, own.errors_N, own.timesteps_N, own.terms, own.weights_N, mean_weight)

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher itself is here, so that any document can be compared with it."""
        return bool(self._teacher)

    @property
    def partial(self) -> bool:
        """Whether some parameters get no gradient: the head, if only hidden states are learned."""
        return not self.options.own and not self.options.prediction

    def take(self, world: World | None = None) -> dict[str, float]:
        """Return the mean of each part since the last call, over all processes."""
        *sums, count = (world or World()).sum([*self._sums.values(), self._count])
        means = dict(zip(PARTS, (total / (count or 1.0) for total in sums), strict=True))
        self._sums, self._count = dict.fromkeys(PARTS, 0.0), 0.0
        return {n: mean for n, mean in means.items() if n == "own" or getattr(self.options, n)}

    def _recorder_of(self, student: ConceptModel) -> Recorder:
        if student not in self._recorders:
            layers = sorted({mine for mine, _ in self.pairs})
            self._recorders[student] = Recorder(student, layers)
        return self._recorders[student]

    def _prediction(self, model: ConceptModel, batch: Batch, mine: Tensor, own: Loss) -> Tensor:
        mine_NV = chosen(model, batch, mine)
        if self._teacher:
            assert self._teacher_recorders[0].output is not None
            theirs_NV = chosen(model, batch, self._teacher_recorders[0].output)
        else:
            theirs_NV = captured_outputs(model, batch)
        errors_N = distances(model, self.kind, mine_NV, theirs_NV, self.options.temperature)
        return (errors_N if own.weights_N is None else errors_N * own.weights_N).sum()

    def _hidden(self, batch: Batch, mine: dict[int, Tensor], targets: int) -> Tensor:
        theirs, kind = self._teacher_recorders[0].hidden, self.options.hidden_loss
        errors = [
            # Outside a training step, fsdp shards the matrices.
            hidden_error(kind, gathered(matrix), *_real(batch, mine[ours], theirs[number]))
            for matrix, (ours, number) in zip(self.matrices.parameters(), self.pairs, strict=True)
        ]
        # Each error is a mean or a ratio: times the targets, to be a sum like the other parts.
        return torch.stack(errors).mean() * targets


def prediction_loss(student: ConceptModel, options: Distillation) -> str:
    """Return the kind of prediction loss.

    Raises IntegrityError if the loss or the temperature does not apply to the model's output.
    """
    discrete = isinstance(student, QuantLCM) and student.config.flavour == "discrete"
    kind, architecture = options.prediction_loss, student.config.architecture
    if kind == "auto":
        kind = "kl" if discrete else "mse"
    suited = DIVERGENCES if discrete else ("mse", "cosine")
    if kind not in suited:
        what = "chooses units" if discrete else "predicts concepts"
        raise IntegrityError(
            f'distill.prediction_loss = "{kind}": a {architecture} model {what}: '
            f"use {' or '.join(suited)}"
        )
    if options.temperature != 1 and kind not in DIVERGENCES:
        raise IntegrityError(
            f'distill.temperature = {options.temperature}: the loss "{kind}" has no temperature',
            "leave distill.temperature out",
        )
    output = student.config.schedule.prediction if isinstance(student, DiffusionLCM) else "x0"
    if kind == "cosine" and output != "x0":
        raise IntegrityError(
            f'distill.prediction_loss = "cosine": the model predicts {output}, not concepts',
            'set distill.prediction_loss = "mse"',
        )
    return kind


def distances(
    model: ConceptModel, kind: str, mine_NV: Tensor, theirs_NV: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the distance of each output from the teacher's, (N,), as the module defines it."""
    mine_NV, theirs_NV = mine_NV.float(), theirs_NV.float()
    if kind in DIVERGENCES:
        logs = [(out_NV / temperature).log_softmax(dim=-1) for out_NV in (mine_NV, theirs_NV)]
        divergence = kullback_leibler if kind == "kl" else jensen_shannon
        return temperature**2 * divergence(*logs)
    if kind == "cosine":
        mine_ND, theirs_ND = map(model.normalizer.denormalize, (mine_NV, theirs_NV))
        return 1 - F.cosine_similarity(mine_ND, theirs_ND, dim=-1)
    return squared_error(mine_NV, theirs_NV)


def kullback_leibler(logs_NV: Tensor, wanted_NV: Tensor) -> Tensor:
    """Return KL(wanted || p), (N,), of log probabilities."""
    return F.kl_div(logs_NV, wanted_NV, reduction="none", log_target=True).sum(dim=-1)


def jensen_shannon(logs_NV: Tensor, wanted_NV: Tensor) -> Tensor:
    """Return the mean divergence of both distributions from their mean, (N,)."""
    mean_NV = torch.logaddexp(logs_NV, wanted_NV) - math.log(2)
    return (kullback_leibler(mean_NV, logs_NV) + kullback_leibler(mean_NV, wanted_NV)) / 2


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


def partners(student: nn.Module, teacher: nn.Module) -> list[tuple[int, int]]:
    """Pair every layer of the student with a layer of the teacher, evenly within each stack."""
    pairs: list[tuple[int, int]] = []
    mine = theirs = 0
    for ours, other in zip(stacks(student), stacks(teacher), strict=True):
        share = len(other) / len(ours)
        # The last of each group, so that the last layers of both are partners.
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


def _real(batch: Batch, mine_BSM: Tensor, theirs_BSM: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states of both models at real positions, (N, M) each."""
    real_BS = batch.positions() < batch.lengths_B[:, None]
    if mine_BSM.shape[:2] != real_BS.shape:
        # A tower that reads clean concepts before noised ones, or targets only: keep the last.
        real_BS = batch.targets(batch.concepts_BSD)[1]
        count = real_BS.shape[1]
        mine_BSM, theirs_BSM = mine_BSM[:, -count:], theirs_BSM[:, -count:]
    return mine_BSM[real_BS], theirs_BSM[real_BS]


def hidden_error(kind: str, matrix: Tensor, mine_NM: Tensor, theirs_NM: Tensor) -> Tensor:
    """Return the error of hidden states mapped by `matrix`, a scalar, as the module defines it."""
    mapped_NM, goal_NM = F.linear(mine_NM, matrix).float(), theirs_NM.float()
    if kind == "cosine":
        errors_N = 1 - F.cosine_similarity(mapped_NM, goal_NM, dim=-1)
        return errors_N.sum() / max(len(errors_N), 1)
    return squared_error(mapped_NM, goal_NM).sum() / (goal_NM**2).sum().clamp(min=1e-6)
