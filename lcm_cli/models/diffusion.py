"""Diffusion over concepts: schedules, training targets and the DDIM sampler (paper 2.3.2).

Notation follows the paper: x0 is the clean concept, x_t its noised state at step t of T,
a_t^2 = alpha_t the share of signal left in it and e Gaussian noise: x_t = a_t x0 + s_t e with
a_t^2 + s_t^2 = 1 (eq. 7). A network predicts x0, e, v = a_t e - s_t x0 or the velocity e - x0;
schedule and sampler receive it as a function.

Flow matching (Lipman et al. 2023, arXiv 2210.02747) learns the velocity e - x0 of the straight path
z_u = (1 - u) x0 + u e, u = t/T. The schedule "straight" has its signal-to-noise ratio, and its x_t
is z_u scaled to a_t^2 + s_t^2 = 1, the same problem for the network (Kingma and Gao 2023, arXiv
2303.00848). A DDIM step takes x0 and e from the prediction and moves along the line between them,
so with a predicted velocity it is an Euler step of the flow (with epsilon_scaling = 1).

Steps are numbered 0 .. T - 1 as in the official code; -1 is the clean concept.

Shapes: T steps, D concept dim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from lcm_cli.errors import UsageError
from lcm_cli.models.config import PredictionType, ScheduleConfig

MAX_BETA = 0.999  # bound on the betas derived from a signal curve, which would reach 1 at its end
Spacing = Literal["trailing", "leading", "linspace"]


@dataclass(frozen=True)
class DiffusionOptions:
    """Options for sampling from a diffusion model; the defaults are the paper's (2.3.2)."""

    steps: int = 40  # S
    guidance: float = 3.0  # classifier-free guidance scale (eq. 20); 1: no guidance
    guidance_rescale: float = 0.7
    initial_noise: float = 0.6  # standard deviation of x_T
    temperature: float = 1.0  # factor on initial_noise; 0: always start from the same point
    epsilon_scaling: float = 1.00045  # divisor of the predicted noise
    eta: float = 0.0  # 0: DDIM, deterministic after the start; 1: DDPM
    spacing: Spacing = "trailing"
    exact_steps: bool = True  # False: the official stride, which runs 50 steps for S = 40, T = 100
    clip: float = 100.0  # bound on every value of x_t
    clip_x0: float | None = None  # bound on every value of the predicted x0
    threshold: float | None = None  # dynamic thresholding: the quantile of |x0| that becomes 1
    threshold_max: float = 6.0  # upper bound of the threshold

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


# Schedules: beta_t is the share of the signal's variance that step t destroys.


def linear_betas(config: ScheduleConfig) -> Tensor:
    """Return betas that rise linearly from beta_start to beta_end, (T,)."""
    return torch.linspace(config.beta_start, config.beta_end, config.steps)


def scaled_linear_betas(config: ScheduleConfig) -> Tensor:
    """Return betas whose `exponent`-th root rises linearly, (T,)."""
    power = 1 / config.exponent
    ends = config.beta_start**power, config.beta_end**power
    return torch.linspace(*ends, config.steps) ** config.exponent


def quadratic_betas(config: ScheduleConfig) -> Tensor:
    """Return (sqrt b0 + t/T (sqrt b1 - sqrt b0))^2 for t = 1 .. T (eq. 13), (T,)."""
    low, high = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
    return (low + torch.arange(1, config.steps + 1) / config.steps * (high - low)) ** 2


def cosine_signal(u: float, config: ScheduleConfig) -> float:
    """Return cos^2((u + s) / (1 + s) pi / 2) with s = 0.008, at u = t/T (eq. 12)."""
    return float(math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2)


def sigmoid_signal(u: float, config: ScheduleConfig) -> float:
    """Return sigmoid(delta - gamma logit(u)) at u = t/T (eq. 14)."""
    if u <= 0 or u >= 1:  # the limits, where logit is infinite
        return float(u <= 0)
    odds = math.exp(-config.delta) * math.pow(u / (1 - u), config.gamma)
    return 1 / (1 + odds)


def straight_betas(config: ScheduleConfig) -> Tensor:
    """Return the betas with the signal-to-noise ratio ((1 - u) / u)^2 at u = t/T, (T,)."""
    # In float64: the first betas are small differences of numbers close to 1.
    u = torch.arange(config.steps + 1, dtype=torch.float64) / config.steps
    alphas = (1 - u) ** 2 / ((1 - u) ** 2 + u**2)
    return (1 - alphas[1:] / alphas[:-1]).float()


def betas_of(signal: Callable[[float, ScheduleConfig], float], config: ScheduleConfig) -> Tensor:
    """Return the betas whose cumulative product of 1 - beta follows `signal`, (T,)."""
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
    elif config.name == "straight":
        plain = straight_betas(config)
    elif config.name == "quadratic":
        plain = quadratic_betas(config)
    else:
        plain = linear_betas(config) if config.name == "linear" else scaled_linear_betas(config)
    return zero_terminal_snr(plain) if config.zero_terminal_snr else plain


def zero_terminal_snr(betas_T: Tensor) -> Tensor:
    """Shift and scale a_t so that a_T = 0 and a_1 is unchanged (Lin et al. 2024, algorithm 1)."""
    a_T = torch.cumprod(1 - betas_T, dim=0).sqrt()
    first, last = a_T[0].clone(), a_T[-1].clone()
    alphas_T = ((a_T - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_T[:1], alphas_T[1:] / alphas_T[:-1]])


class Schedule:
    """The forward noising process: the amount of signal and noise at each step."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        with torch.device("cpu"):  # even for a model built on "meta", before its weights are loaded
            self.betas_T = betas(config)
        self.alphas_T = torch.cumprod(1 - self.betas_T, dim=0)
        self._levels: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha(self, t: int) -> float:
        """Return alpha_t = a_t^2; at t = -1, that of the clean concept."""
        if t >= 0:
            return float(self.alphas_T[t])
        return 1.0 if self.config.final_alpha_one else float(self.alphas_T[0])

    def variance(self, t: int, s: int) -> float:
        """Return the variance of x_s given x_t and x0, s < t (Song et al. 2021, eq. 16, eta 1)."""
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        # After rounding, the first step may have no noise (see `epsilon`).
        return (1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s) if alpha_t < 1 else 0.0

    def snrs(self) -> Tensor:
        """Return the signal-to-noise ratio exp(lambda_t) of every step, (T,)."""
        return self.alphas_T / (1 - self.alphas_T)

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t at `timesteps` (...), shaped to multiply concepts, (..., 1) each."""
        device = timesteps.device
        # Kept by device, so that a training step copies no tables and waits for none.
        if device not in self._levels:
            self._levels[device] = (
                self.alphas_T.sqrt().to(device),
                (1 - self.alphas_T).sqrt().to(device),
            )
        signal_T, noise_T = self._levels[device]
        return signal_T[timesteps][..., None], noise_T[timesteps][..., None]

    def noised(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = a_t x0 + s_t e (eq. 7), for x0 (..., D) at `timesteps` (...)."""
        signal, spread = self.levels(timesteps)
        return signal * x0 + spread * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the network's target: x0, e, v or e - x0, as the schedule's `prediction` says."""
        if self.config.prediction == "x0":
            return x0
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "flow":
            return noise - x0
        signal, spread = self.levels(timesteps)
        return signal * noise - spread * x0

    def epsilon(self, output: Tensor, x: Tensor, t: int) -> Tensor:
        """Return the noise e implied by the network's `output` at x_t."""
        signal, spread = math.sqrt(self.alpha(t)), math.sqrt(1 - self.alpha(t))
        if self.config.prediction == "epsilon":
            return output
        if self.config.prediction == "v":
            return signal * output + spread * x
        # x_t = a x0 + s e and output = e - x0, so x_t + a output = (a + s) e.
        if self.config.prediction == "flow":
            return (x + signal * output) / (signal + spread)
        # A schedule that rises slowly may have no noise at all at its first step, after rounding.
        return (x - signal * output) / spread if spread > 0 else torch.zeros_like(x)

    def clean(
        self, output: Tensor, x: Tensor, t: int | Tensor, prediction: PredictionType | None = None
    ) -> Tensor:
        """Return the x0 implied by `output` at x_t, read as `prediction` (default: the schedule's).

        `t` is one step or, unless e is predicted, the steps (...) of x (..., D).
        """
        kind = prediction or self.config.prediction
        signal: float | Tensor
        spread: float | Tensor
        if isinstance(t, Tensor):
            signal, spread = self.levels(t)
        else:
            signal, spread = math.sqrt(self.alpha(t)), math.sqrt(1 - self.alpha(t))
        if kind == "x0":
            return output
        if kind == "v":
            return signal * x - spread * output
        # As in `epsilon`: x_t - s output = (a + s) x0.
        if kind == "flow":
            return (x - spread * output) / (signal + spread)
        # Without signal, e determines nothing about x0: take 0, the centre of normalized concepts.
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
        """Step from x_t to x_s (DDIM, Song et al. 2021, eq. 12); return x_s and the predicted x0.

        `output` is read as `prediction` (default: the schedule's). `noise` is required if eta > 0.
        `consistent` recomputes e from the x0 left after clipping.
        """
        kind = prediction or self.config.prediction
        signal, spread = math.sqrt(self.alpha(t)), math.sqrt(1 - self.alpha(t))
        x0 = self.clean(output, x, t, kind)
        epsilon = output if kind == "epsilon" else self.epsilon(output, x, t)
        x0 = limit(x0, options)
        epsilon = (x - signal * x0) / spread if consistent else epsilon / options.epsilon_scaling
        alpha_s, variance = self.alpha(s), options.eta**2 * self.variance(t, s)
        # At zero SNR and eta 1 the difference is zero, and rounding may leave it slightly negative.
        direction = math.sqrt(max(1 - alpha_s - variance, 0.0))
        previous = math.sqrt(alpha_s) * x0 + direction * epsilon
        if noise is not None:
            previous = previous + math.sqrt(max(variance, 0.0)) * noise
        return previous, x0


def limit(x0: Tensor, options: DiffusionOptions) -> Tensor:
    """Bound the predicted x0 by dynamic thresholding (Saharia et al. 2022) or by clipping."""
    if options.threshold is not None:
        bound = x0.abs().quantile(options.threshold, dim=-1, keepdim=True)
        # A bound below 1 would enlarge concepts that need no thresholding.
        bound = bound.clamp(1.0, options.threshold_max)
        return x0.clamp(-bound, bound) / bound
    return x0 if options.clip_x0 is None else x0.clamp(-options.clip_x0, options.clip_x0)


def timesteps(total: int, options: DiffusionOptions) -> list[int]:
    """Return the S steps to visit out of `total`, the noisiest first (Lin et al. 2024, table 2).

    Raises UsageError if S exceeds `total`, the number of steps in training.
    """
    steps = options.steps
    if steps > total:
        raise UsageError(
            f"{steps} denoising steps, but the model was trained with {total}",
            f"use at most {total}",
        )
    if not options.exact_steps:
        return _official_timesteps(total, options)
    # The paper's round(arange(T, 0, -T / S)), whose steps count from 1.
    if options.spacing == "trailing":
        return [round(total * (steps - i) / steps) - 1 for i in range(steps)]
    if options.spacing == "leading":
        return [total * i // steps for i in reversed(range(steps))]
    return [round((total - 1) * (1 - i / max(steps - 1, 1))) for i in range(steps)]


def _official_timesteps(total: int, options: DiffusionOptions) -> list[int]:
    """Return the official code's steps: its stride is truncated, so there may be more than S."""
    stride = total // options.steps
    if options.spacing == "trailing":
        return list(range(total - 1, -1, -stride))
    if options.spacing == "leading":
        return list(range(0, total, stride))[::-1]
    return torch.linspace(0, total - 1, options.steps, dtype=torch.long).tolist()[::-1]


def step_pairs(total: int, options: DiffusionOptions) -> list[tuple[int, int]]:
    """Return the pairs (t, s) of a whole run, each a step from t to s; the last s is -1."""
    visited = timesteps(total, options)
    if options.exact_steps:
        return list(zip(visited, [*visited[1:], -1], strict=True))
    # The official scheduler always steps by the stride, even if linspace visits other steps.
    stride = total // options.steps
    return [(t, max(t - stride, -1)) for t in visited]


def guide(conditional: Tensor, unconditional: Tensor, options: DiffusionOptions) -> Tensor:
    """Apply classifier-free guidance (eq. 20), rescaled (Lin et al. 2024, algorithm 2).

    Rescaling moves the deviation over channels towards that of the conditional prediction.
    """
    guided = unconditional + options.guidance * (conditional - unconditional)
    ratio = conditional.std(dim=-1, keepdim=True) / guided.std(dim=-1, keepdim=True)
    return guided * (options.guidance_rescale * ratio + 1 - options.guidance_rescale)


@dataclass(frozen=True)
class Denoised:
    """A denoising step, for tracing; tensors are normalized and have the shape of the sample."""

    index: int  # 0: the first and noisiest step
    t: int
    output: Tensor  # the network's output; under guidance, the guided prediction of the noise
    previous: Tensor  # x_s, before clipping
    x0: Tensor  # the x0 predicted at this step


class Predict(Protocol):
    """A network as the sampler calls it."""

    def __call__(
        self, x: Tensor, t: int, guided: bool, estimate: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor | None]:
        """Return the conditional output at x_t and, if `guided`, the unconditional one.

        `estimate` is the x0 of the step before; only a model with self-conditioning reads it.
        """


def halves(out: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
    """Return a network's output with context, the first half of `out` if `guided`, and without."""
    half = len(out) // 2
    return (out[:half], out[half:]) if guided else (out, None)


def sample(
    schedule: Schedule,
    options: DiffusionOptions,
    start: Tensor,
    predict: Predict,
    draw: Callable[[], Tensor],
    watch: Callable[[Denoised], None] | None = None,
) -> Tensor:
    """Denoise `start`, a standard Gaussian of any shape (..., D), into concepts; return x0.

    `draw` returns further standard Gaussians of the same shape, which eta > 0 needs. `watch` is
    called after every step.
    """
    spread = options.initial_noise * options.temperature
    x = (start * spread).clamp(-options.clip, options.clip)
    x0, estimate = x, None
    for index, (t, s) in enumerate(step_pairs(schedule.config.steps, options)):
        # At the noisiest step x_t may hold no signal, and x0 cannot be recovered from guided noise.
        guided = options.guided and t < schedule.config.steps - 1
        output, unconditional = predict(x, t, guided, estimate)
        prediction = schedule.config.prediction
        # As in the official code, guidance mixes noises, whatever the network predicts.
        if unconditional is not None:
            noise = schedule.epsilon(output, x, t)
            output = guide(noise, schedule.epsilon(unconditional, x, t), options)
            prediction = "epsilon"
        extra = draw() if options.eta > 0 else None
        previous, x0 = schedule.step(output, x, t, s, options, prediction=prediction, noise=extra)
        estimate = x0
        if watch is not None:
            watch(Denoised(index, t, output, previous, x0))
        x = previous.clamp(-options.clip, options.clip)
    return x0
