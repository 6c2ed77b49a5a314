"""What a model is: frozen dataclasses, stored as config.json beside the weights.

Every field is validated when the object is made, so a config that exists is a config that can be
built. Nothing here imports torch: `preset("two_tower", "39M")` is cheap.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.schema import nearest, parse

Positions = Literal["rope", "sine", "learned", "none"]
Norm = Literal["rms", "standard", "fp32", "unit"]
NormOrder = Literal["pre", "post", "normformer"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "elu", "selu", "softsign"]
BREAK_TEXT = "[BREAK]"
ScheduleName = Literal["cosine", "linear", "scaled_linear", "quadratic", "sigmoid"]
PredictionType = Literal["x0", "epsilon", "v"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of the slow rotations, for contexts beyond the original length."""

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
    """One stack of Transformer blocks."""

    layers: int = 2
    heads: int = 4
    inner_dim: int = 256  # true width of the feed-forward: the paper's 8192 is 5632 when gated
    head_dim: int | None = None  # None: model_dim / heads
    kv_heads: int | None = None  # None: heads; fewer is grouped-query attention
    gated: bool = True  # SwiGLU; without it `activation` between two linear maps
    activation: Activation = "relu"
    bias: bool = True  # of q, k, v and the feed-forward
    output_bias: bool = True  # of the attention's output projection
    dropout: float = 0.1  # on what joins the residual stream
    final_dropout: float = 0.0
    attention_dropout: float = 0.0
    positions: Positions = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm: Norm = "rms"
    norm_order: NormOrder = "pre"
    final_norm: bool = True  # after the last block; post-norm stacks need none
    qk_norm: bool = False
    qkv_weight_norm: bool = False
    output_weight_norm: bool = False
    residual_scale: float | None = None  # initial factor of the feed-forward's residual

    def __post_init__(self) -> None:
        _positive(self, "layers", "heads", "inner_dim", "rope_theta")
        _fraction(self, "dropout", "final_dropout", "attention_dropout")
        groups = self.kv_heads or self.heads
        _require(
            groups > 0 and self.heads % groups == 0,
            f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}",
        )

    def width(self, model_dim: int) -> int:
        """Return the width of one head in a model of `model_dim`."""
        if self.head_dim is not None:
            return self.head_dim
        _require(
            model_dim % self.heads == 0,
            f"model_dim {model_dim} must be a multiple of heads {self.heads}",
        )
        return model_dim // self.heads


@dataclass(frozen=True)
class NormalizerConfig:
    """How concepts are brought to a common scale (paper 2.3.1)."""

    method: Literal["gaussian_robust", "robust", "standard", "none"] = "gaussian_robust"
    spread: Literal["quartiles", "official"] = "quartiles"  # official: the 0.25 and 0.75 percent
    clip: float | None = None  # cut the normalized values at the quantiles clip and 1 - clip
    fft: bool = False  # real Fourier transform first

    def __post_init__(self) -> None:
        _require(
            self.clip is None or 0 < self.clip < 0.5,
            f"normalizer clip {self.clip} must lie between 0 and 0.5",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The forward noising process (paper 2.3.2): T steps and how fast the signal fades."""

    steps: int = 100  # T
    name: ScheduleName = "cosine"
    beta_start: float = 1e-4  # of linear, scaled_linear, quadratic
    beta_end: float = 0.02
    exponent: float = 2.0  # of scaled_linear
    gamma: float = 1.5  # of sigmoid (equation 14)
    delta: float = 0.0
    zero_terminal_snr: bool = True
    final_alpha_one: bool = True  # the step below the last is the clean concept itself
    prediction: PredictionType = "x0"

    def __post_init__(self) -> None:
        _positive(self, "steps", "beta_start", "exponent", "gamma")
        _require(
            self.beta_start <= self.beta_end < 1,
            f"betas must rise and stay below 1, not {self.beta_start} to {self.beta_end}",
        )


@dataclass(frozen=True)
class SquaredError:
    """Objective of models that predict the next concept outright."""

    root: bool = False  # distance instead of squared distance
    min_context: int = 1  # concepts seen before the first one that is predicted

    def __post_init__(self) -> None:
        _positive(self, "min_context")


@dataclass(frozen=True)
class DiffusionObjective:
    """Equation 16 of the paper: E_t [ w(t) |x0 - mu(x_t, t)|^2 ], and how t is drawn."""

    root: bool = False
    condition_dropping: float = 0.15  # share of positions that learn without any context
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
    """The space whose concepts a model was trained on; empty when it belongs to no known one."""

    name: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What all concept models share."""

    architecture: ClassVar[str]
    concept_dim: int = 1024  # D
    model_dim: int = 64  # M
    max_length: int = 2048  # concepts, prompt and continuation together
    space: SpaceRef = field(default_factory=SpaceRef)
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    end_text: str = "End of text."  # the sentence whose concept closes a document
    # The sentence whose concept closes a paragraph of a model that was trained with data.plan.
    break_text: str = ""
    plans: bool = False  # a plan, the concept of what a paragraph is about, comes after each break
    # What it predicts is decoded and encoded again before it is read, so that it only ever reads
    # concepts of sentences, as in training.
    reencode: bool = False
    # task -> the sentence between a source and the answer to it: {"summarize": "[SUMMARY]:"}
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
    """Base-LCM: next concept by squared error (paper 2.3.1)."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.denoiser.norm_order == "pre" and self.denoiser.positions == "none",
            "the denoiser is modulated (AdaLN): it takes pre-norm blocks without positions",
        )


@dataclass(frozen=True, kw_only=True)
class OneTowerConfig(ModelConfig):
    """One-Tower diffusion: clean and noisy concepts in one backbone (paper 2.3.3)."""

    architecture: ClassVar[str] = "one_tower"
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(positions="learned")
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: DiffusionObjective = field(default_factory=DiffusionObjective)


@dataclass(frozen=True, kw_only=True)
class QuantConfig(ModelConfig):
    """Quant-LCM: the next concept, codebook after codebook (paper 2.3.5)."""

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
    """A residual vector quantizer by itself (paper 2.3.5)."""

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
    begin_text: str = "Begin of text."  # opens every prompt; "" for none
    reencode: bool = True
    # What it is trained on: the cross-entropy of the next sentence's tokens through the space's
    # frozen decoder, or the squared error of its concept.
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
    """Read what `to_dict` wrote. `source` names the file in messages.

    Raises IntegrityError for an unknown architecture or key (naming the nearest), a wrong type or
    an impossible value.
    """
    fields = {key: value for key, value in data.items() if key not in ("kind", "architecture")}
    name = str(data.get("architecture", ""))
    if data.get("kind") != "model" or name not in ARCHITECTURES:
        close = ", ".join(nearest(name, list(ARCHITECTURES))) or ", ".join(ARCHITECTURES)
        raise IntegrityError(
            f"{source}: not the config of a concept model (architecture {name!r})",
            f"known architectures: {close}; a foreign checkpoint: lcm checkpoints convert",
        )
    kind: type[Any] = ARCHITECTURES[name]
    config: AnyConfig | QuantizerConfig = parse(kind, fields, source)
    return config


def read_model_config(file: Path) -> AnyConfig | QuantizerConfig:
    """Read a config.json; raises NotFoundError, UsageError for that of a space, IntegrityError."""
    if not file.is_file():
        raise NotFoundError(f"no such file: {file}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IntegrityError(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{file} holds no object")
    if data.get("kind") == "space":
        raise UsageError(f"{file.parent} is a space, not a model", "use it with: --space")
    return from_dict(data, str(file))


@dataclass(frozen=True)
class _Size:
    model_dim: int
    heads: int
    inner_dim: int
    layers: int  # of a single stack
    towers: tuple[int, int]  # contextualizer and denoiser
    max_length: int = 2048


# 1.6B and 7B are the official shapes (7B: two-tower only; the single stack is ours, scaled alike).
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
    """Return the config of `architecture` at `size`, with any of its fields changed.

    Raises UsageError, naming the nearest, for an architecture or size that does not exist.
    """
    _known("architecture", architecture, [name for name in ARCHITECTURES if name != "quantizer"])
    _known("size", size, list(SIZES))
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
    below, above = shape.towers
    return {
        "contextualizer": _sized(default.contextualizer, shape, below),
        "denoiser": _sized(default.denoiser, shape, above),
    }


def _sized(stack: TransformerConfig, shape: _Size, layers: int) -> TransformerConfig:
    return dataclasses.replace(stack, layers=layers, heads=shape.heads, inner_dim=shape.inner_dim)


def _known(what: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        close = nearest(value, choices) or choices
        raise UsageError(f"unknown {what} {value!r}", f"choose from: {', '.join(close)}")


def _check_stack(stack: TransformerConfig, model_dim: int, name: str) -> None:
    width = stack.width(model_dim)
    _require(
        stack.positions != "rope" or width % 2 == 0,
        f"{name}: rotary positions need an even head width, not {width}",
    )


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{type(config).__name__}: {name} must be positive, not {value}")


def _fraction(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value < 1, f"{type(config).__name__}: {name} must be in [0, 1), not {value}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)
