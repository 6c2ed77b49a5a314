"""Recipes with kind = "model": training and distillation of a concept model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lcm_cli.errors import IntegrityError
from lcm_cli.models.config import AnyConfig, QuantizerConfig, from_dict, preset, to_dict
from lcm_cli.training.data_options import DataOptions
from lcm_cli.training.recipes.adapter import AdapterOptions, check_adapter

_RATES = ("learning_rate", "initial_rate", "final_rate", "eps", "weight_decay", "clip")


@dataclass(frozen=True)
class Training:
    """How to train a model. schedules.py explains the rates; intervals are in steps.

    A batch is cut into `accumulate` micro-batches, which one process computes one after the other,
    and several share. The results do not depend on the number of processes.
    """

    steps: int = 10_000
    learning_rate: float = 4e-4
    schedule: Literal["cosine", "wsd", "linear", "inverse_sqrt", "constant"] = "cosine"
    warmup: int = 200
    decay: float = 0.5  # fraction of the steps over which wsd decays
    initial_rate: float = 1e-7
    final_rate: float = 1e-6
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for matrices, with adamw for the rest
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    clip: float = 25.0  # largest norm of the gradient; 0: no limit
    accumulate: int = 1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    ema: float = 0.0  # decay of the average of weights that is saved; 0 saves the weights
    checkpointing: bool = False  # recompute activations: less memory, a third more time
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"  # with several processes
    freeze: tuple[str, ...] = ()  # names of parameters not to train, such as "frontend.*"
    on_nan: Literal["stop", "skip"] = "stop"
    save_every: int = 500
    keep: int = 2  # number of saved states
    eval_every: int = 500
    eval_documents: int = 100
    patience: int = 0  # evaluations without improvement before the run ends; 0: no limit
    sample_every: int = 0  # log a decoded sample; 0: never
    sample_to: str = ""  # a language; by default English, if the space has it
    judge: str = ""  # a causal language model, folder or Hub name, for MI in evaluations
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name in ("steps", "accumulate", "save_every", "keep", "eval_every", "eval_documents"):
            if getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in (*_RATES, "warmup", "patience", "sample_every", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise IntegrityError(
                    f"train.{name} must be 0 or a positive number, not {getattr(self, name)}"
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise IntegrityError(f"train.betas must be in [0, 1), not {list(self.betas)}")
        if not 0 <= self.ema < 1:
            raise IntegrityError(f"train.ema must be in [0, 1), not {self.ema}")
        if not 0 <= self.decay <= 1:
            raise IntegrityError(f"train.decay must be in [0, 1], not {self.decay}")


@dataclass(frozen=True)
class Ramp:
    """A weight that changes over a run: `start` in the first step, `end` in the last.

    In between it follows a straight line or half a cosine.
    """

    start: float
    end: float
    schedule: Literal["linear", "cosine"] = "linear"

    def __bool__(self) -> bool:
        """Whether the weight is ever above 0."""
        return bool(self.start or self.end)


@dataclass(frozen=True)
class Distillation:
    """The [distill] table: how a model learns from `teacher`, a checkpoint or a run.

    `own` weights the model's usual loss, `prediction` the distance between the outputs of student
    and teacher (by `prediction_loss`; "auto": "kl" for a discrete Quant-LCM, else "mse"), and
    `hidden` the distance between their hidden states (by `hidden_loss`). `temperature` flattens
    the distributions that "kl" and "jsd" compare. `layers` are pairs of layer numbers,
    [student's, teacher's]; by default every layer of the student has a partner. `capture` is a
    folder of the teacher's predictions, stored as `capture_store`, to learn from without the
    teacher; those of a diffusion model are for `draws` draws of noise per document. With `compare`
    the same model is also trained without a teacher.

    `steps` distils the sampler of a diffusion model instead: the student, which starts as a copy of
    the teacher, learns to sample in this many steps without guidance.
    """

    teacher: str
    own: float | Ramp = 1.0
    prediction: float | Ramp = 1.0
    prediction_loss: Literal["auto", "mse", "cosine", "kl", "jsd"] = "auto"
    temperature: float = 1.0
    hidden: float | Ramp = 0.0
    hidden_loss: Literal["mse", "cosine"] = "mse"
    layers: tuple[tuple[int, int], ...] = ()
    capture: str = ""
    capture_store: Literal["float16", "int8"] = "float16"
    draws: int = 1
    compare: bool = True
    steps: int = 0

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers and combinations."""
        self._check_numbers()
        if not self.prediction and not self.hidden:
            raise IntegrityError("nothing is learned from the teacher", "distill.prediction = 1.0")
        if self.capture and self.hidden:
            raise IntegrityError(
                f"{self.capture} holds predictions, not hidden states",
                "set distill.hidden = 0, or leave distill.capture out",
            )
        if self.draws > 1 and not self.capture:
            raise IntegrityError(
                "distill.draws has no effect without distill.capture: each step draws new noise",
                "leave distill.draws out",
            )
        for name in ("layers", "hidden_loss"):
            if getattr(self, name) not in ((), "mse") and not self.hidden:
                raise IntegrityError(
                    f"distill.{name} has no effect without distill.hidden", "distill.hidden = 1.0"
                )
        defaults = {part.name: part.default for part in fields(self)}
        losses = (
            *("own", "prediction", "prediction_loss", "temperature"),
            *("hidden", "hidden_loss", "layers", "capture"),
        )
        if self.steps and any(getattr(self, name) != defaults[name] for name in losses):
            raise IntegrityError(
                "distill.steps replaces all other losses of [distill]",
                f"leave {', '.join(losses)} out",
            )

    def _check_numbers(self) -> None:
        for name in ("own", "prediction", "hidden"):
            weight = getattr(self, name)
            ends = (weight.start, weight.end) if isinstance(weight, Ramp) else (weight,)
            for number in ends:
                if not 0 <= number < math.inf:
                    raise IntegrityError(
                        f"distill.{name} must be 0 or a positive number, not {number}"
                    )
        if not 0 < self.temperature < math.inf:
            raise IntegrityError(f"distill.temperature must be positive, not {self.temperature}")
        if self.draws < 1:
            raise IntegrityError(f"distill.draws must be at least 1, not {self.draws}")
        if self.steps < 0:
            raise IntegrityError(f"distill.steps must not be negative: {self.steps}")


@dataclass(frozen=True)
class ModelRecipe:
    """A recipe with kind = "model": a concept model, new or, with `start`, finetuned.

    `model` may set `architecture`, `size` (models/config.py: ARCHITECTURES, SIZES) and any field of
    the model's config. `normalizer` and `quantizer` name checkpoints to take these from; without
    them, those of a new model are fitted on the data first. With `adapter`, only small updates of
    `start` are trained and kept.
    """

    kind: Literal["model"]
    name: str
    data: DataOptions
    licence: str = ""
    space: str = "tiny"
    start: str = ""
    normalizer: str = ""
    quantizer: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    train: Training = field(default_factory=Training)
    adapter: AdapterOptions | None = None
    distill: Distillation | None = None

    def __post_init__(self) -> None:
        """Raise IntegrityError for an [adapter] that does not suit the rest."""
        check_adapter(self.adapter, self.start, self.distill)
        if self.adapter is None:
            return
        if self.normalizer or self.quantizer:
            raise IntegrityError(
                "[adapter] cannot be combined with another normalizer or quantizer",
                "leave normalizer and quantizer out: an adapter keeps those of its base",
            )
        if self.train.parallel == "fsdp":
            message = 'train.parallel = "fsdp" does not train adapters'
            raise IntegrityError(message, 'set train.parallel = "ddp"')

    def config(self, given: Mapping[str, Any], start: AnyConfig | None = None) -> AnyConfig:
        """Return the model's config: the preset's or that of `start`, changed by [model].

        `given` are fields that the recipe cannot set. Raises UsageError for an unknown architecture
        or size, IntegrityError for an unknown field; both suggest the nearest name.
        """
        changes = {key: value for key, value in self.model.items() if key not in _PRESET}
        if taken := sorted(set(changes) & set(given)):
            raise IntegrityError(f"[model] cannot set {taken[0]!r}: it follows from the space")
        if start is None:
            architecture = str(self.model.get("architecture", ""))
            start = preset(architecture, str(self.model.get("size", "5M")))
        elif self.model.get("architecture", start.architecture) != start.architecture:
            raise IntegrityError(
                f"{self.start} is a {start.architecture} model, not a {self.model['architecture']}",
                "leave model.architecture out, or start from another checkpoint",
            )
        changed = from_dict(_merged(to_dict(start), changes | dict(given)), "the recipe's [model]")
        assert not isinstance(changed, QuantizerConfig)
        return changed


_PRESET = ("architecture", "size")


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `old` updated with `changes`, nested tables included."""
    both = dict(old)
    for key, value in changes.items():
        inner = both.get(key)
        whole = key == "prompts" or not (isinstance(inner, dict) and isinstance(value, Mapping))
        both[key] = value if whole else _merged(inner, value)  # type: ignore[arg-type]
    return both
