"""Model configurations: frozen dataclasses, stored as config.json beside the weights.

Fields are validated on construction, so every config that exists describes a model that can be
built. This module does not import torch: `preset("two_tower", "39M")` is cheap.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.schema import json_value, nearest, parse

Positions = Literal["rope", "sine", "learned", "none"]
Norm = Literal["rms", "standard", "fp32", "unit"]
NormOrder = Literal["pre", "post", "normformer"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "elu", "selu", "softsign"]
BREAK_TEXT = "[BREAK]"
_LARGEST = (1 << 31) - 1  # of any number in a config
_MOST_STEPS = 100_000  # of a noise schedule, which lists them
ScheduleName = Literal["cosine", "linear", "scaled_linear", "quadratic", "sigmoid", "straight"]
PredictionType = Literal["x0", "epsilon", "v", "flow"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's slowing of the low-frequency rotations, for contexts beyond the original length."""

    factor: float = 32.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        _positive(self, "factor", "low_frequency", "original_length")
        _require(
            self.high_frequency > self.low_frequency,
            f"high_frequency {self.high_frequency} must exceed low_frequency {self.low_frequency}",
        )


@dataclass(frozen=True)
class TransformerConfig:
    """A stack of Transformer blocks."""

    layers: int = 2
    heads: int = 4
    inner_dim: int = 256  # actual feed-forward width: when gated, the paper's 8192 becomes 5632
    head_dim: int | None = None  # None: model_dim / heads
    kv_heads: int | None = None  # None: as many as heads; fewer: grouped-query attention
    gated: bool = True  # SwiGLU; otherwise `activation` between two linear maps
    activation: Activation = "relu"
    bias: bool = True  # of q, k, v and the feed-forward
    output_bias: bool = True  # of the attention's output projection
    dropout: float = 0.1  # on each sublayer's output, before the residual addition
    final_dropout: float = 0.0
    attention_dropout: float = 0.0
    positions: Positions = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm: Norm = "rms"
    norm_order: NormOrder = "pre"
    final_norm: bool = True  # after the last block; post-norm stacks do not need it
    qk_norm: bool = False
    qkv_weight_norm: bool = False
    output_weight_norm: bool = False
    residual_scale: float | None = None  # initial factor on the feed-forward's residual input

    def __post_init__(self) -> None:
        _positive(self, "layers", "heads", "inner_dim", "rope_theta")
        _fraction(self, "dropout", "final_dropout", "attention_dropout")
        if self.head_dim is not None:
            _positive(self, "head_dim")
        groups = self.kv_heads or self.heads
        _require(
            groups > 0 and self.heads % groups == 0,
            f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}",
        )

    def width(self, model_dim: int) -> int:
        """Return the width of one head in a model `model_dim` wide.

        Raises IntegrityError if `model_dim` is not a multiple of the number of heads.
        """
        if self.head_dim is not None:
            return self.head_dim
        _require(
            model_dim % self.heads == 0,
            f"model_dim {model_dim} must be a multiple of heads {self.heads}",
        )
        return model_dim // self.heads


@dataclass(frozen=True)
class NormalizerConfig:
    """The scaling of concepts before they enter a model (paper 2.3.1)."""

    method: Literal["gaussian_robust", "robust", "standard", "none"] = "gaussian_robust"
    # The percentiles that define the scale: 25 and 75, or, as in the official code, 0.25 and 0.75.
    spread: Literal["quartiles", "official"] = "quartiles"
    clip: float | None = None  # clip normalized values at the quantiles clip and 1 - clip
    fft: bool = False  # apply a real Fourier transform first

    def __post_init__(self) -> None:
        _require(
            self.clip is None or 0 < self.clip < 0.5,
            f"normalizer clip {self.clip} must lie between 0 and 0.5",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The forward noising process (paper 2.3.2): T steps and the decay of the signal.

    name = "straight" with prediction = "flow" is flow matching on straight paths.
    """

    steps: int = 100  # T
    name: ScheduleName = "cosine"
    beta_start: float = 1e-4  # of linear, scaled_linear, quadratic
    beta_end: float = 0.02
    exponent: float = 2.0  # of scaled_linear
    gamma: float = 1.5  # of sigmoid (equation 14), as is delta
    delta: float = 0.0
    zero_terminal_snr: bool = True
    final_alpha_one: bool = True  # alpha after the last denoising step is 1: no noise remains
    prediction: PredictionType = "x0"

    def __post_init__(self) -> None:
        _positive(self, "steps", "beta_start", "exponent", "gamma")
        _require(self.steps <= _MOST_STEPS, f"steps {self.steps} exceed {_MOST_STEPS}")
        _require(
            self.beta_start <= self.beta_end < 1,
            f"betas must rise and stay below 1, not {self.beta_start} to {self.beta_end}",
        )


@dataclass(frozen=True)
class SamplingConfig:
    """The defaults of a diffusion model's sampler; distillation lowers them."""

    steps: int = 40  # S
    guidance: float = 3.0  # classifier-free guidance scale (eq. 20); 1: no guidance

    def __post_init__(self) -> None:
        _positive(self, "steps")
        _require(
            0 <= self.guidance < math.inf,
            f"guidance {self.guidance} must not be negative",
        )


@dataclass(frozen=True)
class SquaredError:
    """The objective of models that predict the next concept directly (paper 2.3.1)."""

    root: bool = False  # use the distance instead of its square
    min_context: int = 1  # number of concepts before the first one that is predicted

    def __post_init__(self) -> None:
        _positive(self, "min_context")


@dataclass(frozen=True)
class DiffusionObjective:
    """The diffusion objective, E_t [ w(t) |x0 - mu(x_t, t)|^2 ] (eq. 16), and the draw of t."""

    root: bool = False  # use the distance instead of its square
    condition_dropping: float = 0.15  # share of positions trained without context, for guidance
    dropping: Literal["bernoulli", "official"] = "bernoulli"
    timesteps: Literal["uniform", "beta"] = "uniform"
    beta_a: float = 0.8
    beta_b: float = 1.0
    weighting: Literal["none", "clamped_snr", "fragility"] = "none"
    snr_min: float = 0.0  # equation 17
    snr_max: float = 5.0
    fragility_a: float = -4.0  # equation 19: w = sigmoid(a fragility + b)
    fragility_b: float = 3.5

    def __post_init__(self) -> None:
        _fraction(self, "condition_dropping")
        _positive(self, "beta_a", "beta_b", "snr_max")
        _require(
            0 <= self.snr_min <= self.snr_max,
            f"snr_min {self.snr_min} must lie between 0 and snr_max {self.snr_max}",
        )
        for name in ("fragility_a", "fragility_b"):
            value = getattr(self, name)
            _require(math.isfinite(value), f"{name} must be a finite number, not {value}")


@dataclass(frozen=True)
class SpaceRef:
    """The space a model was trained in; empty if unknown."""

    name: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Fields common to all concept models."""

    architecture: ClassVar[str]
    concept_dim: int = 1024  # D
    model_dim: int = 64  # M
    max_length: int = 2048  # concepts, prompt and continuation together
    space: SpaceRef = field(default_factory=SpaceRef)
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    end_text: str = "End of text."  # the sentence whose concept closes a document
    # The sentence whose concept closes a paragraph; only models trained with data.plan have one.
    break_text: str = ""
    plans: bool = False  # after each break the model predicts a plan for the next paragraph
    # Decode and re-encode each predicted concept before the model reads it, so that the model
    # only reads concepts of real sentences, as in training.
    reencode: bool = False
    # task -> the sentence between a source and its answer, such as {"summarize": "[SUMMARY]:"}
    prompts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive(self, "concept_dim", "model_dim", "max_length")
        _require(
            not (self.normalizer.fft and self.concept_dim % 2),
            f"a Fourier normalizer needs an even concept_dim, not {self.concept_dim}",
        )
        _require(bool(self.break_text) or not self.plans, "plans need a break_text")
        for part in dataclasses.fields(self):
            stack = getattr(self, part.name)
            if isinstance(stack, TransformerConfig):
                _check_stack(stack, self.model_dim, part.name)


@dataclass(frozen=True, kw_only=True)
class BaseConfig(ModelConfig):
    """Base-LCM: regression on the next concept (paper 2.3.1)."""

    architecture: ClassVar[str] = "base"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    objective: SquaredError = field(default_factory=SquaredError)
    scale_input: bool = False  # multiply concepts by sqrt(model_dim) before the PreNet
    input_weight_norm: bool = False
    output_activation: Activation | None = None


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(ModelConfig):
    """Two-Tower diffusion: a contextualizer and a denoiser (paper 2.3.4)."""

    architecture: ClassVar[str] = "two_tower"
    contextualizer: TransformerConfig = field(default_factory=TransformerConfig)
    denoiser: TransformerConfig = field(default_factory=lambda: TransformerConfig(positions="none"))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: DiffusionObjective = field(default_factory=DiffusionObjective)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    # The denoiser also reads its previous estimate of x0 (Chen et al. 2022, arXiv 2208.04202, 3.2).
    self_conditioning: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.denoiser.norm_order == "pre" and self.denoiser.positions == "none",
            "the denoiser is modulated (AdaLN): it needs norm_order 'pre' and positions 'none', "
            f"not {self.denoiser.norm_order!r} and {self.denoiser.positions!r}",
        )
        _check_self_conditioning(self)


@dataclass(frozen=True, kw_only=True)
class OneTowerConfig(ModelConfig):
    """One-Tower diffusion: clean and noisy concepts in one backbone (paper 2.3.3)."""

    architecture: ClassVar[str] = "one_tower"
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(positions="learned")
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: DiffusionObjective = field(default_factory=DiffusionObjective)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    self_conditioning: bool = False  # see TwoTowerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_self_conditioning(self)


@dataclass(frozen=True, kw_only=True)
class QuantConfig(ModelConfig):
    """Quant-LCM: the next concept, one codebook at a time (paper 2.3.5)."""

    architecture: ClassVar[str] = "quant"
    flavour: Literal["discrete", "continuous"] = "discrete"  # the paper's -d and -c
    codebooks: int = 64
    units: int = 8192
    condition_dropping: float = 0.15
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(positions="learned")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "codebooks", "units")
        _fraction(self, "condition_dropping")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """A residual vector quantizer on its own (paper 2.3.5)."""

    architecture: ClassVar[str] = "quantizer"
    concept_dim: int = 1024
    codebooks: int = 64
    units: int = 8192
    space: SpaceRef = field(default_factory=SpaceRef)

    def __post_init__(self) -> None:
        _positive(self, "concept_dim", "codebooks", "units")


@dataclass(frozen=True, kw_only=True)
class SonarLLMConfig(BaseConfig):
    """SONAR-LLM (arXiv 2508.05305): Llama blocks over raw concepts."""

    architecture: ClassVar[str] = "sonar_llm"
    normalizer: NormalizerConfig = field(default_factory=lambda: NormalizerConfig(method="none"))
    end_text: str = "End of sequence."
    begin_text: str = "Begin of text."  # precedes every prompt; "" for none
    reencode: bool = True
    # "tokens": the cross-entropy of the next sentence's tokens under the space's frozen decoder;
    # "squared": the squared error of its concept.
    loss: Literal["tokens", "squared"] = "tokens"
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            bias=False, output_bias=False, dropout=0.0, rope_theta=500_000.0
        )
    )


AnyConfig = BaseConfig | TwoTowerConfig | OneTowerConfig | QuantConfig | SonarLLMConfig
ARCHITECTURES: dict[str, type[AnyConfig] | type[QuantizerConfig]] = {
    kind.architecture: kind
    for kind in (
        BaseConfig,
        TwoTowerConfig,
        OneTowerConfig,
        QuantConfig,
        SonarLLMConfig,
        QuantizerConfig,
    )
}


def to_dict(config: AnyConfig | QuantizerConfig) -> dict[str, Any]:
    """Return the content of config.json."""
    head = {"kind": "model", "architecture": config.architecture}
    return head | dataclasses.asdict(config)


def from_dict(data: Mapping[str, Any], source: str) -> AnyConfig | QuantizerConfig:
    """Return the config that `to_dict` wrote as `data`; error messages call the file `source`.

    Raises IntegrityError for an unknown architecture or key (with the closest known ones), a wrong
    type or an invalid value.
    """
    fields = {key: value for key, value in data.items() if key not in ("kind", "architecture")}
    name = str(data.get("architecture", ""))
    if data.get("kind") != "model" or name not in ARCHITECTURES:
        close = ", ".join(nearest(name, list(ARCHITECTURES))) or ", ".join(ARCHITECTURES)
        raise IntegrityError(
            f"{source}: not the config of a concept model (architecture {name!r})",
            f"choose a known architecture ({close}), or convert a foreign checkpoint: "
            "lcm checkpoints convert",
        )
    kind: type[Any] = ARCHITECTURES[name]
    config: AnyConfig | QuantizerConfig = parse(kind, fields, source)
    return config


def read_model_config(file: Path) -> AnyConfig | QuantizerConfig:
    """Read a model's config.json.

    Raises NotFoundError if there is no such file, UsageError if it describes a space, and
    IntegrityError if its content is invalid.
    """
    if not file.is_file():
        raise NotFoundError(f"no such file: {file}")
    data = json_value(file.read_bytes(), str(file))
    if not isinstance(data, dict):
        raise IntegrityError(f"{file} does not contain a JSON object")
    data.pop("adapter", None)  # see lcm_cli.hub.locate
    if data.get("kind") == "space":
        raise UsageError(f"{file.parent} is a space, not a model", "pass it as --space")
    return from_dict(data, str(file))


@dataclass(frozen=True)
class _Size:
    model_dim: int
    heads: int
    inner_dim: int
    layers: int  # of a single-stack model
    towers: tuple[int, int]  # layers of contextualizer and denoiser
    max_length: int = 2048


# The 1.6B and 7B shapes are the official ones, except for the single stack of 7B: the official 7B
# is two-tower only; ours scales the single stack to match.
SIZES = {
    "nano": _Size(64, 4, 256, 2, (2, 2)),
    "5M": _Size(256, 4, 768, 5, (1, 2)),
    "39M": _Size(512, 8, 1536, 11, (3, 4)),
    "100M": _Size(768, 12, 2048, 14, (3, 5)),
    "300M": _Size(1024, 16, 2816, 23, (4, 9)),
    "1.6B": _Size(2048, 16, 5632, 32, (5, 13), 4096),
    "7B": _Size(4096, 32, 11008, 34, (5, 14), 4096),
}


def preset(architecture: str, size: str, **changes: Any) -> AnyConfig:
    """Return the config of `architecture` at `size`; `changes` override its fields.

    Raises UsageError, listing the closest choices, for an unknown architecture or size.
    """
    trainable = [name for name in ARCHITECTURES if name != "quantizer"]
    _require_known("architecture", architecture, trainable)
    _require_known("size", size, list(SIZES))
    kind: type[Any] = ARCHITECTURES[architecture]
    shape = SIZES[size]
    stacks = _towers(shape) if architecture == "two_tower" else _tower(kind(), shape)
    common: dict[str, Any] = {"model_dim": shape.model_dim, "max_length": shape.max_length}
    if architecture == "quant" and size == "nano":
        common |= {"codebooks": 4, "units": 32}
    config: AnyConfig = kind(**common | stacks | changes)
    return config


def _tower(default: Any, shape: _Size) -> dict[str, TransformerConfig]:
    return {"transformer": _sized(default.transformer, shape, shape.layers)}


def _towers(shape: _Size) -> dict[str, TransformerConfig]:
    default = TwoTowerConfig()
    contextualizer_layers, denoiser_layers = shape.towers
    return {
        "contextualizer": _sized(default.contextualizer, shape, contextualizer_layers),
        "denoiser": _sized(default.denoiser, shape, denoiser_layers),
    }


def _sized(stack: TransformerConfig, shape: _Size, layers: int) -> TransformerConfig:
    return dataclasses.replace(stack, layers=layers, heads=shape.heads, inner_dim=shape.inner_dim)


def _require_known(what: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        close = nearest(value, choices) or choices
        raise UsageError(f"unknown {what} {value!r}", f"choose from: {', '.join(close)}")


def _check_stack(stack: TransformerConfig, model_dim: int, name: str) -> None:
    width = stack.width(model_dim)
    _require(
        stack.positions != "rope" or width % 2 == 0,
        f"{name}: rotary positions need an even head width, not {width}",
    )


def _check_self_conditioning(config: OneTowerConfig | TwoTowerConfig) -> None:
    _require(
        not config.self_conditioning or config.schedule.prediction != "epsilon",
        "self_conditioning needs the prediction x0, v or flow, not 'epsilon': at high noise, the "
        "noise determines no concept",
    )


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{name} must be positive, not {value}")
        _require(value <= _LARGEST, f"{name} is too large: {value}")


def _fraction(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value < 1, f"{name} must be in [0, 1), not {value}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)
