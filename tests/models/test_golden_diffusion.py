"""Schedules, spacings, sampler steps and timestep draws against the official implementation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lcm_cli.models.config import DiffusionObjective, ScheduleConfig
from lcm_cli.models.diffusion import DiffusionOptions, Schedule, timesteps
from lcm_cli.models.diffusion_training import TimestepSampling
from lcm_cli.transfer.converters.official import official_schedule

FILES = ["ddim_schedules", "ddim_steps"]
COMPARED = 429
OPERATIONS = 16  # upper bound on the roundings of a step
PREDICTIONS = {"sample": "x0", "epsilon": "epsilon", "v_prediction": "v"}


def test_schedules(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_schedules")
    for name, config in file.facts["alphas"].items():
        schedule = Schedule(official_schedule(config))
        total = schedule.config.steps
        ours = {
            "alphas_cumprod": schedule.alphas_T,
            "betas": schedule.betas_T,
            "variances": torch.tensor([schedule.variance(t, t - 1) for t in range(total)]),
            "snrs": schedule.snrs(),
        }
        for what, tensor in ours.items():
            if (theirs := file.tensors.get(f"{what}/{name}")) is not None:
                real = theirs.isfinite()
                size = _size(what, schedule, theirs)[real]
                file.check(f"{what}/{name}", tensor, real, terms=total, size=size)


def _size(what: str, schedule: Schedule, theirs: Tensor) -> Tensor:
    """Return the size to which the rounding error of each number of a schedule is relative, (T,).

    alpha is a product of up to T factors of about 1 and rounds as numbers of size 1 do.
    snr = alpha / (1 - alpha) amplifies the error of alpha by (1 + snr)^2, hugely where there is
    little noise. beta = 1 - alpha_t / alpha_s divides alphas, which are small in the last steps:
    zero terminal SNR subtracts the last root of alpha from all of them.
    """
    if what == "snrs":
        return (1 + theirs) ** 2
    if what in ("betas", "variances") and schedule.config.zero_terminal_snr:
        left_T = schedule.alphas_T.sqrt()
        return 1 / left_T.clamp(min=left_T[left_T > 0].amin())
    return torch.ones_like(theirs)


def test_official_spacing(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_schedules")
    for key in [key for key in file.tensors if key.startswith("timesteps/")]:
        _, total, spacing, steps = key.split("/")
        options = DiffusionOptions(steps=int(steps[1:]), spacing=spacing, exact_steps=False)  # type: ignore[arg-type]
        ours = timesteps(int(total[1:]), options)
        file.check(key, torch.tensor(ours))
        assert len(ours) == file.facts["timesteps"][key.removeprefix("timesteps/")]


def _options(case: dict[str, Any]) -> DiffusionOptions:
    config, step = case["config"], case["step_kwargs"]
    return DiffusionOptions(
        steps=case["num_inference_steps"],
        eta=step.get("eta", 0.0),
        epsilon_scaling=step.get("epsilon_scaling", 1.0),
        threshold=config["dynamic_thresholding_ratio"] if config["thresholding"] else None,
        threshold_max=config["sample_max_value"],
        clip_x0=config["clip_sample_range"] if config["clip_sample"] else None,
    )


def _schedule(golden: Callable[[str], Any], config: dict[str, Any]) -> Schedule:
    """Return a schedule with exactly the alphas that the official code computed.

    Where there is little noise or little signal, their last bit affects the third digit of a step.
    """
    file, schedule = golden("ddim_schedules"), Schedule(official_schedule(config))
    wanted = _noising(schedule.config)
    configs = {key: official_schedule(each) for key, each in file.facts["alphas"].items()}
    name = next(name for name, each in configs.items() if _noising(each) == wanted)
    schedule.alphas_T = file[f"alphas_cumprod/{name}"]
    return schedule


def _noising(config: ScheduleConfig) -> ScheduleConfig:
    """Reset the fields that do not affect the alphas."""
    return dataclasses.replace(config, prediction="x0", final_alpha_one=True)


def test_steps(golden: Callable[[str], Any]) -> None:
    """Our steps are finite where the official ones are NaN or infinite, and equal elsewhere."""
    file = golden("ddim_steps")
    x, output, noise = (
        file[key].flatten(1) for key in ("sample", "model_output", "variance_noise")
    )
    finite = 0
    for case in file.facts["cases"]:
        options, step = _options(case), case["step_kwargs"]
        schedule = _schedule(golden, case["config"])
        previous, x0 = schedule.step(
            output,
            x,
            case["timestep"],
            max(case["prev_timestep"], -1),
            options,
            prediction=PREDICTIONS.get(step.get("prediction_type")),  # type: ignore[arg-type]
            noise=noise if options.eta > 0 else None,
            consistent=step.get("use_clipped_model_output", False),
        )
        for name, ours in (("prev_sample", previous), ("pred_original_sample", x0)):
            assert bool(ours.isfinite().all()), case["name"]
            key = f"{case['key']}/{name}"
            where = file.tensors[key].isfinite()
            finite += int(where.all())
            file.check(key, ours.view(3, 2, 16), where, OPERATIONS)
    assert finite == 2 * len(file.facts["cases"]) - 16


def test_noising(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_steps")
    facts = next(
        c["config"] for c in file.facts["cases"] if c["name"] == "v_prediction S20 t54 eta0.0"
    )
    schedule, levels = _schedule(golden, facts), file["add_noise/timesteps"]
    x0, noise = (file[key].flatten(0, 1) for key in ("sample", "variance_noise"))
    file.check("add_noise/out", schedule.noised(x0, noise, levels), terms=OPERATIONS)
    file.check("velocity/out", schedule.target(x0, noise, levels), terms=OPERATIONS)
    for key in [key for key in file.tensors if key.startswith("get_epsilon/")]:
        _, kind, t = key.split("/")
        schedule = _schedule(golden, facts | {"prediction_type": kind})
        ours = schedule.epsilon(file["model_output"], file["sample"], int(t[1:]))
        file.check(key, ours, terms=OPERATIONS)


def test_timestep_draws_and_weights(golden: Callable[[str], Any]) -> None:
    file = golden("ddim_steps")
    schedule = Schedule(official_schedule(file.facts["cases"][0]["config"]))
    terms = schedule.config.steps
    uniform = TimestepSampling(DiffusionObjective(), schedule).probabilities_T
    file.check("sampler/uniform/probs", uniform, terms=terms)
    for key in [key for key in file.tensors if key.startswith("sampler/beta_")]:
        a, b = map(float, key.split("/")[1].split("_")[1:])
        objective = DiffusionObjective(timesteps="beta", beta_a=a, beta_b=b)
        file.check(key, TimestepSampling(objective, schedule).probabilities_T, terms=terms)
    steps = file["sampler/clamp_snr/steps"]
    for key in [key for key in file.tensors if key.endswith("/loss_scales")]:
        low, high = (0.0, 5.0)
        if key.startswith("sampler/clamp_snr_"):
            low, high = map(float, key.split("/")[1].removeprefix("clamp_snr_").split("_"))
        objective = DiffusionObjective(weighting="clamped_snr", snr_min=low, snr_max=high)
        levels = TimestepSampling(objective, schedule)
        ours = levels.weights(steps)
        assert ours is not None and levels.weights_T is not None
        size = _size("snrs", schedule, levels.weights_T)
        file.check(key, ours, terms=terms, size=size[steps] / levels.weights_T[steps].mean())
        every = f"{key.removesuffix('loss_scales')}gamma_per_step"
        if every in file.tensors:
            file.check(every, levels.weights_T, terms=terms, size=size)


def test_nothing_is_left_out(assert_complete: Callable[[list[str], int], None]) -> None:
    assert_complete(FILES, COMPARED)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("total", [1, 7, 100, 1000])
def test_exact_steps_are_as_many_as_asked(spacing: str, total: int) -> None:
    for steps in {1, 2, total // 3, 2 * total // 5, total} - {0}:
        if steps > total:
            continue
        ours = timesteps(total, DiffusionOptions(steps=steps, spacing=spacing))  # type: ignore[arg-type]
        assert len(ours) == len(set(ours)) == steps
        assert ours == sorted(ours, reverse=True)
        assert 0 <= ours[-1] <= ours[0] < total
