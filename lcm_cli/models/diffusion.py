"""Diffusion over concepts: schedules, training targets and the DDIM sampler (paper 2.3.2).

The paper's letters: x0 the clean concept, x_t its noised state, a_t^2 = alpha_t the share of signal
left after t of T steps, e the Gaussian noise, x_t = a_t x0 + s_t e with a_t^2 + s_t^2 = 1 (eq. 7).
The network may predict x0, e or v = a_t e - s_t x0; it is kept apart from schedule and sampler.

Steps count 0 .. T - 1 as in the official code; -1 stands for "clean".

Shapes: T steps, B documents, S concepts, D concept dim, N targets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lcm_cli.errors import UsageError
from lcm_cli.models.config import DiffusionObjective, PredictionType, ScheduleConfig

MAX_BETA = 0.999
Spacing = Literal["trailing", "leading", "linspace"]


@dataclass(frozen=True)
class DiffusionOptions:
    """How concepts are drawn from a diffusion model; the defaults are the paper's."""

    steps: int = 40  # S
    guidance: float = 3.0  # 1: none (eq. 20)
    guidance_rescale: float = 0.7
    initial_noise: float = 0.6  # deviation of x_T
    temperature: float = 1.0  # multiplies initial_noise; 0 always starts from the same point
    epsilon_scaling: float = 1.00045  # divides the predicted noise
    eta: float = 0.0  # 0: DDIM, deterministic after the start; 1: DDPM
    spacing: Spacing = "trailing"
    exact_steps: bool = True  # False: the official code's stride, which makes 50 steps of 40
    clip: float = 100.0  # bound on every value of x_t
    clip_x0: float | None = None  # bound on every value of the predicted x0
    threshold: float | None = None  # dynamic thresholding: the quantile of |x0| that becomes 1
    threshold_max: float = 6.0

    def __post_init__(self) -> None:
        for name in ("steps", "initial_noise", "epsilon_scaling", "clip", "threshold_max"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        for name in ("guidance", "temperature"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        for name in ("eta", "guidance_rescale"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "must be in [0, 1]")
        _require(
            self.threshold is None or 0 < self.threshold <= 1,
            "threshold",
            self.threshold,
            "must be in (0, 1]",
        )

    @property
    def guided(self) -> bool:
        """Whether the unconditional prediction is needed."""
        return self.guidance != 1.0


def _require(condition: bool, name: str, value: object, reason: str) -> None:
    if not condition:
        raise UsageError(f"{name.replace('_', ' ')} {value} {reason}")


# Schedules: what share beta_t of the signal each step destroys.


def linear_betas(config: ScheduleConfig) -> Tensor:
    """Return betas that rise linearly from beta_start to beta_end, (T,)."""
    return torch.linspace(config.beta_start, config.beta_end, config.steps)


def scaled_linear_betas(config: ScheduleConfig) -> Tensor:
    """Return betas whose root of order `exponent` rises linearly, (T,)."""
    power = 1 / config.exponent
    ends = config.beta_start**power, config.beta_end**power
    return torch.linspace(*ends, config.steps) ** config.exponent


def quadratic_betas(config: ScheduleConfig) -> Tensor:
    """Equation 13: beta at t/T is (sqrt b0 + t/T (sqrt b1 - sqrt b0))^2 for t = 1 .. T."""
    low, high = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
    return (low + torch.arange(1, config.steps + 1) / config.steps * (high - low)) ** 2


def cosine_signal(u: float, config: ScheduleConfig) -> float:
    """Equation 12, Nichol and Dhariwal's: cos^2((u + s) / (1 + s) pi / 2) with s = 0.008."""
    return float(math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2)


def sigmoid_signal(u: float, config: ScheduleConfig) -> float:
    """Equation 14: sigmoid(delta - gamma logit(u)), so 1 at u = 0 and 0 at u = 1."""
    if u <= 0 or u >= 1:
        return float(u <= 0)
    odds = math.exp(-config.delta) * math.pow(u / (1 - u), config.gamma)
    return 1 / (1 + odds)


def betas_of(signal: Callable[[float, ScheduleConfig], float], config: ScheduleConfig) -> Tensor:
    """Return the betas that make the cumulative product follow `signal`, (T,)."""
    times = [step / config.steps for step in range(config.steps + 1)]
    values = [signal(u, config) for u in times]
    pairs = zip(values[1:], values, strict=False)
    return torch.tensor([min(1 - later / now, MAX_BETA) for later, now in pairs])


def betas(config: ScheduleConfig) -> Tensor:
    """Return the betas of a schedule, (T,) float32, rescaled to zero terminal SNR if asked."""
    if config.name == "cosine":
        plain = betas_of(cosine_signal, config)
    elif config.name == "sigmoid":
        plain = betas_of(sigmoid_signal, config)
    elif config.name == "quadratic":
        plain = quadratic_betas(config)
    else:
        plain = linear_betas(config) if config.name == "linear" else scaled_linear_betas(config)
    return zero_terminal_snr(plain) if config.zero_terminal_snr else plain


def zero_terminal_snr(betas_T: Tensor) -> Tensor:
    """Shift and stretch a_t so that a_T = 0 and a_1 stays (Lin et al. 2024, algorithm 1)."""
    a_T = torch.cumprod(1 - betas_T, dim=0).sqrt()
    first, last = a_T[0].clone(), a_T[-1].clone()
    alphas_T = ((a_T - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_T[:1], alphas_T[1:] / alphas_T[:-1]])


class Schedule:
    """A noising process: how much signal and noise a concept has at each step."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        with torch.device("cpu"):  # models are built on "meta" before their weights are loaded
            self.betas_T = betas(config)
        self.alphas_T = torch.cumprod(1 - self.betas_T, dim=0)
        self._levels: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha(self, t: int) -> float:
        """Return alpha_t, the squared signal share; at -1 that of the clean end."""
        if t >= 0:
            return float(self.alphas_T[t])
        return 1.0 if self.config.final_alpha_one else float(self.alphas_T[0])

    def variance(self, t: int, s: int) -> float:
        """Return the variance of x_s given x_t and x0, s before t (DDIM eq. 16 at eta = 1)."""
        now, then = self.alpha(t), self.alpha(s)
        return (1 - then) / (1 - now) * (1 - now / then) if now < 1 else 0.0

    def snrs(self) -> Tensor:
        """Return the signal-to-noise ratio exp(lambda_t) of every step, (T,)."""
        return self.alphas_T / (1 - self.alphas_T)

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t for `timesteps`, shaped to multiply concepts."""
        device = timesteps.device
        if device not in self._levels:
            self._levels[device] = (
                self.alphas_T.sqrt().to(device),
                (1 - self.alphas_T).sqrt().to(device),
            )
        signal_T, noise_T = self._levels[device]
        return signal_T[timesteps][..., None], noise_T[timesteps][..., None]

    def noised(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = a_t x0 + s_t e; `timesteps` lacks the last dimension of `x0`."""
        signal, spread = self.levels(timesteps)
        return signal * x0 + spread * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network is to predict from x_t."""
        if self.config.prediction == "x0":
            return x0
        if self.config.prediction == "epsilon":
            return noise
        signal, spread = self.levels(timesteps)
        return signal * noise - spread * x0

    def epsilon(self, output: Tensor, x: Tensor, t: int) -> Tensor:
        """Return the noise that the network's `output` at x_t implies."""
        signal, spread = math.sqrt(self.alpha(t)), math.sqrt(1 - self.alpha(t))
        if self.config.prediction == "epsilon":
            return output
        if self.config.prediction == "v":
            return signal * output + spread * x
        # A schedule that rises slowly may leave no noise at all in its first step.
        return (x - signal * output) / spread if spread > 0 else torch.zeros_like(x)

    def clean(self, output: Tensor, x: Tensor, t: int, prediction: PredictionType) -> Tensor:
        """Return the x0 that `output` at x_t implies."""
        signal, spread = math.sqrt(self.alpha(t)), math.sqrt(1 - self.alpha(t))
        if prediction == "x0":
            return output
        if prediction == "v":
            return signal * x - spread * output
        # Without any signal, noise says nothing about x0: take the mean of normalized concepts.
        return (x - spread * output) / signal if signal > 0 else torch.zeros_like(x)

    def step(
        self,
        output: Tensor,
        x: Tensor,
        t: int,
        s: int,
        options: DiffusionOptions,
        *,
        prediction: PredictionType | None = None,
        noise: Tensor | None = None,
        consistent: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Go from x_t to x_s (DDIM, Song et al. 2021, eq. 12); return x_s and the predicted x0.

        `output` is read as `prediction` (default: the schedule's). `noise` is needed when eta > 0.
        `consistent` recomputes the noise from an x0 that was clipped.
        """
        kind = prediction or self.config.prediction
        signal, spread = math.sqrt(self.alpha(t)), math.sqrt(1 - self.alpha(t))
        x0 = self.clean(output, x, t, kind)
        epsilon = output if kind == "epsilon" else self.epsilon(output, x, t)
        x0 = limit(x0, options)
        epsilon = (x - signal * x0) / spread if consistent else epsilon / options.epsilon_scaling
        then, variance = self.alpha(s), options.eta**2 * self.variance(t, s)
        # Rounding may leave the rest a hair below zero: at zero SNR and eta 1 it is zero.
        rest = math.sqrt(max(1 - then - variance, 0.0))
        previous = math.sqrt(then) * x0 + rest * epsilon
        if noise is not None:
            previous = previous + math.sqrt(max(variance, 0.0)) * noise
        return previous, x0


def limit(x0: Tensor, options: DiffusionOptions) -> Tensor:
    """Keep the predicted x0 in bounds: dynamic thresholding (Saharia et al. 2022), or a clip."""
    if options.threshold is not None:
        bound = x0.abs().quantile(options.threshold, dim=-1, keepdim=True)
        bound = bound.clamp(1.0, options.threshold_max)
        return x0.clamp(-bound, bound) / bound
    return x0 if options.clip_x0 is None else x0.clamp(-options.clip_x0, options.clip_x0)


def timesteps(total: int, options: DiffusionOptions) -> list[int]:
    """Return the S steps to visit, the noisiest first (Lin et al. 2024, table 2).

    Raises UsageError when more steps are asked for than the model was trained with.
    """
    steps = options.steps
    if steps > total:
        raise UsageError(
            f"{steps} denoising steps, but the model was trained with {total}",
            f"ask for at most {total}",
        )
    if not options.exact_steps:
        return _official_timesteps(total, options)
    if options.spacing == "trailing":
        return [round(total * (steps - i) / steps) - 1 for i in range(steps)]
    if options.spacing == "leading":
        return [total * i // steps for i in reversed(range(steps))]
    return [round((total - 1) * (1 - i / max(steps - 1, 1))) for i in range(steps)]


def _official_timesteps(total: int, options: DiffusionOptions) -> list[int]:
    """Return the official code's steps: its stride is cut to a whole number, so there are more."""
    stride = total // options.steps
    if options.spacing == "trailing":
        return list(range(total - 1, -1, -stride))
    if options.spacing == "leading":
        return list(range(0, total, stride))[::-1]
    return torch.linspace(0, total - 1, options.steps, dtype=torch.long).tolist()[::-1]


def walk(total: int, options: DiffusionOptions) -> list[tuple[int, int]]:
    """Return the pairs (t, s) of a whole run: from step t to step s, the last s being -1."""
    visited = timesteps(total, options)
    if options.exact_steps:
        return list(zip(visited, [*visited[1:], -1], strict=True))
    stride = total // options.steps
    return [(t, max(t - stride, -1)) for t in visited]


def guide(conditional: Tensor, unconditional: Tensor, options: DiffusionOptions) -> Tensor:
    """Classifier-free guidance (eq. 20), rescaled (Lin et al. 2024, algorithm 2)."""
    guided = unconditional + options.guidance * (conditional - unconditional)
    ratio = conditional.std(dim=-1, keepdim=True) / guided.std(dim=-1, keepdim=True)
    return guided * (options.guidance_rescale * ratio + 1 - options.guidance_rescale)


@dataclass(frozen=True)
class Denoised:
    """One denoising step, for those who watch: all normalized, shaped as the sample."""

    index: int  # 0 is the first, noisiest
    t: int
    output: Tensor  # what the network said, after guidance (then it is noise)
    previous: Tensor  # x_s
    x0: Tensor


# Given x_t, t and whether guidance is wanted: the network's conditional output, and the
# unconditional one or None.
Predict = Callable[[Tensor, int, bool], tuple[Tensor, Tensor | None]]


def sample(
    schedule: Schedule,
    options: DiffusionOptions,
    start: Tensor,
    predict: Predict,
    draw: Callable[[], Tensor],
    watch: Callable[[Denoised], None] | None = None,
) -> Tensor:
    """Denoise `start`, standard Gaussian of any shape (..., D), to concepts; return x0.

    `draw` gives further Gaussians of that shape, asked for when eta > 0.
    """
    spread = options.initial_noise * options.temperature
    x = (start * spread).clamp(-options.clip, options.clip)
    x0 = x
    for index, (t, s) in enumerate(walk(schedule.config.steps, options)):
        # At the first step x_t holds no signal, so guided noise could not be turned into x0.
        guided = options.guided and t < schedule.config.steps - 1
        output, unconditional = predict(x, t, guided)
        prediction = schedule.config.prediction
        if unconditional is not None:
            noise = schedule.epsilon(output, x, t)
            output = guide(noise, schedule.epsilon(unconditional, x, t), options)
            prediction = "epsilon"
        extra = draw() if options.eta > 0 else None
        previous, x0 = schedule.step(output, x, t, s, options, prediction=prediction, noise=extra)
        if watch is not None:
            watch(Denoised(index, t, output, previous, x0))
        x = previous.clamp(-options.clip, options.clip)
    return x0


# Training: which noise levels, with which weight, and who learns without context.


class Levels:
    """Draws the noise level of each target and weighs its loss."""

    def __init__(self, objective: DiffusionObjective, schedule: Schedule) -> None:
        with torch.device("cpu"):
            self.probabilities_T = _probabilities(objective, schedule.config.steps)
        self.weights_T: Tensor | None = None
        if objective.weighting == "clamped_snr":  # eq. 17
            self.weights_T = schedule.snrs().clamp(objective.snr_min, objective.snr_max)
        self._fragility: tuple[float, float] | None = None
        if objective.weighting == "fragility":
            self._fragility = objective.fragility_a, objective.fragility_b

    def draw(
        self,
        shape: torch.Size,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw steps of `shape`; a `generator` has to be of that device."""
        count, chances_T = shape.numel(), self.probabilities_T.to(device)
        if count == 0:
            return torch.zeros(shape, dtype=torch.long, device=device)
        return torch.multinomial(chances_T, count, True, generator=generator).view(shape)

    def weights(self, timesteps_N: Tensor, fragility_N: Tensor | None = None) -> Tensor | None:
        """Return a weight for each target; None when all are 1.

        Those of noise levels have a mean of 1; those of fragility are equation 19's as they are.
        """
        if self._fragility is not None and fragility_N is not None:
            return fragility_weights(fragility_N, *self._fragility)
        if self.weights_T is None:
            return None
        weights_N = self.weights_T.to(timesteps_N.device)[timesteps_N]
        return weights_N / weights_N.sum() * len(timesteps_N)


def fragility_weights(fragility_N: Tensor, a: float, b: float) -> Tensor:
    """Equation 19, sigmoid(a fragility + b); 1 for concepts without a score (NaN)."""
    return (a * fragility_N + b).sigmoid().nan_to_num(nan=1.0)


def _probabilities(objective: DiffusionObjective, steps: int) -> Tensor:
    """Return how likely each step is drawn, (T,): uniform, or the density of Beta(a, b)."""
    if objective.timesteps == "uniform":
        return torch.full((steps,), 1 / steps)
    u_T = torch.arange(1, steps + 1) / steps
    rest_T = 1 - u_T
    if objective.beta_b < 1:  # the density is infinite at u = 1: take the last half step instead
        rest_T = rest_T.clamp(min=0.5 / steps)
    density_T = u_T ** (objective.beta_a - 1) * rest_T ** (objective.beta_b - 1)
    return density_T / density_T.sum()


@dataclass(frozen=True)
class Draws:
    """The randomness of one training step."""

    noise_BSD: Tensor
    timesteps_BS: Tensor
    dropped_BS: Tensor | None  # True: learns without context

    def to(self, device: torch.device) -> "Draws":
        """Return the same draws on `device`."""
        dropped_BS = None if self.dropped_BS is None else self.dropped_BS.to(device)
        return Draws(self.noise_BSD.to(device), self.timesteps_BS.to(device), dropped_BS)


def dropped_rows(
    objective: DiffusionObjective,
    shape: torch.Size,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    *,
    shared: bool,
) -> Tensor:
    """Draw which positions (B, S) learn without context, with probability condition_dropping.

    "official" drops exactly floor((S - 1) p) positions, never the first, the same ones in every
    document if `shared`: none at all in short batches.
    """
    chance = objective.condition_dropping
    if objective.dropping == "bernoulli":
        return torch.rand(shape, device=device, generator=generator) < chance
    rows, length = shape
    count = int((length - 1) * chance)
    orders = [
        torch.randperm(length - 1, device=device, generator=generator)
        for _ in range(1 if shared else rows)
    ]
    return torch.stack([official_drop(order, count) for order in orders]).expand(shape)


def official_drop(order: Tensor, count: int) -> Tensor:
    """Return the mask that drops positions 1 + order[:count], (S,)."""
    dropped_S = torch.zeros(len(order) + 1, dtype=torch.bool, device=order.device)
    dropped_S[1 + order[:count]] = True
    return dropped_S
