"""What a student learns from a teacher: its predictions, and its hidden states.

    loss = own L(student) + prediction P(student, teacher) + hidden H(student, teacher)

    P = mse     |z - z_teacher|^2, summed over channels like the models' own losses
        cosine  1 - cos(x, x_teacher), of concepts as they are in the space
        kl      KL(p_teacher || p), over the units of a codebook (discrete Quant-LCM)
    H = mean over pairs of layers of |W h - h_teacher|^2 / |h_teacher|^2, W learned

z is what a model puts out: the normalized next concept (Base-LCM), or what its denoiser says of a
noised one. Student and teacher are shown the same noise at the same timesteps, the same codebooks,
and learn without context at the same places. All parts are sums over the concepts to learn, so the
weights compare them.

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
from lcm_cli.training.parallel import World
from lcm_cli.training.recipe import Distillation

# Where each architecture's outputs leave it.
HEADS = {
    "base": "postnet",
    "sonar_llm": "postnet",
    "one_tower": "postnet",
    "two_tower": "denoiser.final_proj",
    "quant": "head",
}

# Gives the teacher's outputs after each concept of a batch, (B, S, D), as a file holds them.
Lookup = Callable[[Batch], Tensor]


class Ear:
    """Hears what a model puts out while it computes its loss: output, and hidden states."""

    def __init__(self, model: ConceptModel, layers: Sequence[int]) -> None:
        self.listens = False
        self.output: Tensor | None = None
        self.hidden: dict[int, Tensor] = {}
        model.get_submodule(HEADS[model.config.architecture]).register_forward_hook(self._hear())
        blocks = [layer for stack in stacks(model) for layer in stack]
        for number in layers:
            blocks[number].register_forward_hook(self._hear(number))

    def _hear(self, number: int | None = None) -> Callable[..., None]:
        def hear(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.listens and number is None:
                self.output = output
            elif self.listens and number is not None:
                self.hidden[number] = output

        return hear

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for a while; what was heard before is forgotten."""
        self.listens, self.output, self.hidden = True, None, {}
        try:
            yield
        finally:
            self.listens = False


class Teaching(nn.Module):
    """The loss of a student with a teacher; `matrices` are the learned maps W of hidden states.

    With `captured` predictions the teacher is not needed (None).
    """

    def __init__(
        self,
        student: ConceptModel,
        teacher: ConceptModel | None,
        options: Distillation,
        captured: Lookup | None = None,
    ) -> None:
        super().__init__()
        self.options, self.captured = options, captured
        self.kind = prediction_loss(student, options)
        pairs: Sequence[tuple[int, int]] = ()
        widths = 0, 0
        if options.hidden and teacher is not None:
            pairs = options.layers or partners(student, teacher)
            _check_pairs(pairs, student, teacher)
            widths = student.config.model_dim, teacher.config.model_dim
        self.pairs = pairs
        self.matrices = nn.ModuleList(nn.Linear(*widths, bias=False) for _ in pairs)
        # In a list: neither model is a part of this one.
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]
        self._ear = Ear(student, sorted({mine for mine, _ in pairs}))
        theirs = sorted({number for _, number in pairs})
        self._ears = [Ear(each, theirs) for each in self._teacher]
        self._sums = {"own": 0.0, "prediction": 0.0, "hidden": 0.0}
        self._targets = 0

    def forward(self, model: ConceptModel, batch: Batch) -> Loss:
        """Return the weighted sum of the losses; its errors are those of the model's own loss."""
        draws, o = shared_draws(model, batch), self.options
        with self._ear.listening():
            own = model.loss(batch, **draws)
        for teacher, ear in zip(self._teacher, self._ears, strict=True):
            with torch.no_grad(), ear.listening():
                teacher.loss(batch, **draws)
        parts = {"own": own.value}
        if o.prediction:
            parts["prediction"] = self._prediction(model, batch, own)
        if o.hidden:
            parts["hidden"] = self._hidden(batch, own.targets)
        for name, value in parts.items():
            self._sums[name] += float(value.detach())
        self._targets += own.targets
        weighed = [getattr(o, name) * value for name, value in parts.items() if getattr(o, name)]
        total = torch.stack(weighed).sum()
        return Loss(total, own.errors_N, own.timesteps_N, own.terms)

    @property
    def partial(self) -> bool:
        """Whether a part of the student may have no gradient: its head, where only hidden states
        are learned."""
        return not self.options.own and not self.options.prediction

    def take(self, world: World | None = None) -> dict[str, float]:
        """Return the mean of each part since the last call, over all processes."""
        *sums, targets = (world or World()).sum([*self._sums.values(), self._targets])
        means = dict(zip(self._sums, (total / max(targets, 1) for total in sums), strict=True))
        weights = {"own": 1.0, "prediction": self.options.prediction, "hidden": self.options.hidden}
        self._sums, self._targets = dict.fromkeys(self._sums, 0.0), 0
        return {name: mean for name, mean in means.items() if weights[name]}

    def _prediction(self, model: ConceptModel, batch: Batch, own: Loss) -> Tensor:
        assert self._ear.output is not None
        mine_NV = chosen(model, batch, self._ear.output)
        if self.captured is not None:
            theirs = self.captured(batch)
        else:
            assert self._ears[0].output is not None
            theirs = self._ears[0].output
        theirs_NV = chosen(model, batch, theirs)
        errors_N = distances(model, self.kind, mine_NV, theirs_NV)
        return (errors_N if own.weights_N is None else errors_N * own.weights_N).sum()

    def _hidden(self, batch: Batch, targets: int) -> Tensor:
        mine, theirs = self._ear.hidden, self._ears[0].hidden
        errors = [
            _hidden_error(matrix, batch, mine[ours], theirs[number])
            for matrix, (ours, number) in zip(self.matrices, self.pairs, strict=True)
        ]
        return torch.stack(errors).mean() * targets


def prediction_loss(student: ConceptModel, options: Distillation) -> str:
    """Return the kind of prediction loss; raises IntegrityError if the model has no such output."""
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
    """Return how far each output is from the teacher's, (N,); see the top of the file."""
    mine_NV, theirs_NV = mine_NV.float(), theirs_NV.float()
    if kind == "kl":
        logs_NV, wanted_NV = mine_NV.log_softmax(dim=-1), theirs_NV.log_softmax(dim=-1)
        return F.kl_div(logs_NV, wanted_NV, reduction="none", log_target=True).sum(dim=-1)
    if kind == "cosine":
        mine_ND, theirs_ND = map(model.normalizer.denormalize, (mine_NV, theirs_NV))
        return 1 - F.cosine_similarity(mine_ND, theirs_ND, dim=-1)
    return squared_error(mine_NV, theirs_NV)


def shared_draws(model: ConceptModel, batch: Batch) -> dict[str, Any]:
    """Draw the randomness that student and teacher share, as an argument of their losses."""
    if isinstance(model, DiffusionLCM):
        x0_BSD, _ = batch.targets(model.normalized(batch.concepts_BSD))
        return {"draws": model.draw(x0_BSD, None, shared=batch.sources_B is None)}
    if isinstance(model, QuantLCM):
        _, target_BS = batch.targets(batch.concepts_BSD)
        return {"draws": model.draw(target_BS.shape)}
    return {}


def chosen(model: ConceptModel, batch: Batch, out_BSV: Tensor) -> Tensor:
    """Return the outputs at the concepts that are learned, (N, V)."""
    if isinstance(model, DiffusionLCM | QuantLCM):
        return out_BSV[batch.targets(batch.concepts_BSD)[1]]
    # Of Base-LCM what comes after a concept is what it says of the next.
    learned_BS = batch.learned(first=model.config.objective.min_context)  # type: ignore[union-attr]
    return out_BSV[:, :-1][learned_BS[:, 1:]]


def stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Return the stacks of Transformer layers of a model."""
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)]


def partners(student: nn.Module, teacher: nn.Module) -> list[tuple[int, int]]:
    """Pair every layer of the student with one of the teacher's, evenly within each stack."""
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
                    f"it has {count}, and the first is 0",
                )


def _hidden_error(matrix: nn.Module, batch: Batch, mine_BSM: Tensor, theirs_BSM: Tensor) -> Tensor:
    """Return the squared error of hidden states, in units of the teacher's, averaged."""
    real_BS = batch.positions() < batch.lengths_B[:, None]
    if mine_BSM.shape[:2] != real_BS.shape:
        # A tower that sees clean concepts and then unfinished ones, or targets only.
        real_BS = batch.targets(batch.concepts_BSD)[1]
        count = real_BS.shape[1]
        mine_BSM, theirs_BSM = mine_BSM[:, -count:], theirs_BSM[:, -count:]
    mapped_NM, goal_NM = matrix(mine_BSM[real_BS]).float(), theirs_BSM[real_BS].float()
    return squared_error(mapped_NM, goal_NM).sum() / (goal_NM**2).sum().clamp(min=1e-6)
