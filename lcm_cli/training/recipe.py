"""Training recipes: TOML files that are fully checked before anything starts."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.files import read_utf8
from lcm_cli.models.config import (
    AnyConfig,
    NormalizerConfig,
    QuantizerConfig,
    from_dict,
    preset,
    to_dict,
)
from lcm_cli.schema import json_value, nearest, parse, toml_table
from lcm_cli.training.data_options import DataOptions


@dataclass(frozen=True)
class SpaceData:
    """The text of a space: JSON Lines of {language code: sentence}, relative to the current folder.

    An entry of `train` is PATH[:WEIGHT]; the weight is how often an epoch uses each line.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpaceShape:
    """Shapes of a new space; a finetuned one keeps its own.

    `vocabulary` is the number of sentencepiece pieces; with `tie`, encoder and decoder share one
    embedding.
    """

    vocabulary: int = 8000
    dim: int = 256
    heads: int = 4
    ffn_dim: int = 1024
    encoder_layers: int = 3
    decoder_layers: int = 3
    max_length: int = 256
    tie: bool = True

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name, value in vars(self).items():
            if value < 1 and name != "tie":
                raise IntegrityError(f"shape.{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class SpaceTraining:
    """How to train a space. Lengths are in tokens, intervals in steps.

    `batch_tokens` is the number of tokens on one side of the pairs. `noise` is the largest standard
    deviation of the noise added to concepts, in units of theirs. `translate` is the fraction of
    targets that are translations; the others are the sentences themselves. `align` weights the loss
    that pulls translations together, `contrast` the one that pushes other sentences apart. `join`
    is the fraction of pairs joined into longer ones. `decay` is the fraction of steps over which
    the learning rate falls to 0. `dropout` is the dropout probability in each layer, `smoothing`
    the label smoothing of the decoder's targets, `weight_decay` the decay of matrices. `ema` is the
    decay of an average of the weights, which is then saved and evaluated in their place. `freeze`
    are patterns of the names of parameters not to train, such as "encoder.*". `store` is the number
    format of the exported space. With int8, every step computes with rounded matrices, and its
    gradients change the exact ones (the straight-through estimator, arXiv 1308.3432), so that the
    space learns to do without the digits that it loses.
    """

    steps: int = 10_000
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    warmup: int = 200
    decay: float = 0.25
    clip: float = 1.0
    noise: float = 0.4
    translate: float = 0.5
    align: float = 0.3
    contrast: float = 0.0
    join: float = 0.15
    dropout: float = 0.0
    smoothing: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    store: Literal["float16", "int8"] = "float16"
    max_tokens: int = 128
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    save_every: int = 250
    eval_every: int = 2000
    eval_sentences: int = 100

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name in ("steps", "batch_tokens", "max_tokens", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in (*_SPACE_NUMBERS, "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise IntegrityError(
                    f"train.{name} must be 0 or a positive number, not {getattr(self, name)}"
                )
        for name in ("decay", "translate", "join"):
            if not 0 <= getattr(self, name) <= 1:
                raise IntegrityError(f"train.{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("dropout", "smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be in [0, 1), not {getattr(self, name)}")


_SPACE_NUMBERS = ("learning_rate", "warmup", "clip", "noise", "align", "contrast", "weight_decay")


@dataclass(frozen=True)
class AdapterOptions:
    """The [adapter] table: `start` is frozen, and low-rank updates of its matrices are trained.

    An update is the product of two matrices of `rank` columns and rows, times `alpha` / `rank`
    (LoRA, arXiv 2106.09685). `dropout` applies to its inputs. `modules` are patterns of the names
    of linear maps; by default all maps of a model, and all in the layers of a space's decoder.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        if self.rank < 1:
            raise IntegrityError(f"adapter.rank must be at least 1, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise IntegrityError(f"adapter.alpha must be a positive number, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise IntegrityError(f"adapter.dropout must be in [0, 1), not {self.dropout}")


def _check_adapter(recipe: "SpaceRecipe | ModelRecipe") -> None:
    """Raise IntegrityError for a recipe whose [adapter] has nothing to adapt."""
    if recipe.adapter is None:
        return
    if recipe.distill is not None:
        raise IntegrityError("[adapter] and a teacher", "distil without [adapter]")
    if not recipe.start:
        hint = 'name the checkpoint to adapt: start = "tiny"'
        raise IntegrityError("[adapter] without start", hint)


@dataclass(frozen=True)
class SpaceDistillation:
    """The [distill] table of a space: a new encoder learns the concepts of the space `teacher`.

    The encoder starts from the teacher's `layers`, numbered from 0, with their shapes; without
    them it has new layers, of the shapes in [shape]. Token embeddings are the teacher's.
    """

    teacher: str
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class SpaceRecipe:
    """A recipe with kind = "space". `start` names a space to finetune; without it, it is new.

    With `adapter`, only small updates of `start` are trained and kept. With `distill`, only the
    encoder is new, and `languages` are added to those of the teacher.
    """

    kind: Literal["space"]
    name: str
    data: SpaceData
    languages: tuple[str, ...] = ()
    licence: str = ""
    start: str = ""
    shape: SpaceShape = field(default_factory=SpaceShape)
    train: SpaceTraining = field(default_factory=SpaceTraining)
    adapter: AdapterOptions | None = None
    distill: SpaceDistillation | None = None

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid combinations."""
        _check_adapter(self)
        if self.distill is not None and self.start:
            raise IntegrityError(
                f"start = {self.start!r} and a teacher", "an encoder starts from distill.layers"
            )
        if self.adapter is not None and self.train.store == "int8":
            message = '[adapter] and train.store = "int8"'
            hint = (
                "train without store; merging the adapter can store int8: lcm checkpoints convert"
            )
            raise IntegrityError(message, hint)
        if not self.languages and not self.start and self.distill is None:
            raise IntegrityError("a new space needs languages", 'languages = ["eng_Latn", ...]')
        if self.shape.dim % self.shape.heads:
            raise IntegrityError(
                f"dim {self.shape.dim} is not a multiple of {self.shape.heads} heads"
            )


@dataclass(frozen=True)
class SpeechData:
    """Speech with its text: JSON Lines of {"audio", "text"}, relative to the current folder.

    Audio paths are relative to the folder of their table. A line may have a `lang`, the code of its
    language; it must if the recipe has several.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpeechShape:
    """Shapes of a new speech encoder (see lcm_cli.speech.config); a finetuned one keeps its own."""

    layers: int = 4
    model_dim: int = 192
    heads: int = 4
    ffn_dim: int = 384
    kernel: int = 7
    pool_layers: int = 1
    pool_heads: int = 4
    pool_ffn_dim: int = 384
    bins: int = 40
    stride: int = 6
    max_length: int = 512


@dataclass(frozen=True)
class SpeechTraining:
    """How to train a speech encoder. Intervals are in steps.

    `batch_seconds` is the duration of a batch; utterances of more than `max_seconds` are left out.
    `contrast` weights the loss that tells the concept of the own sentence from those of the batch
    and of `negatives` other sentences, `ctc` the loss that spells the text from the frames; the
    weight of the squared distance is 1. `noise` is the fraction of utterances that are mixed with
    noise, at a signal-to-noise ratio within `snr` (dB). `mask` is the largest fraction of the mel
    bands, and of the steps, that is masked in an utterance. `decay`, `dropout`, `weight_decay` and
    `ema` are those of spaces.
    """

    steps: int = 10_000
    batch_seconds: float = 200.0
    max_seconds: float = 30.0
    learning_rate: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    warmup: int = 200
    decay: float = 0.5
    clip: float = 1.0
    contrast: float = 0.1
    ctc: float = 0.0
    negatives: int = 4096
    noise: float = 0.5
    snr: tuple[float, float] = (5.0, 35.0)
    mask: float = 0.1
    dropout: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    save_every: int = 250
    eval_every: int = 1000
    sample_every: int = 1000  # log what is heard in a few utterances; 0: never

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name in ("steps", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("batch_seconds", "max_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise IntegrityError(f"train.{name} must be positive, not {getattr(self, name)}")
        for name in _SPEECH_NUMBERS:
            if not 0 <= getattr(self, name) < math.inf:
                raise IntegrityError(
                    f"train.{name} must be 0 or a positive number, not {getattr(self, name)}"
                )
        for name in ("decay", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise IntegrityError(f"train.{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("mask", "dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise IntegrityError(f"train.{name} must be in [0, 1), not {getattr(self, name)}")
        if not -math.inf < self.snr[0] <= self.snr[1] < math.inf:
            raise IntegrityError(f"train.snr must be [lowest, highest], not {list(self.snr)}")


_SPEECH_NUMBERS = (
    *("learning_rate", "warmup", "clip", "contrast", "ctc", "negatives", "weight_decay"),
    *("sample_every", "seed"),
)


@dataclass(frozen=True)
class SpeechRecipe:
    """A recipe with kind = "speech": an encoder of speech to the concepts of `space`.

    `start` names a speech encoder to finetune; without it, it is new.
    """

    kind: Literal["speech"]
    name: str
    data: SpeechData
    languages: tuple[str, ...] = ()
    licence: str = ""
    space: str = "tiny"
    start: str = ""
    shape: SpeechShape = field(default_factory=SpeechShape)
    train: SpeechTraining = field(default_factory=SpeechTraining)

    def __post_init__(self) -> None:
        """Raise IntegrityError if the languages are missing."""
        if not self.languages and not self.start:
            raise IntegrityError("a new speech encoder needs languages", 'languages = ["eng_Latn"]')


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
        """Raise IntegrityError for invalid combinations."""
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
        if not self.prediction and not self.hidden:
            raise IntegrityError("nothing is learned from the teacher", "distill.prediction = 1.0")
        if self.capture and self.hidden:
            raise IntegrityError(
                f"{self.capture} holds predictions, not hidden states",
                "set distill.hidden = 0, or leave distill.capture out",
            )
        if self.draws < 1:
            raise IntegrityError(f"distill.draws must be at least 1, not {self.draws}")
        if self.draws > 1 and not self.capture:
            raise IntegrityError(
                "distill.draws without distill.capture: each step draws new noise",
                "leave distill.draws out",
            )
        for name in ("layers", "hidden_loss"):
            if getattr(self, name) not in ((), "mse") and not self.hidden:
                raise IntegrityError(
                    f"distill.{name} without distill.hidden", "distill.hidden = 1.0"
                )
        if self.steps < 0:
            raise IntegrityError(f"distill.steps must not be negative: {self.steps}")
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
        _check_adapter(self)
        if self.adapter is None:
            return
        if self.normalizer or self.quantizer:
            raise IntegrityError(
                "[adapter] and another normalizer or quantizer",
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


@dataclass(frozen=True)
class NormalizerRecipe:
    """A recipe with kind = "normalizer", fitted on at most `concepts` concepts of the data."""

    kind: Literal["normalizer"]
    name: str
    data: DataOptions
    licence: str = ""
    space: str = "tiny"
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    concepts: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise IntegrityError if there is nothing to fit on."""
        if self.concepts < 1:
            raise IntegrityError(f"concepts must be at least 1, not {self.concepts}")


@dataclass(frozen=True)
class QuantizerFit:
    """Shapes of a quantizer, and how its codebooks are fitted, by k-means on the residuals."""

    codebooks: int = 64
    units: int = 8192
    iterations: int = 20
    concepts: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise IntegrityError for invalid numbers."""
        for name in ("codebooks", "units", "iterations", "concepts"):
            if getattr(self, name) < 1:
                raise IntegrityError(f"quantizer.{name} must be at least 1")


@dataclass(frozen=True)
class QuantizerRecipe:
    """A recipe with kind = "quantizer"."""

    kind: Literal["quantizer"]
    name: str
    data: DataOptions
    licence: str = ""
    space: str = "tiny"
    quantizer: QuantizerFit = field(default_factory=QuantizerFit)


Trained = ModelRecipe | SpaceRecipe | SpeechRecipe  # step by step
Recipe = Trained | NormalizerRecipe | QuantizerRecipe
KINDS: dict[str, type[Recipe]] = {
    "model": ModelRecipe,
    "space": SpaceRecipe,
    "speech": SpeechRecipe,
    "normalizer": NormalizerRecipe,
    "quantizer": QuantizerRecipe,
}


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or the [recipe] table of a checkpoint's card, and apply `changes`.

    Changes have the form key=value. Of a run's folder, recipe.json is read.

    Raises NotFoundError, UsageError for a malformed change, IntegrityError for an invalid file.
    """
    path = path / "recipe.json" if path.is_dir() else path
    if not path.is_file():
        hint = "examples/recipes has recipes to start from; see docs/training.md"
        raise NotFoundError(f"no such recipe: {path}", hint)
    read: Callable[[str, str], Any] = json_value if path.suffix == ".json" else toml_table
    data = read(read_utf8(path), str(path))
    if not isinstance(data, dict):
        raise IntegrityError(f"{path} is not a recipe")
    whole = data
    data = data.get("recipe", data)
    if "kind" not in data or "licence_note" in data:  # a card without a [recipe] table
        about = "is a card without a" if "licence_note" in whole else "has no kind: it is not a"
        hint = f"""a recipe needs a kind: kind = "{'" or "'.join(KINDS)}\""""
        raise IntegrityError(f"{path} {about} recipe that lcm can run", hint)
    for change in changes:
        _apply(data, change)
    kind = str(data.get("kind", ""))
    if kind not in KINDS:
        near = " or ".join(nearest(kind, KINDS)) or ", ".join(KINDS)
        raise IntegrityError(f"{path}: kind = {kind!r} is not a kind of recipe", f"kinds: {near}")
    recipe: Recipe = parse(KINDS[kind], data, str(path))
    if recipe.name in ("", "..") or Path(recipe.name).name != recipe.name:
        raise IntegrityError(f"{path}: name = {recipe.name!r} cannot be the name of a folder")
    return recipe


def _apply(data: dict[str, Any], change: str) -> None:
    """Apply a change, such as train.steps=500, name=mine or data.train=["a.jsonl"]."""
    key, found, text = change.partition("=")
    if not found or not key:
        raise UsageError(f"--set {change!r} is not key=value", "for example: --set train.steps=500")
    *tables, last = key.strip().split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, Mapping):
            raise UsageError(f"--set {change!r}: {table} is not a table")
    try:
        data[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        data[last] = text  # a bare word is a string
