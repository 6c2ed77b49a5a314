"""Distil the sampler of a diffusion model: fewer steps, and no guidance.

The teacher runs its own sampler, guidance included, from noise to a concept. The student starts as
a copy of the teacher and takes S steps where the teacher takes N S:

    x_T -> ... -> x_s1 -> ... -> x_s2 -> ... -> x0        teacher, N steps per arrow chain
    x_T --------> x_s1 --------> x_s2 --------> x0        student, one step per segment

Its target in a segment from t to s is the x0~ with which one DDIM step from x_t arrives at the
teacher's x_s (Salimans and Ho 2022, arXiv 2202.00512, appendix G):

    x0~  = (x_s - r x_t) / (a_s - r a_t),  r = s_s / s_t
    loss = mean over segments of |x0~ - x0(student(x_t, t))|^2

As in Meng et al. 2023 (arXiv 2210.03142), the teacher's steps are guided and the student's are not.
Unlike in these papers, the number of steps falls at once rather than by halving, and x_t lies on
the teacher's path from pure noise rather than being a noised concept: the student then trains on
the inputs that it gets when it samples. With self-conditioning it also reads an estimate of x0, the
target of the segment before.

Shapes: B documents, S concepts, P predicted concepts (S - 1), D concept dim, K segments, N targets.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.config import AnyConfig, OneTowerConfig, TwoTowerConfig
from lcm_cli.models.diffusion import Denoised, DiffusionOptions, Schedule, sample, step_pairs
from lcm_cli.models.diffusion_lcm import DiffusionLCM
from lcm_cli.models.interface import Batch, ConceptModel, Loss, squared_error


class FewSteps:
    """The loss of a student that imitates segments of its teacher's denoising."""

    def __init__(self, teacher: DiffusionLCM, steps: int) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._options = teacher.options()
        self._stride = self._options.steps // steps
        self._few = replace(self._options, steps=steps, guidance=1.0)

    def __call__(self, model: ConceptModel, batch: Batch) -> Loss:
        """Return the loss over all segments of each concept but a document's first.

        Sources are learned as well: the teacher has an answer for each of their concepts.
        """
        assert isinstance(model, DiffusionLCM)
        schedule, x_BSD = model.schedule, model.normalized(batch.concepts_BSD)
        points = path(self._teacher, x_BSD, self._options, self._stride)
        pairs = step_pairs(schedule.config.steps, self._few)
        goals_BKPD = torch.stack(end_points(schedule, points, pairs, self._few), dim=1)
        starts_BKPD = torch.stack(points[:-1], dim=1)
        visited_K = torch.tensor([t for t, _ in pairs], device=x_BSD.device)
        # Zero in the first segment, as at the first step of sampling.
        estimates_BKPD = torch.cat([torch.zeros_like(goals_BKPD[:, :1]), goals_BKPD[:, :-1]], dim=1)
        guesses_BKPD = denoised(model, x_BSD, starts_BKPD, visited_K, estimates_BKPD)
        real_BP = (batch.positions() < batch.lengths_B[:, None])[:, 1:]
        real_BKP = real_BP[:, None].expand(goals_BKPD.shape[:-1])
        errors_N = squared_error(guesses_BKPD[real_BKP], goals_BKPD[real_BKP])
        timesteps_N = visited_K[:, None].expand(real_BKP.shape)[real_BKP]
        return Loss(errors_N.sum(), errors_N.detach(), timesteps_N)


@torch.no_grad()
def path(
    teacher: DiffusionLCM, x_BSD: Tensor, options: DiffusionOptions, stride: int
) -> list[Tensor]:
    """Denoise every concept but the first from fresh noise; return every `stride`-th x_t.

    The last one is the x0 of the last step; all are (B, P, D).
    """
    start_BPD = torch.randn_like(x_BSD[:, 1:], dtype=torch.float32)
    points = [start_BPD * options.initial_noise * options.temperature]

    def watch(step: Denoised) -> None:
        if (step.index + 1) % stride == 0:
            points.append(step.previous.clamp(-options.clip, options.clip))

    predict = teacher.teacher(x_BSD, options)
    # eta is 0, so that no further noise is drawn: any function serves.
    x0_BPD = sample(teacher.schedule, options, start_BPD, predict, lambda: start_BPD, watch)
    return [*points[:-1], x0_BPD]


def end_points(
    schedule: Schedule,
    points: list[Tensor],
    pairs: list[tuple[int, int]],
    options: DiffusionOptions,
) -> list[Tensor]:
    """Return the x0 with which a step from each point arrives at the next one."""
    goals = []
    for (t, s), x, after in zip(pairs[:-1], points, points[1:], strict=False):
        a_t, a_s = math.sqrt(schedule.alpha(t)), math.sqrt(schedule.alpha(s))
        spread_t, spread_s = math.sqrt(1 - schedule.alpha(t)), math.sqrt(1 - schedule.alpha(s))
        # Solve x_s = a_s x0 + s_s e / epsilon_scaling with e = (x_t - a_t x0) / s_t for x0.
        ratio = spread_s / (spread_t * options.epsilon_scaling)
        goals.append((after - ratio * x) / (a_s - ratio * a_t))
    return [*goals, points[-1]]  # the sampler returns the last step's x0 itself


def denoised(
    model: DiffusionLCM,
    x_BSD: Tensor,
    noisy_BKPD: Tensor,
    timesteps_K: Tensor,
    estimates_BKPD: Tensor | None = None,
) -> Tensor:
    """Return the x0 that a model predicts for several noisy versions of each concept.

    `estimates_BKPD` are the estimates that a model with self-conditioning reads; None means zeros.
    """
    rows, count, places = noisy_BKPD.shape[:3]
    # All versions side by side, so that the context is read once.
    places_P = torch.arange(1, places + 1, device=x_BSD.device)
    out = model(
        x_BSD,
        noisy_BKPD.flatten(1, 2).to(x_BSD.dtype),
        timesteps_K.repeat_interleave(places).expand(rows, -1),
        places_P.repeat(count)[None],
        estimate_BSD=None
        if estimates_BKPD is None
        else estimates_BKPD.flatten(1, 2).to(x_BSD.dtype),
    )
    out_BKPD = out.float().view(noisy_BKPD.shape)
    guesses = [
        model.schedule.clean(out_BKPD[:, k], noisy_BKPD[:, k], t)
        for k, t in enumerate(timesteps_K.tolist())
    ]
    return torch.stack(guesses, dim=1)


def check_few_steps(teacher: ConceptModel, steps: int, source: str, packing: bool) -> None:
    """Raise an LcmError if the sampler of the teacher, at `source`, cannot be distilled."""
    config = teacher.config
    if not isinstance(config, OneTowerConfig | TwoTowerConfig):
        raise IntegrityError(
            f"distill.steps = {steps}: the teacher {source} is a {config.architecture} model, "
            "which has no denoising steps",
            "choose a one_tower or two_tower model, or leave distill.steps out",
        )
    theirs = config.sampling.steps
    if steps >= theirs or theirs % steps:
        fewer = [str(count) for count in range(1, theirs) if theirs % count == 0]
        raise IntegrityError(
            f"distill.steps = {steps} does not divide the {theirs} steps of the teacher {source}",
            f"choose {', '.join(fewer)}" if fewer else "choose a teacher with more steps",
        )
    if config.schedule.prediction == "epsilon":
        raise IntegrityError(
            f"the teacher {source} predicts the noise, which determines no concept at the start",
            "choose a teacher that predicts x0, v or the velocity",
        )
    if packing:
        raise UsageError("distill.steps needs rows of one document", "set data.packing = false")


def sampling_in(config: AnyConfig, steps: int, **changes: float) -> AnyConfig:
    """Return the config of a diffusion model with another number of steps by default."""
    assert isinstance(config, OneTowerConfig | TwoTowerConfig)
    return replace(config, sampling=replace(config.sampling, steps=steps, **changes))
