"""Deliberate differences from the official diffusion code, and the paper's own formulas."""

import itertools
import math

import pytest
import torch
from rounding import assert_near

from lcm_cli.errors import UsageError
from lcm_cli.models.config import DiffusionObjective, ScheduleConfig
from lcm_cli.models.diffusion import DiffusionOptions, Schedule, guide, limit, step_pairs, timesteps
from lcm_cli.models.diffusion_training import TimestepSampling

NAMES = ["cosine", "linear", "scaled_linear", "quadratic", "sigmoid"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", [True, False])
def test_signal_falls_to_zero(name: str, zero: bool) -> None:
    schedule = Schedule(ScheduleConfig(name=name, zero_terminal_snr=zero))  # type: ignore[arg-type]
    assert bool((schedule.alphas_T.diff() < 1e-7).all())
    assert bool(((schedule.alphas_T >= 0) & (schedule.alphas_T <= 1)).all())
    assert (schedule.alphas_T[-1] == 0) == zero


def test_equation_12() -> None:
    schedule = Schedule(ScheduleConfig(zero_terminal_snr=False))
    signal = [math.cos((u / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(101)]
    expected = torch.tensor([value / signal[0] for value in signal[1:99]])
    assert_near(schedule.alphas_T[:98], expected, terms=98)


def test_equation_13() -> None:
    """The paper's Quadratic-2."""
    config = ScheduleConfig(
        name="quadratic", beta_start=0.02, beta_end=0.022, zero_terminal_snr=False
    )
    low, high = math.sqrt(0.02), math.sqrt(0.022)
    expected = torch.tensor([(low + t / 100 * (high - low)) ** 2 for t in range(1, 101)])
    assert_near(Schedule(config).betas_T, expected, terms=4)


def test_equation_14() -> None:
    config = ScheduleConfig(name="sigmoid", gamma=0.8, delta=-1.0, zero_terminal_snr=False)
    alphas = Schedule(config).alphas_T
    for t in (1, 30, 60, 97):
        u = (t + 1) / 100
        expected = 1 / (1 + math.exp(1 + 0.8 * math.log(u / (1 - u))))
        assert alphas[t].item() == pytest.approx(expected, rel=1e-3)


def test_flow_matching_takes_euler_steps_along_straight_paths() -> None:
    """In the coordinates z_u = (1 - u) x0 + u e, a step adds (u_s - u_t) times the velocity."""
    schedule = Schedule(ScheduleConfig(name="straight", prediction="flow"))
    x0, noise = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))

    def scale(u: float) -> float:
        return math.sqrt((1 - u) ** 2 + u**2)

    for t, s in ((99, 74), (74, 9), (9, -1)):
        u, later = (t + 1) / 100, (s + 1) / 100
        z = (1 - u) * x0 + u * noise
        steps = torch.full((5,), t)
        x = schedule.noised(x0, noise, steps)
        assert_near(x * scale(u), z, terms=100)
        assert torch.equal(schedule.target(x0, noise, steps), noise - x0)
        velocity = torch.randn(5, 8)  # as wrong as that of an untrained network
        reached, _ = schedule.step(velocity, x, t, s, DiffusionOptions(epsilon_scaling=1.0))
        assert_near(reached * scale(later), z + (later - u) * velocity, terms=100)


def test_forty_steps_are_forty() -> None:
    """The steps are the paper's round(flip(arange(T, 0, -T / S))); the official code runs 50."""
    ours = timesteps(100, DiffusionOptions())
    assert ours == [round(100 - 2.5 * i) - 1 for i in range(40)]
    assert len(timesteps(100, DiffusionOptions(exact_steps=False))) == 50


@pytest.mark.parametrize("exact", [True, False])
def test_the_steps_of_a_walk_are_connected(exact: bool) -> None:
    for steps in (1, 7, 30, 40, 100):
        pairs = step_pairs(100, DiffusionOptions(steps=steps, exact_steps=exact))
        assert pairs[-1][1] == -1
        for (_, s), (t, _) in itertools.pairwise(pairs):
            assert s == t


def test_more_steps_than_trained() -> None:
    with pytest.raises(UsageError, match="101 denoising steps, but the model was trained with 100"):
        timesteps(100, DiffusionOptions(steps=101))


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v", "flow"])
def test_a_perfect_prediction_leads_back(prediction: str) -> None:
    """Given the true target, a step recovers x0 and arrives at the true x_s."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 8, generator=generator)
    schedule = Schedule(ScheduleConfig(prediction=prediction, zero_terminal_snr=False))  # type: ignore[arg-type]
    t = torch.full((5,), 80)
    x = schedule.noised(x0, noise, t)
    output = schedule.target(x0, noise, t)
    assert_near(schedule.epsilon(output, x, 80), noise, terms=16)
    options = DiffusionOptions(epsilon_scaling=1.0)
    previous, guess = schedule.step(output, x, 80, 40, options)
    # x is mostly noise there: its rounding error is divided by its small share of signal.
    size = float(x.abs().max()) / math.sqrt(schedule.alpha(80))
    assert_near(guess, x0, terms=16, size=size)
    expected = schedule.noised(x0, noise, torch.full((5,), 40))
    assert_near(previous, expected, terms=16, size=size)


def test_guidance() -> None:
    conditional, unconditional = torch.randn(2, 4, 16)
    plain = DiffusionOptions(guidance=3.0, guidance_rescale=0.0)
    expected = -2 * unconditional + 3 * conditional  # (1 - g) uncond + g cond
    assert_near(guide(conditional, unconditional, plain), expected, terms=4)
    full = DiffusionOptions(guidance=3.0, guidance_rescale=1.0)
    rescaled = guide(conditional, unconditional, full)
    assert_near(rescaled.std(dim=-1), conditional.std(dim=-1), terms=16)


def test_bounds() -> None:
    x = torch.tensor([[0.1, -5.0, 2.0, 0.5]])
    assert limit(x, DiffusionOptions()) is x
    assert limit(x, DiffusionOptions(clip_x0=1.0)).tolist() == [[pytest.approx(0.1), -1, 1, 0.5]]
    bounded = limit(x, DiffusionOptions(threshold=1.0, threshold_max=4.0))
    assert bounded.abs().max() == 1
    assert bounded[0, 2] == 0.5


@pytest.mark.parametrize("b", [0.3, 0.8, 1.0, 2.0])
def test_beta_levels_are_finite(b: float) -> None:
    objective = DiffusionObjective(timesteps="beta", beta_b=b)
    levels = TimestepSampling(objective, Schedule(ScheduleConfig()))
    assert bool(levels.probabilities_T.isfinite().all())
    assert levels.probabilities_T.sum().item() == pytest.approx(1)
    drawn = levels.draw(torch.Size([2000]))
    assert 0 <= drawn.min() <= drawn.max() < 100
    assert levels.draw(torch.Size([0, 3])).shape == (0, 3)
